"""However batches come to the device, they are the same bits; and what happens when those who bring them fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch

from recipes import cnn, data, loading, loop, mlp
from recipes import loader as loader_module
from recipes.config import make
from recipes.data import Loaded
from recipes.loader import Loader, LoaderError
from recipes.loop import Attempt
from recipes.speed import results
from tests.support.orch import descendants
from tests.support.sources import Numbers

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow  # together they take a quarter of what the quick tests may

CPU = torch.device("cpu")
AUGMENTED = {"crop": 1, "flip": 0.5, "vertical_flip": 0.2, "rotation": 9.0, "cutout": 2, "mixup": 0.4, "noise": 0.1}
VALUES = {"epochs": 2, "width": 4, "batch_size": 200, "dropout": 0.3, "accumulate": 2, **AUGMENTED}


def trained(**values: Any) -> list[dict[str, float]]:
    return [results(epoch.metrics) for epoch in cnn.train(make(cnn.Config, {**VALUES, **values}))]


@pytest.mark.parametrize("more", [{}, {"crop": 0, "balance": "sampler"}], ids=["as they are", "drawn"])
def test_training_has_the_same_bits_however_its_batches_come(more):
    resident = trained(loading="resident", **more)
    assert trained(**more) == resident, "what fits stays on the device"
    for num_workers in (0, 1, 2):
        assert trained(loading="workers", loader_workers=num_workers, **more) == resident, num_workers


def test_features_are_brought_too(features):
    def run(loading: str) -> list[dict[str, float]]:
        config = make(mlp.Config, {"epochs": 2, "batch_size": 5, "loading": loading, "loader_workers": 1})
        build = lambda *_: torch.nn.Linear(4, 4)  # noqa: E731
        return [results(epoch.metrics) for epoch in loop.fit(config, build, recipe="mlp", dataset=features)]

    assert run("workers") == run("resident")


def test_stopped_training_with_workers_goes_on_with_the_same_bits(tmp_path):
    config = make(cnn.Config, {**VALUES, "epochs": 3, "loading": "workers", "loader_workers": 2})
    straight = [results(epoch.metrics) for epoch in cnn.train(config, Attempt(folder=tmp_path / "straight"))]
    stopped = cnn.train(config, Attempt(folder=tmp_path / "first"))
    begun = [results(next(stopped).metrics)]
    stopped.close()
    again = cnn.train(config, Attempt(folder=tmp_path / "second", resume_from=tmp_path / "first"))
    assert [*begun, *(results(epoch.metrics) for epoch in again)] == straight


@pytest.mark.parametrize(("share", "crop", "expected"), [(2.0, 0, True), (2.0, 3, False), (0.9, 0, False)])
def test_auto_keeps_images_on_the_device_where_half_of_its_free_memory_holds_them(monkeypatch, share, crop, expected):
    dataset = data.load(cnn.Config().dataset)
    both = dataset.train.num_bytes + dataset.val.num_bytes
    assert both == (1078 + 360) * 64
    monkeypatch.setattr(loading, "free_bytes", lambda _: 2 * share * both)
    feed, _ = loading.feed(dataset, make(cnn.Config, {"crop": crop, "loader_workers": 0}), CPU)
    assert isinstance(feed, loading.Resident) == expected


def test_batch_in_parts_is_cut_as_rows_are():
    batch = Loaded(images=torch.arange(7), labels=torch.arange(7) * 2)
    parts = batch.tensor_split(3)
    assert [len(part) for part in parts] == [3, 2, 2]
    assert torch.cat([part.images for part in parts]).tolist() == list(range(7))
    assert torch.cat([part.labels for part in parts]).tolist() == list(range(0, 14, 2))


def test_next_batch_is_fetched_before_the_present_one_is_worked_on():
    fetched: list[int] = []

    def images():
        for number in range(3):
            fetched.append(number)
            yield torch.tensor([number])

    labels = (torch.tensor([number]) for number in range(3))
    seen = [(batch.images.item(), len(fetched)) for batch in loading.ahead(zip(images(), labels, strict=True), CPU)]
    assert seen == [(0, 2), (1, 3), (2, 3)]


def test_workers_are_kept_over_passes_and_leave_the_global_generator_alone():
    loader = Loader(Numbers(), 2, CPU)
    state = torch.get_rng_state()
    assert [found.item() for found in loader.run(range(9))] == list(range(9))
    pids = loader._board[:-1:2]
    assert [found.item() for found in loader.run([3, 1])] == [3, 1]
    assert loader._board[:-1:2] == pids
    assert len(set(pids)) == 2
    assert torch.equal(torch.get_rng_state(), state)
    del loader
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def wait_until(true: Callable[[], bool], seconds: float = 4.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(loader_module, "CHECK_SECONDS", 0.3)
    monkeypatch.setattr(loader_module, "STALL_SECONDS", 1.0)


@pytest.mark.parametrize(
    ("happens", "message"),
    [
        ("raise", r"^loader worker 1 \(process \d+\) failed at number 5: as the test asked; loader_workers=0 loads in"),
        ("die", r"^loader worker 1 \(process \d+\) ended unexpectedly at number 5; loader_workers=0 loads in"),
        ("hang", r"^loader worker 1 \(process \d+\) gave nothing for 1 s at number 5; loader_workers=0 loads in"),
    ],
)
def test_worker_that_fails_is_named_with_what_it_was_at_and_all_are_ended(quick, happens, message):
    list(Loader(Numbers(), 1, CPU).run([0]))  # so that starting is quick
    loader = Loader(Numbers(happens), 2, CPU)
    found: list[int] = []
    with pytest.raises(LoaderError, match=message) as caught:
        found.extend(item.item() for item in loader.run(range(20)))
    assert found == list(range(5 if happens != "die" else len(found))), "what a dead worker had ready may be lost"
    assert str(caught.value).isprintable()
    pids = loader._board[:-1:2]
    assert all(pids)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def loader_processes() -> list[psutil.Process]:
    """Descendants of this process, but for servers that others are forked from."""
    return [process for process in descendants(os.getpid()) if process.ppid() != os.getpid()]


@pytest.mark.parametrize(("number", "happened"), [(signal.SIGKILL, "ended unexp"), (signal.SIGSTOP, "gave nothing")])
def test_training_whose_worker_is_killed_or_stopped_fails_and_does_not_hang(quick, number, happened):
    list(Loader(Numbers(), 1, CPU).run([0]))
    wait_until(lambda: not loader_processes())
    training = cnn.train(make(cnn.Config, {**VALUES, "loading": "workers", "loader_workers": 1}))
    next(training)
    (worker,) = loader_processes()
    worker.send_signal(number)
    with pytest.raises(LoaderError, match=rf"^loader worker 0 \(process {worker.pid}\) {happened}"):
        next(training)
    wait_until(lambda: not loader_processes())


PARENT = """
import os, signal, torch
from recipes.loader import Loader
from tests.support.sources import Numbers
loader = Loader(Numbers(), 2, torch.device("cpu"))
passing = loader.run(range(1000))
next(passing)
print(*loader._board[:-1:2], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_training_that_is_killed(run_python):
    pids = [int(pid) for pid in run_python(PARENT, expected=-signal.SIGKILL).split()]
    assert len(pids) == 2
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), seconds=2.0)


SMALL_SHARED_MEMORY = """
import json, sys
from recipes import cnn
from recipes.config import make
from recipes.loader import LoaderError
values = {"epochs": 1, "width": 4, "batch_size": 256, "image_size": 64, "loading": "workers"}
messages = []
for num_workers in (2, 0):
    try:
        messages.append(len(list(cnn.train(make(cnn.Config, {**values, "loader_workers": num_workers})))))
    except LoaderError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""


def mounts_are_allowed() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not mounts_are_allowed(), reason="no mount namespaces for us")
@pytest.mark.parametrize("size", ["64k", "7m"], ids=["no room for the images", "no room for batches"])
def test_full_shared_memory_names_the_setting_to_change(size):
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", SMALL_SHARED_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    failed, num_epochs = json.loads(done.stdout)
    assert failed.startswith("loader worker")
    assert failed.endswith(
        "/dev/shm is full: make it larger (docker's --shm-size), or loader_workers=0 loads in the training process"
    )
    assert num_epochs == 1

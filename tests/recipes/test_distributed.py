"""One trial in two processes on the CPU, against one process; `gpu` has NCCL and torch's own synchronised norm."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import recipes
from recipes import cnn, distributed, mlp, model_file
from recipes.checkpoint import read_history
from recipes.config import flatten, make
from recipes.data import DataError
from recipes.device import check_devices
from recipes.loop import Attempt
from recipes.ranks import Ranks
from recipes.speed import results
from recipes.training import DivergedError
from tests.recipes.data.test_shards import write_shard
from tests.support.orch import alive, assert_gone, children

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recipes.loop import Epoch

TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
SMALL = {"limit": 300, "batch_size": 45, "device": "cpu"}  # 180 images: shares of a batch of 45 differ by one

OWN = """
import os
from torch import nn
from recipes import cnn
from recipes.cnn import Config

class Norm(nn.BatchNorm2d):
    'A subclass, which is not synchronised.'

def build_model(config, info):
    if os.environ.get("RANK") == "1" and config.optim.lr == 1:
        raise KeyError("as the test asked")
    return nn.Sequential(Norm(info.channels), *cnn.build_model(config, info))

def train(config, attempt=None):
    return cnn.fit(config, build_model, attempt, recipe=__file__)
"""


@pytest.fixture
def own(tmp_path) -> str:
    """A user's recipe that raises in one rank if lr=1."""
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def run(name: str, attempt: Attempt | None = None, **values: Any) -> Iterator[Epoch]:
    recipe = recipes.load(name)
    return recipe.module.train(make(recipe.config_type, {**SMALL, **values}), attempt)


def comparable(epochs: list[Epoch]) -> list[tuple[int, dict[str, float], bool]]:
    return [(epoch.number, results(epoch.metrics), epoch.is_best) for epoch in epochs]


def ranks() -> list[psutil.Process]:
    """The launcher and the processes of a trial that runs now."""
    return children(os.getpid(), "recipes.distributed")


def rank(number: int) -> psutil.Process:
    (found,) = [process for process in ranks() if process.environ().get("RANK") == str(number)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values"),
    [
        # Plain SGD, since Adam does not see a gradient that is too small by a factor.
        (
            "mlp",
            {"batch_norm": False, "dropout": 0.0, "optimizer": "sgd", "lr": 0.05, "accumulate": 4, "clip_value": 0.1},
        ),
        ("vit", {"crop": 0, "dim": 32, "depth": 2, "ema": 0.9, "loading": "workers", "accumulate": 2}),
        ("cnn", {"crop": 0, "width": 8, "optimizer": "muon", "balance": "sampler", "activation_checkpointing": True}),
    ],
)
def test_two_processes_reach_the_losses_of_one(name, values, tmp_path):
    one = list(run(name, epochs=3, **values))
    two = list(run(name, Attempt(folder=tmp_path), epochs=3, devices=2, **values))
    assert [epoch.metrics.keys() for epoch in two] == [epoch.metrics.keys() for epoch in one]
    for ours, theirs in zip(two, one, strict=True):
        assert results(ours.metrics) == pytest.approx(results(theirs.metrics), abs=1e-5, rel=0)
        assert (ours.number, ours.is_best) == (theirs.number, theirs.is_best)
    model, _, metadata = model_file.restore_model(recipes.load(name), tmp_path / "best.safetensors")
    assert metadata["config"]["devices"] == 2
    assert not [key for key in model.state_dict() if key.startswith("module.")]


@pytest.mark.slow
def test_two_processes_share_the_batches_of_a_stream(tmp_path):
    for name, start in (("train-0", 0), ("train-1", 20), ("val-0", 40), ("test-0", 50)):
        write_shard(tmp_path / "shards" / f"{name}.tar", range(start, start + 20))
    values = {"data": f"shards:{tmp_path / 'shards'}", "limit": 0, "batch_size": 16, "crop": 0, "width": 4}
    one, two = (list(run("cnn", epochs=2, devices=devices, **values)) for devices in (1, 2))
    for ours, theirs in zip(two, one, strict=True):
        assert results(ours.metrics) == pytest.approx(results(theirs.metrics), abs=1e-5, rel=0)


@pytest.mark.slow
def test_blocks_that_join_later_learn_in_two_processes_as_in_one(tmp_path):
    list(run("cnn", Attempt(folder=tmp_path), epochs=1, width=4))
    values = {"init": str(tmp_path / "best.safetensors"), "features": "last", "freeze": False, "unfreeze_epochs": 2}
    one, two = (list(run("transfer", epochs=3, devices=devices, **values)) for devices in (1, 2))
    for ours, theirs in zip(two, one, strict=True):
        assert results(ours.metrics) == pytest.approx(results(theirs.metrics), abs=1e-5, rel=0)


@pytest.mark.slow
def test_stopped_training_of_two_goes_on_with_the_same_bits(own, tmp_path):
    values = {"epochs": 3, "width": 4, "dropout": 0.3, "flip": 0.5, "ema": 0.9, "devices": 2}
    straight = list(run(own, Attempt(folder=tmp_path / "straight"), **values))
    stopped = run(own, Attempt(folder=tmp_path / "first"), **values)
    begun = [next(stopped)]
    processes = ranks()
    stopped.close()
    assert len(processes) == 3, "a launcher and two ranks"
    assert not any(map(alive, processes))
    assert (tmp_path / "first" / "best.safetensors").exists()
    assert [epoch["metrics"] for epoch in read_history(tmp_path / "first")] == [begun[0].metrics]
    resumed = list(run(own, Attempt(folder=tmp_path / "second", resume_from=tmp_path / "first"), **values))
    assert comparable([*begun, *resumed]) == comparable(straight)
    best = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("second", "straight")]
    assert best[0] == best[1]


@pytest.mark.slow
def test_ranks_wait_until_the_next_epoch_is_asked_for(tmp_path):
    epochs = run("mlp", Attempt(folder=tmp_path), epochs=50, devices=2)
    first = next(epochs)
    assert first.saved is not None
    assert first.saved.done()
    time.sleep(0.5)
    assert len(read_history(tmp_path)) == 1
    processes, begun = ranks(), time.monotonic()
    rank(1).send_signal(signal.SIGKILL)
    time.sleep(0.5)
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 \(process \d+\) was lost: killed, or out of memory"):
        list(epochs)
    assert time.monotonic() - begun < 5
    assert not any(map(alive, processes))
    assert (tmp_path / "best.safetensors").exists()


@pytest.mark.slow
def test_divergence_of_two_is_divergence_and_has_no_checkpoint(tmp_path):
    values = {"optimizer": "sgd", "lr": 1e25, "warmup_epochs": 0.0, "clip_value": 0.0, "devices": 2}
    with pytest.raises(DivergedError, match=r"train_loss is (nan|inf) after"):
        list(run("mlp", Attempt(folder=tmp_path), **values))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_one_rank_raises_ends_them_all_and_is_told(own):
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1: KeyError: 'as the test asked'"):
        list(run(own, devices=2, lr=1.0))
    assert time.monotonic() - begun < 30, "the other rank waited for its peer"
    assert not ranks()


@pytest.mark.slow
def test_ranks_end_with_a_parent_that_was_killed(tmp_path):
    script = """
import sys
from pathlib import Path
from recipes import mlp
from recipes.config import make
from recipes.loop import Attempt
for epoch in mlp.train(make(mlp.Config, {"epochs": 10**6, "devices": 2, "device": "cpu"})):
    print(epoch.number, flush=True)
"""
    with psutil.Popen([sys.executable, "-c", script], stdout=-1, text=True) as parent:
        assert parent.stdout.readline() == "1\n"
        processes = parent.children(recursive=True)
        parent.kill()
    assert len(processes) == 3
    assert_gone(processes, 5)


def raised_in_a_rank(error: BaseException) -> Exception:
    return distributed._raised(distributed._described(error), 1)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DivergedError("val_loss is nan"), DivergedError, "val_loss is nan"),
        (torch.OutOfMemoryError("no room\nfor it"), torch.OutOfMemoryError, "no room"),
        (DataError("no such folder"), ValueError, "no such folder"),
        (SystemExit(3), RuntimeError, "rank 1: SystemExit: 3"),
        (ZeroDivisionError(), RuntimeError, "rank 1: ZeroDivisionError: no message"),
    ],
)
def test_failure_of_a_rank_is_of_the_kind_it_would_be_alone(error, kind, message):
    found = raised_in_a_rank(error)
    assert type(found) is kind
    assert str(found) == message
    assert type(error).__name__ in found.__notes__[0]


def test_full_disk_in_a_rank_is_a_full_disk():
    found = raised_in_a_rank(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert isinstance(found, OSError)
    assert found.errno == errno.ENOSPC


def test_folder_of_another_training_is_refused_before_anything_starts(tmp_path):
    list(run("mlp", Attempt(folder=tmp_path), epochs=1, width=8))
    with pytest.raises(ValueError, match="already holds a training"):
        next(run("mlp", Attempt(folder=tmp_path), epochs=1, width=8, devices=2))


def test_shares_of_the_ranks_are_all_rows_once():
    rows = torch.randperm(45)
    assert torch.equal(torch.cat([Ranks(number=number, count=2).share(rows) for number in range(2)]), rows)


def test_draws_differ_between_ranks_and_epochs_and_come_again():
    def draws(number: int, epoch: int, count: int = 2) -> list[float]:
        augment = torch.Generator().manual_seed(5)
        torch.manual_seed(5)
        Ranks(number=number, count=count).reseed(0, epoch, augment)
        return [torch.rand(1, generator=augment).item(), torch.rand(1).item()]

    found = [draws(0, 1), draws(1, 1), draws(0, 2), draws(0, 1, count=1), draws(0, 2, count=1)]
    assert draws(0, 1) == found[0]
    assert found[3] == found[4], "a process alone goes on where it was"
    assert len({value for pair in found[:4] for value in pair}) == 7


def test_more_devices_than_images_in_a_batch_are_refused():
    with pytest.raises(ValidationError, match="batch_size=3 is less than an image for each of devices=4"):
        make(mlp.Config, {"batch_size": 3, "devices": 4})
    with pytest.raises(ValueError, match=r"devices=4 cannot share a batch of 3 image\(s\)"):
        Ranks(count=4).check(3)


def test_devices_that_are_not_there_are_refused_in_one_line(monkeypatch):
    check_devices("cpu", 64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices("auto", 2)
    check_devices("cuda:1", 1)
    with pytest.raises(ValueError, match=r"^devices=3 is more than the 2 GPUs of this machine$"):
        check_devices("cuda", 3)
    with pytest.raises(ValueError, match=r"^devices=2 needs device=cuda or device=cpu; found device=cuda:1$"):
        check_devices("cuda:1", 2)


def test_norms_of_a_process_alone_stay_as_they_are():
    config = make(cnn.Config, {"width": 4})
    assert flatten(config)["devices"] == 1
    model = nn.Sequential(nn.BatchNorm2d(3))
    Ranks().synchronise_norms(model, torch.device("cpu"))
    assert type(model[0]) is nn.BatchNorm2d


@pytest.mark.gpu
@TWO_GPUS
@pytest.mark.parametrize(("name", "values"), [("cnn", {"crop": 0, "width": 8}), ("vit", {"crop": 0, "dim": 32})])
def test_two_gpus_reach_the_losses_of_one(name, values):
    one, two = (list(run(name, **values, epochs=2, device="cuda", devices=devices)) for devices in (1, 2))
    for ours, theirs in zip(two, one, strict=True):
        assert results(ours.metrics) == pytest.approx(results(theirs.metrics), abs=1e-3, rel=0)


@pytest.mark.gpu
@TWO_GPUS
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_two_gpus_learn_in_half_precision_and_resume(tmp_path, precision):
    values = {"epochs": 4, "device": "cuda", "devices": 2, "precision": precision, "limit": 0}
    epochs = run("cnn", Attempt(folder=tmp_path / "1"), **values)
    next(epochs), next(epochs)
    epochs.close()
    *_, last = run("cnn", Attempt(folder=tmp_path / "2", resume_from=tmp_path / "1"), **values)
    assert last.number == 4
    assert last.metrics["val_accuracy"] > 0.9

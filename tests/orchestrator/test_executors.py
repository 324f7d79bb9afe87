"""One contract for all executors, and what only processes can do."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.depot import Depot
from orchestrator.executors import (
    EpochEnded,
    Exported,
    ExportSpec,
    Slot,
    TrialEnded,
    TrialFailed,
    TrialPaused,
    TrialSpec,
    decode,
    encode,
)
from orchestrator.executors.inline import InlineExecutor
from orchestrator.executors.local import LocalExecutor, environment, num_cores, plan_slots
from orchestrator.executors.start import device_of
from orchestrator.forkserver import worker_server
from orchestrator.tables import Reason
from tests.support import ray_cluster
from tests.support.orch import wait_until

SHORT = {"epochs": 1, "data": "digits", "split_seed": 0}
COUNTING = str(Path(__file__).parents[1] / "support" / "counting.py")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCH_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def server():
    with worker_server() as made:
        yield made


@pytest.fixture(scope="module")
def cluster(home):
    with ray_cluster.running(2) as made, ray_cluster.with_token():
        yield made


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("spawned", "ray", "depot")]


@pytest.fixture(scope="module", params=["inline", "forked", *SLOW])
def executor(request, home):
    if request.param == "inline":
        made = InlineExecutor(threads=1)
    elif request.param == "spawned":
        made = local(home)
    elif request.param == "ray":
        made = on_ray(request.getfixturevalue("cluster"), home)
    elif request.param == "depot":
        made = on_ray(request.getfixturevalue("cluster"), home, depot=Depot(url=f"file://{home}/depot", root="/"))
    else:
        made = local(home, request.getfixturevalue("server"))
    yield made
    made.close()


def on_ray(cluster, home, workers=1, depot=None):
    from orchestrator.executors.ray_cluster import RayExecutor

    made = RayExecutor(cluster.address, workers, home=home, logs=home / "logs", num_useful=workers, depot=depot)
    collect_slots(made, workers)
    return made


def collect_slots(executor, count):
    wait_until(lambda: executor.events(0.1) == [] and len(executor.free_slots()) == count, what=f"{count} workers")


def local(tmp_path, server=None, workers=1):
    return LocalExecutor(plan_slots(workers, [], num_useful=workers), tmp_path / "logs", server, exports=True)


def spec(tmp_path, trial=0, attempt=1, decision_epochs=(), earlier=(), recorded=0, recipe=COUNTING, **config):
    return TrialSpec(
        study="s",
        trial=trial,
        attempt=attempt,
        recipe=recipe,
        config=config,
        folder=str(tmp_path / str(trial) / str(attempt)),
        earlier_folders=tuple(str(tmp_path / str(trial) / str(number)) for number in earlier),
        num_recorded_epochs=recorded,
        decision_epochs=tuple(decision_epochs),
        threads=1,
    )


def where_written(executor, tmp_path):
    """Where workers leave what nobody has fetched: at the depot, if there is one."""
    depot = getattr(executor, "_depot", None)
    return Path(depot.url.removeprefix("file://") + str(tmp_path)) if depot else tmp_path


def export_spec(tmp_path):
    folder = str(tmp_path / "0" / "1")
    return ExportSpec(study="s", trial=0, attempt=1, recipe=COUNTING, config=SHORT, folder=folder)


def collect(executor, until=lambda event: not isinstance(event, EpochEnded), seconds=240):
    """All events up to the one for which `until` holds."""
    events = []
    deadline = time.monotonic() + seconds
    while not any(map(until, events)):
        assert time.monotonic() < deadline, f"nothing more than {events}"
        events += executor.events(0.2)
    return events


def run(executor, job):
    (slot, *_) = executor.free_slots()
    executor.submit(job, slot)
    return collect(executor)


def test_trial_reports_each_epoch_then_a_manifest_that_holds(executor, tmp_path):
    *epochs, ended = run(executor, spec(tmp_path, epochs=3))
    assert [event.number for event in epochs] == [1, 2, 3]
    assert all({"train_loss", "val_loss", "val_accuracy"} <= set(event.metrics) for event in epochs)
    assert isinstance(ended, TrialEnded)
    assert not ended.stopped
    assert set(ended.manifest) == {"best.safetensors"}
    for name, digest in ended.manifest.items():
        assert hashlib.sha256((tmp_path / "0" / "1" / name).read_bytes()).hexdigest() == digest
    assert (where_written(executor, tmp_path) / "0" / "1" / "manifest.json").exists()


def test_trial_stops_when_told_at_a_decision_epoch(executor, tmp_path):
    (slot,) = executor.free_slots()
    executor.submit(spec(tmp_path, epochs=5, decision_epochs=[1, 3]), slot)
    assert [event.number for event in collect(executor, lambda event: event.number == 1)] == [1]
    assert executor.events(0.5) == [], "the job waits for the decision"
    executor.decide(0, "go")
    assert [event.number for event in collect(executor, lambda event: event.number == 3)] == [2, 3]
    executor.decide(0, "stop")
    (ended,) = collect(executor)
    assert ended.stopped
    assert "best.safetensors" in ended.manifest


@pytest.mark.parametrize(
    ("fault", "reason", "message"),
    [
        ("raise", Reason.ERROR, "RuntimeError: as the test asked"),
        ("exit", Reason.ERROR, "SystemExit: 3"),
        ("oom", Reason.OOM, "OutOfMemoryError: as the test asked"),
        ("diverge", Reason.DIVERGED, "DivergedError: as the test asked"),
    ],
)
def test_failed_trial_names_its_reason_and_frees_its_slot(executor, tmp_path, fault, reason, message):
    epoch, failed = run(executor, spec(tmp_path, fault=fault))
    assert epoch.number == 1
    assert (failed.reason, failed.message, failed.disk_full) == (reason, message, False)
    assert "_fail(config.model.fault)" in failed.traceback
    *_, ended = run(executor, spec(tmp_path, trial=1))
    assert isinstance(ended, TrialEnded)


def test_epoch_without_a_needed_metric_fails_the_trial_and_says_so(executor, tmp_path):
    *_, failed = run(executor, spec(tmp_path, fault="metric"))
    assert failed.reason is Reason.ERROR
    assert "epoch 2 has no val_loss" in failed.message


def test_epoch_with_a_metric_that_is_not_finite_has_diverged(executor, tmp_path):
    *_, failed = run(executor, spec(tmp_path, fault="nan"))
    assert (failed.reason, failed.message) == (Reason.DIVERGED, "DivergedError: val_loss is nan in epoch 2")


def test_full_disk_is_told_apart_from_a_faulty_recipe(executor, tmp_path):
    *_, failed = run(executor, spec(tmp_path, fault="disk"))
    assert failed.disk_full


def test_resumed_trial_trains_only_what_is_missing(executor, tmp_path):
    journal = tmp_path / "journal"
    run(executor, spec(tmp_path, epochs=4, fault="raise", fault_epoch=3, journal=str(journal)))
    events = run(executor, spec(tmp_path, epochs=4, attempt=2, earlier=[1], recorded=1, journal=str(journal)))
    assert [event.number for event in events[:-1]] == [2, 3, 4], "epoch 2 was trained but not recorded"
    assert journal.read_text().split() == ["0", "1", "0", "2", "0", "3", "0", "3", "0", "4"]
    assert "best.safetensors" in events[-1].manifest


def test_resumed_trial_is_decided_again_at_its_last_recorded_epoch(executor, tmp_path):
    run(executor, spec(tmp_path, epochs=4, fault="raise", fault_epoch=3))
    (slot,) = executor.free_slots()
    executor.submit(spec(tmp_path, epochs=4, attempt=2, earlier=[1], recorded=2, decision_epochs=[2]), slot)
    assert [event.number for event in collect(executor, lambda _: True)] == [2]
    executor.decide(0, "stop")
    (ended,) = collect(executor)
    assert ended.stopped
    assert "best.safetensors" in ended.manifest, "the result of the earlier attempt is carried over"


def test_paused_trial_frees_its_slot_and_goes_on_to_the_bits_of_one_that_never_paused(executor, tmp_path):
    (slot,) = executor.free_slots()
    executor.submit(spec(tmp_path, epochs=4, decision_epochs=[2]), slot)
    before = collect(executor, lambda event: event.number == 2)
    executor.decide(0, "pause")
    (paused,) = collect(executor)
    assert isinstance(paused, TrialPaused)
    assert set(paused.manifest) == {"best.safetensors"}
    folder = where_written(executor, tmp_path) / "0" / "1"
    assert sorted(path.name for path in folder.glob("epoch-*")) == ["epoch-0002.json", "epoch-0002.pt"]

    *other, ended = run(executor, spec(tmp_path, trial=1, epochs=4))
    *after, promoted = run(executor, spec(tmp_path, epochs=4, attempt=2, earlier=[1], recorded=2))
    assert [event.number for event in after] == [3, 4]
    learned = [{key: event.metrics[key] for key in ("train_loss", "val_loss", "val_accuracy")} for event in other]
    assert [{key: event.metrics[key] for key in learned[0]} for event in [*before, *after]] == learned
    assert weights(tmp_path / "0" / "2") == weights(tmp_path / "1" / "1")
    assert not promoted.stopped
    assert not ended.stopped


def weights(folder):
    """The bytes of the best weights, which stand behind a header that tells of more than them."""
    data = (folder / "best.safetensors").read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_trial_that_is_paused_again_where_it_stood_hands_on_all_that_there_is(executor, tmp_path):
    run(executor, spec(tmp_path, epochs=4, fault="raise", fault_epoch=3))
    written = where_written(executor, tmp_path) / "0" / "1"
    (written / "notes").mkdir()
    (written / "notes" / "a.txt").write_text("of the first attempt")
    (slot,) = executor.free_slots()
    executor.submit(spec(tmp_path, epochs=4, attempt=2, earlier=[1], recorded=2, decision_epochs=[2]), slot)
    assert [event.number for event in collect(executor, lambda _: True)] == [2]
    executor.decide(0, "pause")
    (paused,) = collect(executor)
    assert set(paused.manifest) == {"best.safetensors", "notes/a.txt"}
    shutil.rmtree(written)
    *epochs, _ = run(executor, spec(tmp_path, epochs=4, attempt=3, earlier=[2, 1], recorded=2))
    assert [event.number for event in epochs] == [3, 4]


def test_unknown_recipe_fails_the_trial_only(executor, tmp_path):
    (failed,) = run(executor, spec(tmp_path, recipe="nothing.py"))
    assert failed.reason is Reason.ERROR
    assert "nothing.py" in failed.message


@pytest.mark.slow
def test_export_writes_onnx_that_agrees_with_pytorch(executor, tmp_path):
    run(executor, spec(tmp_path, **SHORT))
    (exported,) = run(executor, export_spec(tmp_path))
    assert isinstance(exported, Exported)
    assert exported.error == ""
    file = tmp_path / "0" / "1" / exported.file
    assert hashlib.sha256(file.read_bytes()).hexdigest() == exported.sha256
    assert exported.max_difference < 1e-4


def test_failed_export_says_why(executor, tmp_path):
    job = ExportSpec(study="s", trial=0, attempt=1, recipe=COUNTING, config={}, folder=str(tmp_path / "none"))
    (exported,) = run(executor, job)
    assert "best.safetensors" in exported.error


# -- processes only


@pytest.fixture(params=[pytest.param("spawned", marks=pytest.mark.slow), "forked"])
def maybe_server(request):
    return request.getfixturevalue("server") if request.param == "forked" else None


def test_killed_worker_is_lost_and_replaced(maybe_server, tmp_path):
    executor = local(tmp_path, maybe_server)
    try:
        executor.submit(spec(tmp_path, epochs=50, pause_seconds=0.05), executor.free_slots()[0])
        collect(executor, lambda event: event.number == 2)
        (worker,) = workers_of(executor)
        os.kill(worker.pid, signal.SIGKILL)
        *_, failed = collect(executor)
        assert isinstance(failed, TrialFailed)
        assert failed.reason is Reason.LOST
        assert "killed (signal 9)" in failed.message
        *_, ended = run(executor, spec(tmp_path, trial=1))
        assert isinstance(ended, TrialEnded)
    finally:
        executor.close()


@pytest.mark.slow
@pytest.mark.parametrize("names", ["recipes.export:warm_up", "no_such_module"])
def test_export_is_made_whether_or_not_there_is_a_warm_worker_for_it(server, tmp_path, monkeypatch, names):
    monkeypatch.setattr("orchestrator.executors.local.FOR_EXPORTS", names)
    executor = local(tmp_path, server)
    try:
        run(executor, spec(tmp_path, **SHORT))
        (trained_in,) = workers_of(executor)
        (exported,) = run(executor, export_spec(tmp_path))
        (exported_in,) = workers_of(executor)
        assert not exported.error
        assert (exported_in == trained_in) == (names == "no_such_module")
    finally:
        executor.close()


def test_closed_executor_leaves_no_process(maybe_server, tmp_path):
    executor = local(tmp_path, maybe_server, workers=2)
    executor.submit(spec(tmp_path, epochs=500, pause_seconds=0.05), executor.free_slots()[0])
    collect(executor, lambda event: event.number == 1)
    found = workers_of(executor)
    executor.close()
    assert len(found) == 2
    assert not [worker for worker in found if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]


def test_job_that_must_be_alone_finds_nothing_of_earlier_jobs_on_its_device(server, tmp_path):
    slots = [Slot(name=f"worker-{n}", threads=1) for n in range(3)]
    slots.append(Slot(name="worker-3", threads=1, devices=("0",)))
    executor = LocalExecutor(slots, tmp_path / "logs", server)
    try:
        executor.submit(spec(tmp_path, epochs=50, pause_seconds=0.05), slots[1])
        before = workers_of(executor)
        executor.submit(dataclasses.replace(spec(tmp_path, trial=1), alone=True), slots[0])
        after = workers_of(executor)
        assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, False, True]
        *_, ended = collect(executor)
        assert isinstance(ended, TrialEnded)
        assert ended.trial == 1
    finally:
        executor.close()


def workers_of(executor):
    return [psutil.Process(executor._children[slot.name].pid) for slot in executor.slots]


def test_cores_are_shared_out_over_workers():
    assert [slot.threads for slot in plan_slots(1, [], num_useful=9)] == [num_cores()]
    assert [slot.threads for slot in plan_slots(2 * num_cores(), [], num_useful=99)] == [1] * 2 * num_cores()
    assert len(plan_slots(0, [], num_useful=99)) == num_cores()
    assert [slot.threads for slot in plan_slots(0, [], num_useful=1)] == [num_cores()]


def test_gpus_are_dealt_out_one_a_worker():
    assert plan_slots(0, ["0", "1"], num_useful=9) == [
        Slot(name=f"worker-{gpu}", threads=max(1, num_cores() // 2), devices=(str(gpu),)) for gpu in range(2)
    ]
    assert [slot.devices for slot in plan_slots(3, ["4", "7"], num_useful=9)] == [("4",), ("7",), ("4",)]


def test_slot_gets_as_many_devices_as_a_trial_takes():
    def devices(workers, gpus):
        return [slot.devices for slot in plan_slots(workers, list(gpus), num_useful=9, num_devices=2)]

    assert devices(0, "0123") == [("0", "1"), ("2", "3")]
    assert devices(0, "012") == [("0", "1")]
    assert devices(3, "012") == [("0", "1"), ("2", "0"), ("1", "2")]
    assert devices(0, "") == [()] * max(1, num_cores() // 2)
    assert plan_slots(0, [], num_useful=1, num_devices=2)[0].threads == num_cores(), "which its processes share"


def test_trial_on_two_gpus_is_recorded_with_both():
    slot = Slot(name="worker-0", threads=2, devices=("4", "7"))
    assert device_of({"device": "auto"}, slot) == "cuda:4,7"
    assert environment(slot)["CUDA_VISIBLE_DEVICES"] == "4,7"


@pytest.mark.parametrize(
    "message",
    [
        TrialFailed(trial=1, attempt=2, reason=Reason.OOM, message="m"),
        Exported(trial=1, attempt=1, error="no"),
        TrialPaused(trial=1, attempt=2, manifest={"best.safetensors": "ab"}),
        EpochEnded(trial=0, attempt=1, number=3, metrics={"val_loss": 0.5}, seconds=0.1),
    ],
)
def test_messages_survive_the_wire(message):
    import json

    assert decode(json.loads(json.dumps(encode(message)))) == message

"""How busy machines are while trials train: measured beside the training, on record, in MLflow once."""

from __future__ import annotations

import threading
import time

import psutil
import pytest
import torch
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from sqlalchemy import select

from orchestrator.carrier import Carrier
from orchestrator.errors import UsageError
from orchestrator.executors import SystemSampled, decode, encode
from orchestrator.mirror import sync
from orchestrator.study import load
from orchestrator.system_metrics import sampling
from orchestrator.tables import Cursor, Sample
from tests.support.orch import Orch, wait_until
from tests.support.sweeps import in_mlflow, runs_of, settings_of

CPU = "system/cpu_utilization_percentage"


def sampled(num_samples=1):
    """What is told while a block runs that ends after so many samples."""
    told = []
    with sampling(0.01, told.append):
        while len(told) < num_samples:
            sum(range(1000))
    return told


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "system metrics"]


def samples_of(record):
    with record.read() as session:
        return session.scalars(select(Sample).order_by(Sample.recorded_at)).all()


def add(sweep, trial, *times):
    sweep.record.add_samples(
        sweep.lease, [Sample(trial_id=trial.id, recorded_at=at, metrics={CPU: float(at)}) for at in times]
    )


def test_names_are_those_of_mlflows_own_monitor():
    monitor = CPUMonitor()
    monitor.collect_metrics()
    assert {f"system/{name}" for name in monitor.metrics} <= sampled()[0].keys()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_names_of_gpus_are_those_of_mlflows_own_monitor():
    monitor = GPUMonitor()
    monitor.collect_metrics()
    measured = {f"system/{name}" for name in monitor.metrics if "power_usage_percentage" not in name}
    assert measured <= sampled()[0].keys()
    assert torch.cuda.device_count() <= len(measured)


def test_samples_tell_of_this_machine_and_this_process():
    *_, last = sampled(5)
    assert last["system/process_cpu_utilization_percentage"] > 0
    memory = psutil.virtual_memory().total / 1e6
    assert 0 < last["system/process_memory_usage_megabytes"] < memory
    assert 0 < last["system/system_memory_usage_megabytes"] < memory
    assert 0 <= last[CPU] <= 100


def test_nothing_is_told_behind_the_block_or_at_an_interval_of_none():
    told = sampled(3)
    assert not threads()
    assert len(told) >= 3
    with sampling(0, told.clear):
        assert not threads()


def test_training_that_fails_ends_the_thread():
    def train():
        with sampling(60, print):
            assert threads()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert not threads()


def test_sample_travels_and_brings_no_files_to_a_depot():
    sent = []
    event = SystemSampled(trial=1, attempt=2, metrics={CPU: 3.0}, at=4.0)
    port = type("Port", (), {"send": lambda _, event: sent.append(event)})()
    Carrier(port, depot=None, job=None, folder=None).send(event)
    assert [decode(encode(each)) for each in sent] == [event]


@pytest.mark.parametrize("text", ["-1", "often", "0s"])
def test_bad_interval_is_one_line(text):
    with pytest.raises(UsageError, match=f"system_metrics={text}"):
        load(["recipe=mlp", f"system_metrics={text}"])


def test_interval_is_ten_seconds_unless_said_otherwise():
    assert load(["recipe=mlp"]).budget.system_metrics_seconds == 10
    assert load(["recipe=mlp", "system_metrics=500"]).budget.system_metrics_seconds == 500
    assert load(["recipe=mlp", "system_metrics=0"]).budget.system_metrics_seconds == 0


def test_sample_is_in_mlflow_once_whatever_is_sent_again(sweep):
    trial = sweep.start()
    start = sweep.record.trial(sweep.study.id, 0).started_at
    add(sweep, trial, start + 10, start + 20)
    sweep.train(trial, 1)
    sync(sweep.settings)
    add(sweep, trial, start + 20, start + 5)  # again, as after an answer that got lost; and by a clock that went back
    sweep.train(trial, 2, 3)
    sweep.end(trial)
    with sweep.record.write(sweep.lease) as session:
        session.merge(Cursor(mirror="mlflow", study_id=sweep.study.id, seq=0))  # all once more
    sync(sweep.settings)
    assert len(samples_of(sweep.record)) == 3
    assert sorted(step for step, _ in in_mlflow(sweep.settings, CPU)[0]) == [5, 10, 20]
    assert runs_of(sweep.settings)[1][0].info.status == "FINISHED"


def test_deleted_study_leaves_no_samples(sweep):
    add(sweep, sweep.start(), time.time())
    sweep.record.delete_study(sweep.lease, sweep.study.id)
    assert samples_of(sweep.record) == []


@pytest.mark.slow
def test_worker_that_trains_is_sampled_and_one_without_an_interval_is_not(tmp_path):
    orch = Orch(tmp_path)
    arguments = orch.counting(trials=2, epochs=2, workers=2, hold_epoch=2, system_metrics="0.1s")
    with orch.running(*arguments) as sweep:
        wait_until(lambda: orch.home.joinpath("orch.db").exists(), what="the record")

        def sampled_both():
            with orch.record() as record:
                return len({sample.trial_id for sample in samples_of(record)}) == 2

        wait_until(sampled_both, what="samples of both trials")
        orch.let_go()
        out, err = sweep.communicate(timeout=120)
        assert sweep.returncode == 0, f"{out}\n{err}"
    with orch.record() as record:
        by_trial = [[s for s in samples_of(record) if s.trial_id == trial] for trial in (1, 2)]
        num_samples = len(samples_of(record))
    settings = settings_of(orch.home)
    assert {n: len(of) for n, of in in_mlflow(settings, CPU).items()} == {n: len(of) for n, of in enumerate(by_trial)}
    orch.here("resume", "s", "trials=3", "system_metrics=0")
    with orch.record() as record:
        assert len(samples_of(record)) == num_samples

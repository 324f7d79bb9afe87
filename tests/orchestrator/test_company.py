"""Trials beside others on one device: who was a victim, and who then has it to himself."""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator import coordinator
from orchestrator.company import Company
from orchestrator.executors import EpochEnded, Slot, TrialEnded, TrialFailed
from orchestrator.live import PlainMonitor
from orchestrator.store import Record
from orchestrator.tables import Reason, State
from orchestrator.worker import _reason
from tests.support.orch import Orch, assert_gone, descendants, kill, wait_until
from tests.support.sweeps import settings_of

FIRST, SECOND = (Slot(name=f"worker-{n}", threads=1, devices=("0",)) for n in range(2))
OTHER = Slot(name="worker-2", threads=1, devices=("1",))
BOTH = Slot(name="worker-3", threads=1, devices=("0", "1"))
ON_CPU = [Slot(name=f"worker-{n}", threads=1) for n in range(2)]
ELSEWHERE = Slot(name="worker-4", threads=1, devices=("0",), host="b")


def test_trial_was_beside_others_if_it_was_at_any_time():
    company = Company([])
    company.join(0, FIRST)
    company.join(1, OTHER)
    company.join(2, SECOND)
    company.join(3, ELSEWHERE)
    assert company.leave(2)
    assert company.leave(0), "also when the other has ended"
    assert not company.leave(1)
    assert not company.leave(3), "the first GPU of another machine is another one"
    company.join(0, FIRST)
    assert not company.leave(0), "that was another attempt"


def test_workers_without_a_gpu_share_the_memory_of_their_machine():
    company = Company([])
    company.join(0, ON_CPU[0])
    company.join(1, ON_CPU[1])
    company.join(2, FIRST)
    assert company.leave(0)
    assert not company.leave(2)


def test_trial_on_two_gpus_is_beside_those_on_either():
    company = Company([])
    for trial, slot in enumerate((BOTH, OTHER, ELSEWHERE)):
        company.join(trial, slot)
    assert [company.leave(trial) for trial in range(3)] == [True, True, False]


def test_device_that_a_trial_has_to_itself_is_open_to_nobody():
    company, slots = Company([]), [SECOND, OTHER, BOTH, ELSEWHERE]
    company.join(0, FIRST, alone=True)
    assert company.open(slots) == [OTHER, ELSEWHERE]
    assert company.open(slots, but=OTHER) == [ELSEWHERE]
    assert not company.leave(0)
    assert company.open(slots) == slots


def test_trial_that_must_be_alone_gets_the_device_with_the_fewest_others():
    company = Company([])
    assert company.emptiest([FIRST, OTHER]) == (FIRST, True)
    company.join(0, FIRST)
    assert company.emptiest([SECOND, OTHER]) == (OTHER, True)
    company.join(1, OTHER)
    assert company.emptiest([BOTH, SECOND]) == (SECOND, False)


def test_full_gpu_that_takes_no_further_process_is_out_of_memory_too():
    assert _reason(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …")) is Reason.OOM
    assert _reason(RuntimeError("CUDA error: device-side assert triggered")) is Reason.ERROR


# -- a sweep over GPUs of which only the memory is there


@dataclass
class Job:
    spec: object
    slot: Slot
    epoch: int = 0


class SmallGpus:
    """Slots on two GPUs, two each, that train nothing; whoever makes a GPU hold more than `size` runs out of memory.

    A trial needs as much as its `hidden` says, from its first epoch to its last, and each epoch takes one look. Trials
    are not equally long, so that a GPU is hardly ever empty by itself.
    """

    def __init__(self, size):
        self.size = size
        self.slots = tuple(Slot(name=f"worker-{n}", threads=1, devices=(str(n % 2),)) for n in range(4))
        self.jobs = {}
        self.begun = []
        self.alone = []  # trials that had their GPU to themselves, as they began
        self.most = Counter()  # trials at once on a GPU

    def free_slots(self):
        return [slot for slot in self.slots if slot.name not in {job.slot.name for job in self.jobs.values()}]

    def submit(self, spec, slot):
        beside = self.on(slot)
        assert not any(job.spec.alone for job in beside), "one has this GPU to itself"
        assert not (spec.alone and beside)
        self.begun.append(spec.trial)
        self.alone += [spec.trial] if spec.alone else []
        self.jobs[spec.trial] = Job(spec, slot)
        self.most[slot.devices] = max(self.most[slot.devices], len(beside) + 1)

    def on(self, slot):
        return [job for job in self.jobs.values() if job.slot.devices == slot.devices]

    def events(self, timeout_seconds):  # noqa: ARG002
        return [self.step(trial) for trial in sorted(self.jobs)]

    def step(self, trial):
        job = self.jobs[trial]
        about = {"trial": trial, "attempt": job.spec.attempt}
        if sum(other.spec.config["hidden"] for other in self.on(job.slot)) > self.size:
            del self.jobs[trial]
            return TrialFailed(reason=Reason.OOM, message="OutOfMemoryError: no room", **about)
        if job.epoch == 2 + trial % 3:
            del self.jobs[trial]
            Path(job.spec.folder).mkdir(parents=True)
            return TrialEnded(stopped=False, manifest={}, **about)
        job.epoch += 1
        metrics = {"val_loss": 1.0, "val_accuracy": 0.5}
        return EpochEnded(number=job.epoch, metrics=metrics, seconds=0.0, **about)

    def decide(self, *_):
        raise AssertionError("no pruner here")

    def close(self):
        pass


@pytest.fixture
def simulated(monkeypatch):
    """Where the benchmarks' own mirror that does nothing is."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("simulated")


def test_victims_of_a_full_gpu_run_again_alone_and_what_fits_alone_is_trained(simulated, tmp_path, monkeypatch):
    needs = [3, 9, 4, 2, 5, 1, 6, 12, 8, 11, 7, 10]
    (tmp_path / "first.yaml").write_text(f"[{', '.join(f'{{hidden: {need}}}' for need in needs)}]")
    monkeypatch.chdir(tmp_path)
    keys = {
        "pruner": "none",
        "hidden": "range(1,20)",
        "enqueue": "first.yaml",
        "trials": len(needs),
        "epochs": 3,
        "sampler": "random",
    }
    study = simulated.load_study(recipe=Orch(tmp_path).counting()[1].removeprefix("recipe="), **keys, retries=0)
    settings, gpus = settings_of(tmp_path / "mlruns"), SmallGpus(10)
    coordinator.run(study, settings, PlainMonitor(), executor=gpus, make_mirror=simulated.NoMirror)

    record = Record.open(settings.record_url)
    row = record.study(study.name)
    trials = record.trials(row.id)
    reasons = [[attempt.reason for attempt in record.attempts(trial.id)] for trial in trials]
    victims = record.ran_out(row.id)
    record.close()
    assert [trial.config["hidden"] for trial in trials] == needs
    for trial, ended in zip(trials, reasons, strict=True):
        too_large = trial.config["hidden"] > gpus.size
        assert trial.state is (State.FAILED if too_large else State.COMPLETE)
        assert trial.reason is (Reason.OOM if too_large else None)
        assert ended[-1] is trial.reason
        assert ended[:-1] in ([], [Reason.OOM]), "at most once beside others, and no retry is left to be spent"
    assert victims == {number for number, ended in enumerate(reasons) if Reason.OOM in ended}
    assert gpus.alone
    assert sorted(gpus.alone) == [number for number, ended in enumerate(reasons) if len(ended) == 2]
    assert gpus.begun.index(1, gpus.begun.index(1) + 1) < gpus.begun.index(6), "a GPU is kept free for a victim"
    assert gpus.most == {("0",): 2, ("1",): 2}, "the others still share"


# -- a real one, on the memory of this machine


@pytest.fixture
def orch(tmp_path):
    return Orch(tmp_path)


def attempts(orch):
    """All attempts of each trial."""
    with orch.record() as record:
        trials = record.trials(record.study("s").id)
        return [list(record.attempts(trial.id)) for trial in trials]


def reasons(orch):
    return [[attempt.reason for attempt in of_trial] for of_trial in attempts(orch)]


def num_ran_out(orch):
    return sum(ended.count(Reason.OOM) for ended in reasons(orch))


def assert_alone(orch):
    """The last attempt of each trial that once ran out of memory ran beside no other attempt."""
    found = attempts(orch)
    for number, (*former, last) in enumerate(found):
        if any(attempt.reason is Reason.OOM for attempt in former):
            others = [each for other, of_trial in enumerate(found) if other != number for each in of_trial]
            assert all(each.ended_at <= last.started_at or each.started_at >= last.ended_at for each in others)


@pytest.mark.slow
def test_trial_that_runs_out_of_memory_beside_another_runs_again_alone_and_ends(orch):
    keys = {"trials": 4, "epochs": 3, "workers": 2, "fault": "crowd", "pause_seconds": 0.3, "retries": 0}
    done = orch.here(*orch.counting(**keys))
    assert "OutOfMemoryError: beside 1; it waits to run again alone on its device" in done.stdout
    assert orch.recorded() == {trial: [1, 2, 3] for trial in range(4)}
    found = reasons(orch)
    assert all(ended in ([None], [Reason.OOM, None]) for ended in found)
    assert [Reason.OOM, None] in found
    assert_alone(orch)
    assert orch.json("status", "s")["states"]["complete"] == 4


@pytest.mark.slow
def test_trial_that_runs_out_of_memory_alone_too_has_failed(orch):
    orch.here(*orch.counting(trials=2, epochs=3, workers=2, fault="oom", pause_seconds=0.3))
    assert reasons(orch) == [[Reason.OOM, Reason.OOM]] * 2
    assert_alone(orch)
    assert [orch.json("show", f"s/{trial}")["reason"] for trial in range(2)] == ["oom", "oom"]


@pytest.mark.slow
def test_victim_still_runs_alone_when_the_coordinator_was_killed_meanwhile(orch):
    keys = {"trials": 2, "epochs": 6, "workers": 2, "fault": "crowd", "pause_seconds": 0.4}
    with orch.running(*orch.counting(**keys)) as sweep:
        wait_until(lambda: (orch.home / "orch.db").exists() and orch.begun()[(0, 1)], what="the first epoch")
        wait_until(lambda: num_ran_out(orch), what="a victim")
        below = descendants(sweep.pid)
        kill(sweep)
        assert_gone(below, 5)  # or the next run's trials would find them beside
    before = num_ran_out(orch)
    orch.here("resume", "s")
    assert num_ran_out(orch) == before
    assert orch.recorded() == {trial: [1, 2, 3, 4, 5, 6] for trial in range(2)}
    assert_alone(orch)

"""kill -9 of anything at any moment, and signals: exact counts of trials and epochs."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time

import psutil
import pytest

from tests.support.orch import Orch, assert_gone, children, descendants, kill, wait_until

WORKER, SERVER, MIRROR = "worker-", "orchestrator.forkserver", "orchestrator.mirror"
ENDS = {"coordinator": signal.SIGKILL, "interrupt": signal.SIGINT}  # what ends the whole sweep


@pytest.fixture
def orch(tmp_path):
    return Orch(tmp_path)


def strike(orch, arguments, kills, *, times, seconds, seed):
    """Strike parts of a sweep at random, counted in `kills`, and start it again; yields each time it has ended."""
    chance = random.Random(seed)
    while sum(kills.values()) < times:
        with orch.running(*arguments) as sweep:
            wait_until(lambda: children(sweep.pid, WORKER), what="workers")
            while sum(kills.values()) < times:
                time.sleep(chance.uniform(*seconds))
                assert sweep.poll() is None, f"the sweep ended after {kills}: {sweep.communicate()}"
                victim = chance.choice(list(kills))
                kills[victim] += 1
                if victim in ENDS:
                    below = descendants(sweep.pid)
                    os.kill(sweep.pid, ENDS[victim])
                    sweep.wait(20)
                    assert_gone(below, 5)
                    break
                for process in children(sweep.pid, victim)[:1]:
                    kill(process)
        yield


@pytest.mark.slow
def test_thirty_random_kills_leave_exactly_fifty_trials(orch):
    num_trials, num_epochs = 50, 4
    chosen = {"hidden": "range(4,404)", "sampler": "random", "pause_seconds": 0.35, "retries": 30}
    arguments = orch.counting(trials=num_trials, epochs=num_epochs, **chosen)
    kills = {"coordinator": 0, WORKER: 0, SERVER: 0, MIRROR: 0}
    for _ in strike(orch, arguments, kills, times=30, seconds=(0.2, 1.8), seed=0):
        pass
    orch(*arguments)
    assert orch.recorded() == {trial: [1, 2, 3, 4] for trial in range(num_trials)}
    status = orch.json("status", "s")
    assert status["states"]["complete"] == num_trials
    assert status["epochs_trained"] == num_trials * num_epochs
    begun = orch.begun()
    assert set(begun) == {(trial, epoch) for trial in range(num_trials) for epoch in range(1, num_epochs + 1)}
    # A kill interrupts the epoch in training of each worker it ends, and at most one whose checkpoint is in flight.
    assert begun.total() - num_trials * num_epochs <= 2 * kills[WORKER] + 4 * kills["coordinator"]
    assert "is complete" in orch.here(*arguments).stdout
    assert mirrored_runs(orch) == {trial: [1, 2, 3, 4] for trial in range(num_trials)}


def mirrored_runs(orch):
    """Trial -> steps of val_loss, of every child run that MLflow holds."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{orch.home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("s")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    steps = [
        (int(run.data.tags["orch.trial"]), [m.step for m in client.get_metric_history(run.info.run_id, "val_loss")])
        for run in runs
        if "mlflow.parentRunId" in run.data.tags
    ]
    assert len(dict(steps)) == len(steps), "a trial has two runs"
    return dict(steps)


@pytest.mark.slow
def test_kills_amid_paused_trials_lose_and_repeat_nothing(orch, tmp_path):
    """With one worker each promotion follows from what is recorded: a killed study ends as one that was not."""
    kills = {"coordinator": 0, WORKER: 0, "interrupt": 0}
    # TPE draws at random ten times first; the draws after that show that a resumed search has been told the same.
    chosen = {"trials": 14, "epochs": 9, "pruner": "asha-pause", "sampler": "tpe", "workers": 1, "retries": 30}
    chosen |= {"lr": "tag(log,interval(1e-4,1e-1))", "pause_seconds": 0.3}
    (tmp_path / "quiet").mkdir()
    quiet = Orch(tmp_path / "quiet")
    quiet.here(*quiet.counting(**{**chosen, "pause_seconds": 0}))
    arguments = orch.counting(**chosen)
    num_paused, kept = set(), []
    for _ in strike(orch, arguments, kills, times=8, seconds=(0.3, 1.8), seed=3):
        num_paused.add(orch.json("status", "s")["states"]["paused"])
        begun = orch.begun()
        on_record = [(trial, epoch) for trial, epochs in orch.recorded().items() for epoch in epochs]
        kept += [(place, begun[place]) for place in on_record]
    orch(*arguments)
    assert max(num_paused) >= 2, "some were paused when it was killed"
    assert orch.recorded() == quiet.recorded()
    assert ends_of(orch) == ends_of(quiet)
    begun = orch.begun()
    assert all(begun[place] == times for place, times in kept), "what was on record was trained again"
    num_epochs = sum(map(len, quiet.recorded().values()))
    assert orch.json("status", "s")["epochs_trained"] == num_epochs
    assert begun.total() - num_epochs <= 2 * sum(kills.values())
    assert not [path for path in (orch.home / "trials").rglob("epoch-*") if path.is_file()]
    assert mirrored_runs(orch) == quiet.recorded()


def ends_of(orch):
    """What each trial of study `s` was, how it ended, and what its last attempt left."""
    with orch.record() as record:
        trials = record.trials(record.study("s").id)
        left = [sorted(record.attempts(trial.id)[-1].manifest) for trial in trials]
        ends = [(trial.params, trial.state, trial.value, trial.best_epoch) for trial in trials]
        return list(zip(ends, left, strict=True))


@pytest.mark.slow
def test_killed_coordinator_takes_its_children_along_and_resumes(orch):
    arguments = orch.counting(trials=4, epochs=6, pause_seconds=0.3)
    with orch.running(*arguments) as sweep:
        wait_until(lambda: orch.begun()[(1, 2)], what="epoch 2 of trial 1")
        below = descendants(sweep.pid)
        kill(sweep)
        assert_gone(below, 5)
    recorded = orch.recorded()
    orch.here("resume", "s")
    assert orch.recorded() == {trial: [1, 2, 3, 4, 5, 6] for trial in range(4)}
    begun = orch.begun()
    for trial, epochs in recorded.items():
        assert all(begun[(trial, epoch)] == 1 for epoch in epochs), "a recorded epoch was trained again"


@pytest.mark.slow
def test_killed_worker_costs_one_epoch_and_one_retry(orch):
    with orch.running(*orch.counting(trials=1, epochs=6, pause_seconds=0.3, workers=1)) as sweep:
        wait_until(lambda: orch.begun()[(0, 3)], what="epoch 3")
        wait_until(lambda: orch.recorded()[0] == [1, 2], what="epoch 2 to be recorded")
        kill(children(sweep.pid, WORKER)[0])
        out, _ = sweep.communicate(timeout=60)
        assert sweep.returncode == 0, out
    assert "killed (signal 9)" in out
    assert orch.recorded() == {0: [1, 2, 3, 4, 5, 6]}
    assert [orch.begun()[(0, epoch)] for epoch in range(1, 7)] == [1, 1, 2, 1, 1, 1]
    attempts = orch.json("show", "s/0")["attempts"]
    assert [attempt["reason"] for attempt in attempts] == ["lost", None]


@pytest.mark.slow
def test_worker_that_always_dies_is_tried_once_more_a_retry(orch):
    done = orch.here(
        *orch.counting(trials=2, epochs=3, fault="kill", fault_epoch=2, retries=1, pause_seconds=0.2), code=4
    )
    assert "2 trial(s)" in done.stdout
    for trial in (0, 1):
        shown = orch.json("show", f"s/{trial}")
        assert shown["state"] == "failed"
        assert [attempt["reason"] for attempt in shown["attempts"]] == ["lost", "lost"]
    assert orch.recorded() == {0: [1], 1: [1]}


@pytest.mark.slow
def test_trial_that_always_raises_fails_after_its_retries_and_the_sweep_goes_on(orch):
    arguments = orch.counting("fault='',raise", trials=6, epochs=3, retries=1, sampler="random")
    orch.here(*arguments, code=4)
    details = [orch.json("show", f"s/{trial}") for trial in range(6)]
    failed = [shown for shown in details if shown["config"]["fault"] == "raise"]
    assert failed
    assert all([a["reason"] for a in shown["attempts"]] == ["error", "error"] for shown in failed)
    assert all("RuntimeError: as the test asked" in shown["traceback"] for shown in failed)
    assert all(shown["message"] == "RuntimeError: as the test asked" for shown in failed)
    assert orch.json("status", "s")["states"]["complete"] == 6 - len(failed) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "reason"), [("diverge", "diverged"), ("oom", "oom")])
def test_what_memory_and_mathematics_refuse_is_not_retried(orch, fault, reason):
    orch.here(*orch.counting(trials=1, fault=fault))
    shown = orch.json("show", "s/0")
    assert (shown["state"], shown["reason"], len(shown["attempts"])) == ("failed", reason, 1)


@pytest.mark.slow
def test_full_disk_ends_the_run_with_one_line_and_spends_no_retry(orch):
    arguments = orch.counting(trials=2, fault="disk", workers=1)
    done = orch.here(*arguments, code=5)
    assert done.stderr.count("\n") == 1
    assert "no space left" in done.stderr
    assert orch.json("status", "s")["states"]["waiting"] == 1
    assert orch.json("show", "s/0")["attempts"][0]["reason"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_spends_no_retry(orch, number, code):
    arguments = orch.counting(trials=3, epochs=5, pause_seconds=0.3, retries=0)
    with orch.running(*arguments) as sweep:
        wait_until(lambda: orch.begun()[(0, 3)], what="epoch 3")
        below = descendants(sweep.pid)
        os.kill(sweep.pid, number)
        _, errors = sweep.communicate(timeout=10)
        assert sweep.returncode == code
        assert "orch resume s" in errors
        assert "Traceback" not in errors
        assert_gone(below, 2)
    recorded = orch.recorded()
    orch.here(*arguments)
    assert orch.recorded() == {trial: [1, 2, 3, 4, 5] for trial in range(3)}
    assert all(orch.begun()[(trial, epoch)] == 1 for trial, epochs in recorded.items() for epoch in epochs)


@pytest.mark.slow
def test_second_interrupt_leaves_within_two_seconds(orch):
    arguments = orch.counting(trials=3, epochs=50, pause_seconds=0.3)
    with orch.running(*arguments) as sweep:
        wait_until(lambda: orch.begun()[(0, 2)], what="epoch 2")
        below = descendants(sweep.pid)
        os.kill(sweep.pid, signal.SIGINT)
        time.sleep(0.2)  # two at once would arrive as one
        os.kill(sweep.pid, signal.SIGINT)
        assert_gone([psutil.Process(sweep.pid), *below], 2)
    assert orch.json("status", "s")["total"] == 3


@pytest.mark.slow
def test_second_process_on_a_held_study_is_refused_naming_the_holder(orch):
    arguments = orch.counting(trials=2, epochs=40, pause_seconds=0.3)
    with orch.running(*arguments) as sweep:
        wait_until(lambda: orch.begun(), what="the first epoch")
        refused = orch.here("resume", "s", code=5)
        assert refused.stderr.count("\n") == 1
        assert str(sweep.pid) in refused.stderr
        assert sweep.poll() is None


@pytest.mark.slow
def test_sleeper_that_wakes_is_fenced(orch):
    arguments = orch.counting(trials=2, epochs=8, pause_seconds=0.3)
    with orch.running(*arguments) as sleeper:
        wait_until(lambda: orch.begun()[(0, 2)], what="epoch 2")
        orch.stop_between_writes(sleeper)
        orch.here("resume", "s")
        os.kill(sleeper.pid, signal.SIGCONT)
        _, errors = sleeper.communicate(timeout=30)
        assert sleeper.returncode == 5
        assert "taken over" in errors
    assert orch.recorded() == {trial: list(range(1, 9)) for trial in range(2)}


@pytest.mark.slow
def test_locked_record_makes_the_sweep_wait(orch):
    arguments = orch.counting(trials=4, epochs=4, pause_seconds=0.2)
    with orch.running(*arguments) as sweep:
        wait_until(lambda: orch.begun()[(0, 2)], what="epoch 2")
        lock = sqlite3.connect(orch.home / "orch.db", isolation_level=None, timeout=30)
        lock.execute("BEGIN IMMEDIATE")
        time.sleep(20)  # longer than a lease
        lock.execute("ROLLBACK")
        lock.close()
        _, errors = sweep.communicate(timeout=60)
        assert sweep.returncode == 0, errors
    assert orch.recorded() == {trial: [1, 2, 3, 4] for trial in range(4)}
    assert max(orch.begun().values()) == 1, "no worker was lost for want of a sign of life"

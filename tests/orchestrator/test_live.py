"""How a sweep is shown while it runs: lines in a pipe, bars in a terminal; names from outside stay text."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from orchestrator.budget import Budget
from orchestrator.executors import EpochEnded, Slot
from orchestrator.live import LiveMonitor, PlainMonitor, Tally
from orchestrator.pace import clock
from orchestrator.space import Choices
from orchestrator.study import Study
from orchestrator.tables import Reason, State, Trial

SLOTS = [Slot(name="worker-0", threads=2), Slot(name="worker-1", threads=2)]
HOSTILE = "<b>[red]x[/red][/] :smile: \x1b[2J"


def study(name="s", trials=10):
    return Study(
        name=name,
        recipe="cnn",
        code_hash="",
        data="digits",
        split_seed=0,
        seed=0,
        data_fingerprint="",
        split_fingerprint="",
        fixed={"epochs": 5},
        space={"lr": Choices(choices=(1, 2))},
        budget=Budget(trials=trials),
    )


def trial(number, state=State.COMPLETE, value=0.9, **ended):
    return Trial(number=number, state=state, value=value, best_epoch=2, config={"epochs": 5}, **ended)


def epoch(trial, number, value=0.5):
    return EpochEnded(trial=trial, attempt=1, number=number, metrics={"val_accuracy": value}, seconds=0.1)


# -- figures


def test_tally_counts_states_and_knows_the_best():
    tally = Tally(study(), 2, [trial(0, value=0.8), trial(1, State.WAITING, None)])
    assert "best 0.8000 (trial 0)" in tally.line()
    assert "1 finished, 0 pruned, 0 failed of 10" in tally.line()
    for ended in (
        trial(1, value=0.95),
        trial(2, State.PRUNED, 0.99),
        trial(3, State.FAILED, None),
        trial(4, value=0.95),
    ):
        tally.add(ended)
    tally.add(trial(5, State.WAITING, None))
    assert tally.line().startswith("best 0.9500 (trial 1)  ·  3 finished, 1 pruned, 1 failed of 10")


def run_through(tally, number, num_epochs, state=State.COMPLETE):
    tally.start(trial(number), 0)
    for done in range(1, num_epochs + 1):
        tally.epoch(trial(number), done)
    tally.add(trial(number, state))


def test_tally_tells_the_time_left_from_epochs_of_this_run_only():
    tally = Tally(study(trials=10), 2, [trial(number) for number in range(6)])
    assert tally.left == ""
    assert tally.line().endswith("of 10")
    tally._since = time.monotonic() - 60
    tally.start(trial(6), 0)
    tally.epoch(trial(6), 1)
    assert tally.left == "19:00 left", "19 epochs, of which two workers do one a minute"
    for done in (2, 3, 4, 5):
        tally.epoch(trial(6), done)
    tally.add(trial(6))
    run_through(tally, 7, 5)
    assert tally.left == "1:00 left"


def test_tally_expects_as_many_epochs_of_the_next_trials_as_pruning_left_of_others():
    tally = Tally(study(trials=12), 1, [])
    tally._since = time.monotonic() - 80
    for number in range(3):
        run_through(tally, number, 1, State.PRUNED)
    run_through(tally, 3, 5)
    assert tally.left == "2:40 left", "8 trials of (3 * 1 + 5) / 4 epochs, 10 seconds each"
    tally.start(trial(4), 0)
    for done in (1, 2):
        tally.epoch(trial(4), done)
    # 3 epochs of the running trial, which got past the first, and 7 trials, of 3 in 5 of which there is one epoch.
    assert tally.left == f"{clock((3 + 7 * (1 + 2 / 5 * 4)) * 8)} left"


def test_tally_knows_that_the_last_trials_do_not_keep_all_workers_busy():
    tally = Tally(study(trials=2), 2, [])
    tally._since = time.monotonic() - 60
    tally.start(trial(1), 0)
    run_through(tally, 0, 5)
    tally.epoch(trial(1), 1)
    assert tally.left == "1:20 left", "4 epochs, one after another, of 20 seconds a worker"
    tally.add(trial(1))
    assert tally.left == ""


def test_tally_reckons_with_the_further_seeds_of_leaders():
    sure = study(trials=1)
    sure = sure.model_copy(update={"budget": sure.budget.model_copy(update={"confirm": "1x3"})})
    tally = Tally(sure, 1, [])
    tally._since = time.monotonic() - 50
    run_through(tally, 0, 5)
    assert tally.left == "2:30 left"
    further = Trial(number=1, state=State.RUNNING, config={"epochs": 5}, confirms=0)
    tally.start(further, 0)
    for done in range(1, 6):
        tally.epoch(further, done)
    further.state = State.COMPLETE
    tally.add(further)
    assert tally.left == "0:50 left", "10 epochs, now of 5 seconds"


def test_tally_counts_the_paused_as_far_done_until_they_go_on(capsys):
    monitor = PlainMonitor()
    monitor.started(study(), SLOTS, [trial(0, State.PAUSED)])
    tally = monitor._tally
    tally._since = time.monotonic() - 60
    monitor.trial_started(trial(1, State.RUNNING), SLOTS[0], 0)
    monitor.epoch_ended(trial(1, State.RUNNING), epoch(1, 1))
    monitor.trial_ended(trial(1, State.PAUSED))
    assert "0 finished, 0 pruned, 2 paused, 0 failed of 10  ·  8:00 left" in tally.line()
    monitor.trial_started(trial(1, State.RUNNING), SLOTS[0], 1)
    assert "1 paused" in tally.line()
    monitor.trial_ended(trial(1))
    monitor.trial_ended(trial(0, State.PRUNED))
    assert "1 finished, 1 pruned, 0 failed of 10" in tally.line()
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("trial 1 paused at val_accuracy 0.9000 (epoch 2)")
    assert said[2].startswith("trial 1 goes on after epoch 1 on worker-0")


# -- lines


def test_plain_lines_tell_what_runs_where_and_how_each_trial_ended(capsys):
    with PlainMonitor() as monitor:
        monitor.started(study(), SLOTS, [])
        monitor.trial_started(trial(0, State.RUNNING), SLOTS[0], 0)
        monitor.trial_started(trial(1, State.RUNNING), SLOTS[1], 3)
        monitor.epoch_ended(trial(0, State.RUNNING), epoch(0, 1))
        monitor.tick()
        monitor.trial_ended(trial(0, value=0.75))
        monitor.trial_ended(trial(1, State.WAITING, None))
        monitor.trial_ended(trial(2, State.FAILED, None, reason=Reason.OOM, message="too big"))
        monitor.note("time is up")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "s: 10 trials on 2 worker(s) of 2 thread(s), CPU; sampler tpe, pruner asha",
        "trial 1 goes on after epoch 3 on worker-1",
    ]
    assert lines[2].startswith("trial 0 complete at val_accuracy 0.7500 (epoch 2)  ·  best 0.7500 (trial 0)")
    assert lines[3].startswith("trial 2 failed (oom): too big  ·  ")
    assert lines[4:] == ["time is up"]


def test_headline_names_the_gpus(capsys):
    slots = [Slot(name=f"worker-{n}", threads=4, devices=(str(n),)) for n in range(2)]
    PlainMonitor().started(study(), slots, [])
    assert "2 worker(s) of 4 thread(s), GPU 0, 1;" in capsys.readouterr().out


def test_second_line_says_which_workers_are_on_which_gpu(capsys):
    slots = [Slot(name=f"worker-{n}", threads=4, devices=(str(n % 2),)) for n in range(3)]
    slots.append(Slot(name="worker-3", threads=4, devices=("0",), host="b"))
    PlainMonitor().started(study(), slots, [])
    placed = capsys.readouterr().out.splitlines()[1]
    assert placed == "GPU 0: worker-0, worker-2;  GPU 1: worker-1;  b GPU 0: worker-3"


def test_names_and_messages_stay_text_in_lines(capsys):
    monitor = PlainMonitor()
    monitor.started(study(HOSTILE), SLOTS, [])
    monitor.trial_ended(trial(0, State.FAILED, None, reason=Reason.ERROR, message=f"{HOSTILE}\nsecond line"))
    out = capsys.readouterr().out
    assert out.count("<b>[red]x[/red][/] :smile: \\x1b[2J") == 2
    assert len(out.splitlines()) == 2
    assert "\x1b" not in out


# -- a terminal


class Screen:
    """A terminal of 100 columns, and all that was written on it, with and without its control sequences."""

    def __init__(self):
        self._file = io.StringIO()
        self.console = Console(file=self._file, force_terminal=True, width=100, height=30, legacy_windows=False)

    @property
    def raw(self):
        return self._file.getvalue()

    @property
    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw)


@pytest.fixture
def screen():
    return Screen()


def test_terminal_shows_a_bar_a_worker_and_the_figures_below(screen):
    with LiveMonitor(screen.console) as monitor:
        monitor.started(study(), SLOTS, [])
        monitor.trial_started(trial(7, State.RUNNING), SLOTS[0], 2)
        monitor.epoch_ended(trial(7, State.RUNNING), epoch(7, 3, 0.8125))
        monitor.trial_ended(trial(3, value=0.75))
        monitor.tick()
        monitor.note("a line above")
        shown = screen.text[screen.text.index("a line above") :].splitlines()
    assert re.fullmatch(r"worker-0 trial 7 ━.* 3/5 val_accuracy 0\.8125\s*", shown[1])
    assert shown[2].startswith("worker-1 starts")
    assert shown[3].startswith("best 0.7500 (trial 3)  ·  1 finished, 0 pruned, 0 failed of 10")


def test_worker_that_goes_on_to_another_trial_starts_a_new_bar(screen):
    with LiveMonitor(screen.console) as monitor:
        monitor.started(study(), SLOTS[:1], [])
        for number in (0, 1):
            monitor.trial_started(trial(number, State.RUNNING), SLOTS[0], 0)
            monitor.note(f"mark {number}")
            monitor.epoch_ended(trial(number, State.RUNNING), epoch(number, 4))
        shown = screen.text[screen.text.index("mark 1") :].splitlines()
    assert re.fullmatch(r"worker-0 trial 1 ━* *0/5 *", shown[1])


def test_failure_stays_above_the_bars(screen):
    with LiveMonitor(screen.console) as monitor:
        monitor.started(study(), SLOTS, [])
        monitor.trial_ended(trial(0, State.FAILED, None, reason=Reason.ERROR, message="ValueError: no"))
    assert "trial 0 failed (error): ValueError: no" in screen.text


def test_names_and_messages_stay_text_in_a_terminal(screen):
    with LiveMonitor(screen.console) as monitor:
        monitor.started(study(HOSTILE), SLOTS, [])
        monitor.trial_ended(trial(0, State.FAILED, None, reason=Reason.ERROR, message=f"{HOSTILE}\nsecond"))
    assert screen.text.count("<b>[red]x[/red][/] :smile: \\x1b[2J") == 2
    assert "\x1b[2J" not in screen.raw


@pytest.mark.parametrize(("terminal", "kind"), [(True, "LiveMonitor"), (False, "PlainMonitor")])
def test_bars_are_for_terminals_and_lines_for_the_rest(terminal, kind):
    code = "import sys; from orchestrator.live import monitor; print(type(monitor()).__name__, file=sys.stderr)"
    environment = {**os.environ, "TERM": "xterm", "FORCE_COLOR": "1"}
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=theirs if terminal else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        check=True,
    )
    os.close(ours)
    os.close(theirs)
    assert done.stderr.strip() == kind

"""How a sweep is shown while it runs: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from orchestrator.errors import printable
from orchestrator.pace import clock, epochs_ahead
from orchestrator.tables import State
from recipes.config import objective_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from rich.progress import TaskID

    from orchestrator.executors import EpochEnded, Slot
    from orchestrator.study import Study
    from orchestrator.tables import Trial


class Tally:
    """What has ended so far, the best of it, and how long the rest may take."""

    def __init__(self, study: Study, num_slots: int, trials: Sequence[Trial]) -> None:
        self.total = study.budget.trials
        self.paused: set[int] = set()
        self.best: Trial | None = None  # of the complete ones
        self._ended: dict[int, State] = {}
        self._counts: Counter[State] = Counter()
        self._running: dict[int, int] = {}  # trial -> epochs it has
        self._confirming: dict[int, int] = {}  # the same of further seeds of a leader
        self._num_confirmed = 0
        self._ended_after: Counter[int] = Counter()  # epochs -> trials of this run that ended or paused there
        self._num_epochs = 0  # of this run
        for trial in trials:
            self.add(trial)
        self._max_epochs = study.max_epochs
        self._num_confirmations = math.prod(study.budget.confirmations)
        self._num_slots = num_slots
        self._since = time.monotonic()

    def start(self, trial: Trial, num_epochs: int) -> None:
        """A trial begins, or goes on after so many epochs."""
        if trial.number in self.paused:
            self.paused.discard(trial.number)
            self._ended_after[num_epochs] = max(0, self._ended_after[num_epochs] - 1)
        self._of_its_kind(trial)[trial.number] = num_epochs

    def epoch(self, trial: Trial, number: int) -> None:
        """A trial has one more epoch."""
        self._of_its_kind(trial)[trial.number] = number
        self._num_epochs += 1

    def add(self, trial: Trial) -> None:
        """Count a trial that ended or is paused, but no further seed of a leader; one that waits runs no longer."""
        num_epochs = self._of_its_kind(trial).pop(trial.number, None)
        if trial.confirms is not None:
            self._num_confirmed += trial.state.finished
            return
        if num_epochs is not None and (trial.state.finished or trial.state is State.PAUSED):
            self._ended_after[num_epochs] += 1
        self.paused.discard(trial.number)
        if trial.state.finished:
            self._counts[trial.state] += 1
            if trial.number in self._ended:
                self._counts[self._ended[trial.number]] -= 1
            self._ended[trial.number] = trial.state
        elif trial.state is State.PAUSED:
            self.paused.add(trial.number)
        if trial.state is State.COMPLETE and (self.best is None or _worth(trial) > _worth(self.best)):
            self.best = trial

    def _of_its_kind(self, trial: Trial) -> dict[int, int]:
        return self._running if trial.confirms is None else self._confirming

    def count(self, state: State) -> int:
        """How many trials ended so."""
        return self._counts[state]

    @property
    def left(self) -> str:
        """Time left, or nothing before an epoch of this run has ended; most of the paused stay so.

        By the epochs that trials still train, given after how many others ended in this run, and by the time that an
        epoch of a worker took in it. The last trials do not keep all workers busy. No further seed is stopped early.
        """
        num_waiting = max(0, self.total - len(self._ended) - len(self.paused) - len(self._running))
        num_unconfirmed = max(0, self._num_confirmations - self._num_confirmed - len(self._confirming))
        num_left = num_waiting + len(self._running) + num_unconfirmed + len(self._confirming)
        if not self._num_epochs or not num_left:
            return ""
        most, running = self._max_epochs, self._running.values()
        ahead = epochs_ahead(self._ended_after, running, most)
        num_epochs = num_waiting * ahead[0] + sum(ahead[min(done, most)] for done in running)
        num_epochs += num_unconfirmed * most + sum(most - min(done, most) for done in self._confirming.values())
        epoch_seconds = (time.monotonic() - self._since) * self._num_slots / self._num_epochs
        return f"{clock(num_epochs * epoch_seconds / min(self._num_slots, num_left))} left"

    def line(self) -> str:
        """All of it in one line."""
        best = f"best {self.best.value:.4f} (trial {self.best.number})" if self.best else "no best yet"
        paused = f"{len(self.paused)} paused, " if self.paused else ""
        counts = (
            f"{self.count(State.COMPLETE)} finished, {self.count(State.PRUNED)} pruned, {paused}"
            f"{self.count(State.FAILED)} failed of {self.total}"
        )
        return "  ·  ".join(filter(None, [best, counts, self.left]))


class PlainMonitor:
    """A line for each thing that ends; for logs and pipes."""

    def started(self, study: Study, slots: Sequence[Slot], trials: Sequence[Trial]) -> None:
        """Say what runs where."""
        self._tally = Tally(study, len(slots), trials)
        for line in _headlines(study, slots):
            self._say(line)

    def trial_started(self, trial: Trial, slot: Slot, num_epochs_done: int) -> None:
        """Say only that a trial goes on; that one begins is not worth a line."""
        self._tally.start(trial, num_epochs_done)
        if num_epochs_done:
            self._say(f"trial {trial.number} goes on after epoch {num_epochs_done} on {slot.name}")

    def epoch_ended(self, trial: Trial, event: EpochEnded) -> None:
        """Say nothing: epochs are in the record."""
        self._tally.epoch(trial, event.number)

    def trial_ended(self, trial: Trial) -> None:
        """Say how a trial ended, or where it is paused, and how the study stands."""
        self._tally.add(trial)
        if trial.state.finished or trial.state is State.PAUSED:
            self._say(f"trial {trial.number} {_ending(trial)}  ·  {self._tally.line()}")

    def note(self, text: str) -> None:
        """Say it."""
        self._say(text)

    def tick(self) -> None:
        """Do nothing: lines need no refreshing."""

    def __enter__(self) -> PlainMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _say(self, text: str) -> None:
        print(printable(text), flush=True)


class LiveMonitor:
    """One line a worker with a progress bar, and one for the whole; redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.fields[slot]}"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[value]}"),
            console=console,
        )
        self._summary = Text()
        self._live = Live(Group(self._bars, self._summary), console=console, refresh_per_second=5)
        self._task_of: dict[str, TaskID] = {}
        self._slot_of: dict[int, str] = {}

    def started(self, study: Study, slots: Sequence[Slot], trials: Sequence[Trial]) -> None:
        """Draw a line for each slot; those of former workers go."""
        for task in self._task_of.values():
            self._bars.remove_task(task)
        self._task_of.clear()
        self._tally = Tally(study, len(slots), trials)
        self._max_epochs = study.max_epochs
        for line in _headlines(study, slots):
            self.note(line)
        for slot in slots:
            self._task_of[slot.name] = self._bars.add_task("starts", total=None, slot=slot.name, value="")
        self.tick()

    def trial_started(self, trial: Trial, slot: Slot, num_epochs_done: int) -> None:
        """Give the slot's line to the trial."""
        self._tally.start(trial, num_epochs_done)
        self._slot_of[trial.number] = slot.name
        total = int(trial.config.get("epochs", self._max_epochs))
        name = f"trial {trial.number}"
        # A reset forgets the fields that it is not given.
        task = self._task_of[slot.name]
        self._bars.reset(task, total=total, completed=num_epochs_done, description=name, slot=slot.name, value="")

    def epoch_ended(self, trial: Trial, event: EpochEnded) -> None:
        """Move the trial's bar."""
        self._tally.epoch(trial, event.number)
        objective = objective_of(trial.config)
        value = f"{objective} {event.metrics[objective]:.4f}"
        self._bars.update(self._task_of[self._slot_of[trial.number]], completed=event.number, value=value)

    def trial_ended(self, trial: Trial) -> None:
        """Count the trial, also one that is paused; a failure is worth a line that stays."""
        self._tally.add(trial)
        if trial.state is State.FAILED:
            self.note(f"trial {trial.number} {_ending(trial)}")

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._live.console.print(Text(printable(text)))

    def tick(self) -> None:
        """Refresh the line below the bars."""
        self._summary.plain = self._tally.line()

    def __enter__(self) -> LiveMonitor:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._task_of:
            self.tick()
        for task in self._task_of.values():
            self._bars.remove_task(task)
        self._live.refresh()  # which its end does in a terminal only
        self._live.__exit__(kind, error, tb)


def monitor() -> PlainMonitor | LiveMonitor:
    """The monitor that fits standard output; in a notebook, what is redrawn in place needs ipywidgets."""
    console = Console()
    if console.is_jupyter:
        return LiveMonitor(console) if importlib.util.find_spec("ipywidgets") else PlainMonitor()
    return LiveMonitor(console) if console.is_terminal and sys.stdout.isatty() else PlainMonitor()


def _headlines(study: Study, slots: Sequence[Slot]) -> list[str]:
    """What runs with how many workers and threads, and on which GPU each worker is."""
    on: dict[str, list[str]] = {}
    for slot in slots:
        for device in slot.devices:
            on.setdefault(f"{slot.host} GPU {device}".strip(), []).append(slot.name)
    placed = [f"{device}: {', '.join(on[device])}" for device in sorted(on)]
    return [_headline(study, slots), *([";  ".join(placed)] if placed else [])]


def _headline(study: Study, slots: Sequence[Slot]) -> str:
    where = sorted({device for slot in slots for device in slot.devices})
    places = f"GPU {', '.join(where)}" if where else "CPU"
    hosts = {slot.host for slot in slots if slot.host}
    workers = (
        f"{len(slots)} worker(s) of {slots[0].threads} thread(s), {f'Ray, {len(hosts)} host(s)' if hosts else places}"
    )
    how = f"sampler {study.sampler}, pruner {study.budget.pruner}"
    return f"{study.name}: {study.budget.trials} trials on {workers}; {how}"


def _worth(trial: Trial) -> tuple[float, int]:
    return (trial.value or 0.0, -trial.number)


def _ending(trial: Trial) -> str:
    if trial.state is State.FAILED:
        return f"failed ({trial.reason}): {trial.message}"
    return f"{trial.state} at {objective_of(trial.config)} {trial.value:.4f} (epoch {trial.best_epoch})"

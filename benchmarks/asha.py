"""Epochs that pause-and-promote ASHA saves, and what it costs in accuracy, on the same 81 random digits CNNs.

Each configuration is trained to the end of 27 epochs once a seed, and its learning curve kept. Then every way to prune
is replayed on these curves: our pruners by the calls that the coordinator makes, Optuna's by its own study. In a replay
the workers take configurations in one order; an epoch takes one to three units of time, drawn once a configuration.
The winner is the best of what was trained to its end. With `--real` a real sweep of the first seed and one worker must
train each configuration for as many epochs as its replay.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import asha_curves as curves
import machine
import optuna

from orchestrator import pruning

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.executors import Decision

WORKERS = (1, 4, 16)
LIMIT = 0.25
BASE, OURS = "no pruning", "asha-pause"
Curves = list[dict[str, Any]]  # of one seed: of each configuration, by number


class Way(Protocol):
    """Who says what a free worker does, and what becomes of a trial after an epoch."""

    def next(self, *, idle: bool) -> int | None:
        """The trial that a worker takes up, or None; `idle` says that nothing runs."""

    def decide(self, trial: int, epoch: int) -> Decision:
        """What a trial does after an epoch before its last."""


class Ours:
    """One of our pruners, called as `orchestrator.coordinator` calls it."""

    def __init__(self, pruner: pruning.Pruner, found: Curves) -> None:
        self._pruner, self._curves = pruner, found
        self._values: dict[int, dict[int, float]] = {}
        self._ranks: dict[int, dict[int, pruning.Rank]] = {}
        self._paused: dict[int, int] = {}
        self._num_asked = 0

    def next(self, *, idle: bool) -> int | None:
        """A promotion, else a new trial, else a leader of a rung that stayed too small."""
        if (promoted := self._promoted(0)) is not None:
            return promoted
        if self._num_asked < len(self._curves):
            self._num_asked += 1
            return self._num_asked - 1
        return self._promoted(1) if idle else None

    def _promoted(self, num_kept: int) -> int | None:
        if not isinstance(self._pruner, pruning.AshaPause):
            return None
        found = self._pruner.promoted(self._paused, self._ranks, num_kept=num_kept)
        if found is not None:
            del self._paused[found]
        return found

    def decide(self, trial: int, epoch: int) -> Decision:
        """What the pruner says at its decision epochs."""
        curve = self._curves[trial]
        value = curve["val_accuracy"][epoch - 1]
        values = self._values.setdefault(epoch, {})
        values[trial] = value
        self._ranks.setdefault(epoch, {})[trial] = (value, -curve["val_loss"][epoch - 1])
        if epoch not in self._pruner.decision_epochs(trial, curves.MAX_EPOCHS):
            return "go"
        if self._pruner.goes_on(trial, curves.MAX_EPOCHS, values, curve["val_accuracy"][:epoch]):
            return "go"
        if isinstance(self._pruner, pruning.AshaPause):
            self._paused[trial] = epoch
            return "pause"
        return "stop"


class Optunas:
    """A pruner of Optuna's in a study of Optuna's, told of each epoch."""

    def __init__(self, pruner: optuna.pruners.BasePruner, found: Curves) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(direction="maximize", pruner=pruner)
        self._curves = found
        self._trials: list[optuna.Trial] = []

    def next(self, *, idle: bool) -> int | None:
        """A new trial while there are any."""
        del idle
        if len(self._trials) == len(self._curves):
            return None
        self._trials.append(self._study.ask())
        return len(self._trials) - 1

    def decide(self, trial: int, epoch: int) -> Decision:
        """Report, ask, and end what is pruned."""
        value = self._curves[trial]["val_accuracy"][epoch - 1]
        self._trials[trial].report(value, epoch)
        if self._trials[trial].should_prune():
            self._study.tell(self._trials[trial], state=optuna.trial.TrialState.PRUNED)
            return "stop"
        if epoch == curves.MAX_EPOCHS:
            self._study.tell(self._trials[trial], value)
        return "go"


WAYS: dict[str, Callable[[Curves], Way]] = {
    BASE: lambda found: Ours(pruning.make("none"), found),
    OURS: lambda found: Ours(pruning.make("asha-pause"), found),
    "stop-only, same rungs": lambda found: Ours(pruning.Asha(num_rungs=3), found),
    "asha (stop-only, 3 and 9)": lambda found: Ours(pruning.make("asha"), found),
    "Optuna SuccessiveHalving": lambda found: Optunas(optuna.pruners.SuccessiveHalvingPruner(), found),
}


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of one way on the curves of one seed."""

    epochs: dict[int, int]  # trial -> epochs trained
    best: float  # val_accuracy of the winner, among the trials that were trained to their end
    loss: float  # val_loss of the winner in that epoch, which tells more where accuracies are full

    @property
    def total(self) -> int:
        """Epochs of all trials."""
        return sum(self.epochs.values())


def replay(way: Way, found: Curves, num_workers: int) -> Replay:
    """Let so many workers train the recorded configurations as `way` says."""
    durations = [random.Random(trial).uniform(1, 3) for trial in range(len(found))]
    epochs: dict[int, int] = {}
    running: list[tuple[float, int]] = []  # when a trial's epoch ends
    now = 0.0
    while True:
        while len(running) < num_workers and (trial := way.next(idle=not running)) is not None:
            epochs.setdefault(trial, 0)
            heapq.heappush(running, (now + durations[trial], trial))
        if not running:
            break
        now, trial = heapq.heappop(running)
        epochs[trial] += 1
        if way.decide(trial, epochs[trial]) == "go" and epochs[trial] < curves.MAX_EPOCHS:
            heapq.heappush(running, (now + durations[trial], trial))
    best, loss = min(
        min((-accuracy, loss) for accuracy, loss in zip(curve["val_accuracy"], curve["val_loss"], strict=True))
        for curve, length in zip(found, (epochs[trial] for trial in range(len(found))), strict=True)
        if length == curves.MAX_EPOCHS
    )
    return Replay(epochs=epochs, best=-best, loss=loss)


def show(seeds: list[Curves], num_workers: int) -> None:
    """Print a line a way: epochs, their share of those of no pruning, the best, and how it differs from that one's."""
    base = [replay(WAYS[BASE](found), found, num_workers) for found in seeds]
    print(f"\n{num_workers} worker(s), {len(seeds)} seed(s)")
    print(f"{'way':26} {'epochs':20} {'share':22} {'best val_accuracy':26} {'less that of no pruning':30} its val_loss")
    for name, make in WAYS.items():
        runs = [replay(make(found), found, num_workers) for found in seeds]
        shares = [run.total / whole.total for run, whole in zip(runs, base, strict=True)]
        columns = [
            machine.spread([run.total for run in runs], 0),
            machine.spread(shares, 3),
            machine.spread([run.best for run in runs], 4),
            machine.spread([run.best - whole.best for run, whole in zip(runs, base, strict=True)], 4),
            machine.spread([run.loss for run in runs], 4),
        ]
        print(f"{name:26} {columns[0]:20} {columns[1]:22} {columns[2]:26} {columns[3]:30} {columns[4]}")
        if name == OURS:
            worst, difference = max(shares), statistics.median(r.best - w.best for r, w in zip(runs, base, strict=True))
    print(f"{OURS}: at most {worst:.1%} of the epochs (limit {LIMIT:.0%}); median of the best {difference:+.4f}")


def check_real(found: Curves) -> None:
    """Run the sweep that the first seed's curves stand for, and compare its epochs with those of the replay."""
    folder = Path(tempfile.mkdtemp(prefix="asha-"))
    command = [str(machine.ORCH), "sweep", *curves.KEYS, f"pruner={OURS}", "workers=1", "study=real"]
    environment = {**machine.environment(), "ORCH_HOME": str(folder)}
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    shown = subprocess.run(
        [str(machine.ORCH), "compare", "real", "--json"], env=environment, check=True, stdout=subprocess.PIPE
    )
    rows = json.loads(shown.stdout)
    real = {row["trial"]: row["epochs"] for row in rows}
    best = max(row["value"] for row in rows if row["state"] == "complete")
    expected = replay(WAYS[OURS](found), found, 1)
    differing = {trial: (real[trial], length) for trial, length in expected.epochs.items() if real[trial] != length}
    print(f"\nreal sweep: {sum(real.values())} epochs, best {best:.4f}; replay: {expected.total}, {expected.best:.4f}")
    if differing or best != expected.best:
        raise SystemExit(f"they differ (trial: real, replay): {differing}; see {folder}")
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="how many; what is missing of their curves is trained")
    parser.add_argument("--curves", type=Path, default=curves.FOLDER, help="the folder that the curves are kept in")
    parser.add_argument("--real", action="store_true", help="also run one real sweep")
    arguments = parser.parse_args()
    print(machine.hardware(machine.use_cores(1)))  # one thread a trial, which is part of its bits
    print(machine.versions("torch", "optuna"), flush=True)
    for seed in range(arguments.seeds):
        curves.record(arguments.curves, seed)
    seeds = [curves.read(arguments.curves, seed) for seed in range(arguments.seeds)]
    for num_workers in WORKERS:
        show(seeds, num_workers)
    if arguments.real:
        check_real(seeds[0])


if __name__ == "__main__":
    main()

"""Which trials are stopped early or paused, decided from the record's values alone.

A pruner names the epochs at which it decides, and decides there whether a trial goes on, from the values that the
trials of the study had at that very epoch. What does not go on is stopped, or by `AshaPause` paused, which also says
which of the paused are promoted. Values are maximised. All are pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.errors import UnknownNameError

Table = Mapping[int, float]  # trial number -> its value at the epoch of the decision
Curve = Sequence[float]  # a trial's own values, epoch after epoch, up to the decision
Rank = tuple[float, float]  # a value, then minus the validation loss, by which equal values are told apart


class Pruner(Protocol):
    """When a study decides, and how."""

    def decision_epochs(self, trial: int, max_epochs: int) -> tuple[int, ...]:
        """The epochs after which a trial waits for a decision; the last epoch needs none."""

    def goes_on(self, trial: int, max_epochs: int, values: Table, curve: Curve = ()) -> bool:
        """Whether `trial`, whose value is among `values`, trains on; `curve` is its way there."""


@dataclass(frozen=True)
class NoPruner:
    """Every trial trains to its end."""

    def decision_epochs(self, trial: int, max_epochs: int) -> tuple[int, ...]:
        """There are none."""
        del trial, max_epochs
        return ()

    def goes_on(self, trial: int, max_epochs: int, values: Table, curve: Curve = ()) -> bool:
        """Always."""
        del trial, max_epochs, values, curve
        return True


@dataclass(frozen=True, kw_only=True)
class Asha:
    """Asynchronous successive halving that stops and never pauses (Li et al., https://arxiv.org/abs/1810.05934).

    The rungs are at `max_epochs / eta**k`, by default a ninth and a third of the way: a schedule's warm-up is over by
    then. At a rung a trial goes on if it is among the best `1 / eta` of the trials that reached the rung so far, itself
    included. As nothing is paused, of the first `eta` only those that lead go on.
    """

    eta: int = 3
    num_rungs: int = 2

    def decision_epochs(self, trial: int, max_epochs: int) -> tuple[int, ...]:
        """The rungs below `max_epochs`."""
        del trial
        rungs = {math.ceil(max_epochs / self.eta**k) for k in range(1, self.num_rungs + 1)}
        return tuple(sorted(rung for rung in rungs if rung < max_epochs))

    def goes_on(self, trial: int, max_epochs: int, values: Table, curve: Curve = ()) -> bool:
        """Whether the trial is in the top `1 / eta` of its rung."""
        del max_epochs, curve
        num_kept = max(1, len(values) // self.eta)
        return sum(value > values[trial] for value in values.values()) < num_kept


@dataclass(frozen=True, kw_only=True)
class AshaPause:
    """Asynchronous successive halving as published (Li et al., https://arxiv.org/abs/1810.05934, algorithm 2).

    The rungs are at `min_epochs * eta**k`. Every trial pauses at its rung. It is promoted, which is to go on from
    there, once it is among the best `1 / eta` of the trials that reached the rung.
    """

    eta: int = 3
    min_epochs: int = 1

    def decision_epochs(self, trial: int, max_epochs: int) -> tuple[int, ...]:
        """The rungs below `max_epochs`."""
        del trial
        rungs: list[int] = []
        while (rung := self.min_epochs * self.eta ** len(rungs)) < max_epochs:
            rungs.append(rung)
        return tuple(rungs)

    def goes_on(self, trial: int, max_epochs: int, values: Table, curve: Curve = ()) -> bool:
        """Never at once."""
        del trial, max_epochs, values, curve
        return False

    def promoted(
        self, paused: Mapping[int, int], ranks: Mapping[int, Mapping[int, Rank]], *, num_kept: int = 0
    ) -> int | None:
        """The paused trial that goes on first: of the highest rung where there is one, the best.

        `paused` is trial -> epoch, `ranks` epoch -> trial -> rank of all that reached the epoch, promoted ones too. The
        best `num_kept` of a rung are promotable, however few reached it. Of equals the earlier is the better.
        """
        for rung in sorted(set(paused.values()), reverse=True):
            order = {number: (rank, -number) for number, rank in ranks[rung].items()}
            best = max((number for number, epoch in paused.items() if epoch == rung), key=order.__getitem__)
            num_better = sum(other > order[best] for other in order.values())
            if num_better < max(num_kept, len(order) // self.eta):
                return best
        return None


@dataclass(frozen=True, kw_only=True)
class Hyperband:
    """Successive halving with several numbers of rungs at once (Li et al., https://arxiv.org/abs/1603.06560).

    A trial belongs to one bracket, by its number. Bracket k has k rungs; the more, the earlier its first one and the
    more trials go there, so that each bracket trains about as many epochs. A bracket compares only its own.
    """

    eta: int = 3
    max_rungs: int = 3

    def decision_epochs(self, trial: int, max_epochs: int) -> tuple[int, ...]:
        """The rungs of the trial's bracket."""
        return self._bracket(trial, max_epochs).decision_epochs(trial, max_epochs)

    def goes_on(self, trial: int, max_epochs: int, values: Table, curve: Curve = ()) -> bool:
        """Whether the trial is in the top `1 / eta` of its bracket's rung."""
        del curve
        bracket = self._bracket(trial, max_epochs)
        rivals = {number: value for number, value in values.items() if self._bracket(number, max_epochs) == bracket}
        return bracket.goes_on(trial, max_epochs, rivals)

    def _bracket(self, trial: int, max_epochs: int) -> Asha:
        most = min(self.max_rungs, int(math.log(max_epochs, self.eta) + 1e-9))
        shares = [math.ceil((most + 1) / (k + 1) * self.eta**k) for k in range(most + 1)]
        place = trial % sum(shares)
        for num_rungs, share in reversed(list(enumerate(shares))):
            if place < share:
                return Asha(eta=self.eta, num_rungs=num_rungs)
            place -= share
        raise AssertionError("the shares cover every place")


def _each_after(warmup_epochs: int, max_epochs: int) -> tuple[int, ...]:
    return tuple(range(warmup_epochs + 1, max_epochs))


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """Stops a trial that is not among the best `kept` percent of the others at the same epoch.

    With 50 that is the median, by which Vizier stops (Golovin et al., 2017).
    """

    kept: float
    warmup_epochs: int = 1
    min_trials: int = 5

    def decision_epochs(self, trial: int, max_epochs: int) -> tuple[int, ...]:
        """Every epoch after the warm-up but the last."""
        del trial
        return _each_after(self.warmup_epochs, max_epochs)

    def goes_on(self, trial: int, max_epochs: int, values: Table, curve: Curve = ()) -> bool:
        """Whether the trial is at least as good as the percentile of the others, or these are too few to tell."""
        del max_epochs, curve
        others = sorted(value for number, value in values.items() if number != trial)
        if len(others) < self.min_trials:
            return True
        place = (len(others) - 1) * (1 - self.kept / 100)  # between two values: on the line from one to the other
        low, high = others[math.floor(place)], others[math.ceil(place)]
        return values[trial] >= low + (high - low) * (place % 1)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Stops a trial whose value is below `lowest` after the warm-up."""

    lowest: float
    warmup_epochs: int = 1

    def decision_epochs(self, trial: int, max_epochs: int) -> tuple[int, ...]:
        """Every epoch after the warm-up but the last."""
        del trial
        return _each_after(self.warmup_epochs, max_epochs)

    def goes_on(self, trial: int, max_epochs: int, values: Table, curve: Curve = ()) -> bool:
        """Whether the trial is good enough, whatever others are."""
        del max_epochs, curve
        return values[trial] >= self.lowest


@dataclass(frozen=True, kw_only=True)
class Patient:
    """Stops what another pruner would stop, but only once it has not got better for `patience` epochs."""

    patience: int
    wrapped: Pruner

    def decision_epochs(self, trial: int, max_epochs: int) -> tuple[int, ...]:
        """Those of the other pruner."""
        return self.wrapped.decision_epochs(trial, max_epochs)

    def goes_on(self, trial: int, max_epochs: int, values: Table, curve: Curve = ()) -> bool:
        """Whether the trial was best in its latest epochs, or the other pruner lets it."""
        best = max(range(len(curve)), key=curve.__getitem__, default=0)  # of equals the earliest
        if len(curve) - 1 - best < self.patience:
            return True
        return self.wrapped.goes_on(trial, max_epochs, values, curve)


PRUNERS: Mapping[str, Pruner] = {
    "asha": Asha(),
    "none": NoPruner(),
    "median": Percentile(kept=50),
    "hyperband": Hyperband(),
}
FORMS = ("asha-pause", "percentile", "threshold", "patient")  # what takes an argument


def make(text: str) -> Pruner:
    """The pruner of a study key's text: a name, in some cases with arguments after colons.

    `asha-pause` or `asha-pause:MIN_EPOCHS`, `percentile:KEPT`, `threshold:LOWEST` or `threshold:LOWEST:WARMUP_EPOCHS`,
    `patient:EPOCHS:PRUNER`.

    Raises:
        UnknownNameError: there is none of that name.
        ValueError: it takes no such argument.
    """
    name, colon, argument = text.partition(":")
    if name not in {*PRUNERS, *FORMS}:
        raise UnknownNameError("pruner", name, [*PRUNERS, *FORMS])
    match name:
        case "asha-pause":
            return AshaPause(min_epochs=_whole(argument)) if colon else AshaPause()
        case "percentile":
            return Percentile(kept=_number(argument, low=0, high=100))
        case "threshold":
            lowest, more, epochs = argument.partition(":")
            warmup = {"warmup_epochs": _whole(epochs)} if more else {}
            return Threshold(lowest=_number(lowest), **warmup)
        case "patient":
            return _patient(argument)
    if colon:
        raise ValueError(f"{name} takes no argument")
    return PRUNERS[name]


def _patient(argument: str) -> Patient:
    epochs, colon, other = argument.partition(":")
    if not colon:
        raise ValueError("expected patient:EPOCHS:PRUNER, such as patient:5:median")
    wrapped = make(other)
    if isinstance(wrapped, AshaPause):
        raise ValueError("patient is for pruners that stop; asha-pause pauses")
    return Patient(patience=_whole(epochs), wrapped=wrapped)


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"expected a whole number of epochs of at least 1, found {text!r}")
    return int(text)


def _number(text: str, *, low: float = -math.inf, high: float = math.inf) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (low < number < high):
        between = f" between {low} and {high}" if math.isfinite(low) else ""
        raise ValueError(f"expected a number{between}, found {text!r}")
    return number

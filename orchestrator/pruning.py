"""Which trials are stopped early or paused, decided from the record's values alone.

A pruner names the epochs at which it decides, and decides there whether a trial goes on, from the values that the
trials of the study had at that very epoch. What does not go on is stopped, or by `AshaPause` paused, which also says
which of the paused are promoted. Values are maximised. All are pure.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from orchestrator.errors import UnknownNameError

Table = Mapping[int, float]  # trial number -> its value at the epoch of the decision
Curve = Sequence[float]  # a trial's own values, epoch after epoch, up to the decision
Rank = tuple[float, float]  # a value, then minus the validation loss, by which equal values are told apart
Place = tuple[Rank, int]  # a rank, then minus the trial's number: of equals the earlier is the better
V = TypeVar("V", float, Place)


class Rung(Mapping[int, V], Generic[V]):
    """The values that trials had at an epoch, by trial; also in order, so that a decision looks at few of them.

    They are put in order when that is first asked for, and kept so from then on.
    """

    def __init__(self, values: Mapping[int, V] | None = None) -> None:
        self._values: dict[int, V] = dict(values or {})
        self._ordered: list[V] | None = None
        self._parts: dict[Hashable, tuple[Callable[[int], bool], Rung[V]]] = {}

    @classmethod
    def of(cls, values: Mapping[int, V]) -> Rung[V]:
        """The rung of a table, which may be one."""
        return values if isinstance(values, Rung) else cls(values)

    def __getitem__(self, trial: int) -> V:
        return self._values[trial]

    def __iter__(self) -> Iterator[int]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def add(self, trial: int, value: V) -> None:
        """Take in a trial that is not there."""
        assert trial not in self._values, f"trial {trial} has a value here"
        self._values[trial] = value
        if self._ordered is not None:
            insort(self._ordered, value)
        for belongs, part in self._parts.values():
            if belongs(trial):
                part.add(trial, value)

    def discard(self, trial: int) -> None:
        """Forget a trial, if it is there."""
        value = self._values.pop(trial, None)
        if value is not None and self._ordered is not None:
            del self._ordered[bisect_left(self._ordered, value)]
        for _, part in self._parts.values():
            part.discard(trial)

    @property
    def order(self) -> Sequence[V]:
        """All values, the lowest first."""
        if self._ordered is None:
            self._ordered = sorted(self._values.values())
        return self._ordered

    def num_above(self, value: V) -> int:
        """How many values are higher."""
        return len(self) - bisect_right(self.order, value)

    def part(self, key: Hashable, belongs: Callable[[int], bool]) -> Rung[V]:
        """The rung of those trials that belong to it; `key` tells it from other parts."""
        if key not in self._parts:
            chosen = {trial: value for trial, value in self._values.items() if belongs(trial)}
            self._parts[key] = (belongs, Rung(chosen))
        return self._parts[key][1]


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
        return Rung.of(values).num_above(values[trial]) < num_kept


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
        return self.first(Ladder.of(paused, ranks), num_kept=num_kept)

    def first(self, ladder: Ladder, *, num_kept: int = 0) -> int | None:
        """See `promoted`."""
        for reached, paused in ladder.rungs():
            best = paused.order[-1]
            if reached.num_above(best) < max(num_kept, len(reached) // self.eta):
                return -best[1]
        return None


class Ladder:
    """Who reached which epoch, and who is paused there, each in order; kept while a study goes on."""

    def __init__(self) -> None:
        self._reached: dict[int, Rung[Place]] = {}  # epoch -> trial -> place
        self._paused: dict[int, Rung[Place]] = {}
        self._places: dict[int, dict[int, Place]] = {}  # trial -> epoch -> place

    @classmethod
    def of(cls, paused: Mapping[int, int], ranks: Mapping[int, Mapping[int, Rank]]) -> Ladder:
        """That of plain tables, see `AshaPause.promoted`."""
        made = cls()
        for epoch, table in ranks.items():
            for trial, rank in table.items():
                made.reach(trial, epoch, rank)
        for trial, epoch in paused.items():
            made.pause(trial, epoch)
        return made

    def reach(self, trial: int, epoch: int, rank: Rank) -> None:
        """Take in that a trial has trained an epoch."""
        place = self._places.setdefault(trial, {})[epoch] = (rank, -trial)
        self._reached.setdefault(epoch, Rung()).add(trial, place)

    def pause(self, trial: int, epoch: int) -> None:
        """Take in that a trial is paused after an epoch that it reached."""
        self._paused.setdefault(epoch, Rung()).add(trial, self._places[trial][epoch])

    def go_on(self, trial: int) -> None:
        """Take in that a trial is not paused, or no longer."""
        for epoch in self._places.get(trial, {}):
            if epoch in self._paused:
                self._paused[epoch].discard(trial)

    def drop(self, trial: int) -> None:
        """Forget a trial, as if it had never been there."""
        self.go_on(trial)
        for epoch in self._places.pop(trial, {}):
            self._reached[epoch].discard(trial)

    def rungs(self) -> Iterator[tuple[Rung[Place], Rung[Place]]]:
        """Who reached, and who is paused, at each epoch where anybody is, the highest first."""
        for epoch in sorted(self._paused, reverse=True):
            if self._paused[epoch]:
                yield self._reached[epoch], self._paused[epoch]


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
        rivals = Rung.of(values).part((max_epochs, bracket), lambda other: self._bracket(other, max_epochs) == bracket)
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
        num_others = len(values) - 1
        if num_others < self.min_trials:
            return True
        order, own = Rung.of(values).order, values[trial]
        left_out = bisect_left(order, own)  # of the order, to have that of the others
        place = (num_others - 1) * (1 - self.kept / 100)  # between two values: on the line from one to the other
        low, high = (order[at + (at >= left_out)] for at in (math.floor(place), math.ceil(place)))
        return own >= low + (high - low) * (place % 1)


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

"""Which trials are stopped early or paused, decided from the record's values alone.

A pruner names the epochs at which it decides, and decides there whether a trial goes on, from the values that the
trials of the study had at that very epoch. What does not go on is stopped, or by `AshaPause` paused, which also says
which of the paused are promoted. Values are maximised. All are pure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from orchestrator.errors import UnknownNameError

Table = Mapping[int, float]  # trial number -> its value at the epoch of the decision
Rank = tuple[float, float]  # a value, then minus the validation loss, by which equal values are told apart


class Pruner(Protocol):
    """When a study decides, and how."""

    def decision_epochs(self, trial: int, max_epochs: int) -> tuple[int, ...]:
        """The epochs after which a trial waits for a decision; the last epoch needs none."""

    def goes_on(self, trial: int, max_epochs: int, values: Table) -> bool:
        """Whether `trial`, whose value is among `values`, trains on."""


@dataclass(frozen=True)
class NoPruner:
    """Every trial trains to its end."""

    def decision_epochs(self, trial: int, max_epochs: int) -> tuple[int, ...]:
        """There are none."""
        del trial, max_epochs
        return ()

    def goes_on(self, trial: int, max_epochs: int, values: Table) -> bool:
        """Always."""
        del trial, max_epochs, values
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

    def goes_on(self, trial: int, max_epochs: int, values: Table) -> bool:
        """Whether the trial is in the top `1 / eta` of its rung."""
        del max_epochs
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

    def goes_on(self, trial: int, max_epochs: int, values: Table) -> bool:
        """Never at once."""
        del trial, max_epochs, values
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

    def goes_on(self, trial: int, max_epochs: int, values: Table) -> bool:
        """Whether the trial is in the top `1 / eta` of its bracket's rung."""
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


@dataclass(frozen=True, kw_only=True)
class Median:
    """Stops a trial whose value is below the median of the others at the same epoch (Golovin et al., Vizier, 2017)."""

    warmup_epochs: int = 1
    min_trials: int = 5

    def decision_epochs(self, trial: int, max_epochs: int) -> tuple[int, ...]:
        """Every epoch after the warm-up but the last."""
        del trial
        return tuple(range(self.warmup_epochs + 1, max_epochs))

    def goes_on(self, trial: int, max_epochs: int, values: Table) -> bool:
        """Whether the trial is at least as good as the median of the others, or these are too few to tell."""
        del max_epochs
        others = [value for number, value in values.items() if number != trial]
        return len(others) < self.min_trials or values[trial] >= statistics.median(others)


PRUNERS: Mapping[str, Pruner] = {
    "asha": Asha(),
    "none": NoPruner(),
    "median": Median(),
    "hyperband": Hyperband(),
}


def make(text: str) -> Pruner:
    """The pruner of a study key's text.

    Raises:
        UnknownNameError: there is none of that name.
        ValueError: it takes no such argument.
    """
    name, colon, argument = text.partition(":")
    if name == "asha-pause":
        return AshaPause(min_epochs=_whole(argument, name) if colon else 1)
    if name not in PRUNERS:
        raise UnknownNameError("pruner", name, [*PRUNERS, "asha-pause"])
    if colon:
        raise ValueError(f"{name} takes no argument")
    return PRUNERS[name]


def _whole(text: str, name: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"expected {name}:EPOCHS, a whole number of at least 1")
    return int(text)

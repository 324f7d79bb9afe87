"""What trials are worth at each epoch, and who may be promoted: by one objective, or by several at once. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from orchestrator import pareto
from orchestrator.objectives import values_at, vector
from orchestrator.pruning import Ladder, Rung
from orchestrator.tables import State

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from orchestrator.objectives import Objective
    from orchestrator.pareto import Vector
    from orchestrator.pruning import Rank
    from orchestrator.tables import Epoch, Trial


class Rungs(Protocol):
    """The drawn trials of a study, as their epochs come in; one that failed stands in nobody's way to a promotion."""

    def add(self, number: int, epochs: Sequence[Epoch]) -> None:
        """Take in the last of a trial's epochs."""

    def put(self, trial: Trial, epochs: Sequence[Epoch]) -> None:
        """Take in how a trial stands now, with its epochs, which have all been added."""

    def rung(self, epoch: int) -> Rung[float]:
        """What the trials that trained an epoch were worth after it."""

    @property
    def ladder(self) -> Ladder:
        """Who may be promoted, where the pruner pauses."""

    def poorest_first(self, paused: Sequence[Trial]) -> list[Trial]:
        """Paused trials, those of the lowest rung first, on a rung the worst first."""


class ByValue:
    """By one objective, whose values are kept in order, so that a decision looks at few of them."""

    def __init__(self, objective: str, *, pauses: bool) -> None:
        self._objective, self._pauses = objective, pauses
        self._rungs: dict[int, Rung[float]] = {}  # epoch -> trial -> value
        self._num_epochs: dict[int, int] = {}  # paused trial -> its rung
        self.ladder = Ladder()

    def add(self, number: int, epochs: Sequence[Epoch]) -> None:
        """See `Rungs`."""
        last = epochs[-1]
        self._rungs.setdefault(last.number, Rung()).add(number, last.metrics[self._objective])
        if self._pauses:
            self.ladder.reach(number, last.number, self._rank(last))

    def put(self, trial: Trial, epochs: Sequence[Epoch]) -> None:
        """See `Rungs`."""
        if not self._pauses:
            return
        self.ladder.drop(trial.number)
        for epoch in epochs if trial.state is not State.FAILED else ():
            self.ladder.reach(trial.number, epoch.number, self._rank(epoch))
        if trial.state is State.PAUSED:
            self.ladder.pause(trial.number, len(epochs))
            self._num_epochs[trial.number] = len(epochs)

    def rung(self, epoch: int) -> Rung[float]:
        """See `Rungs`."""
        return self._rungs[epoch]

    def poorest_first(self, paused: Sequence[Trial]) -> list[Trial]:
        """See `Rungs`."""
        return sorted(paused, key=lambda trial: (self._num_epochs[trial.number], trial.value or 0.0, -trial.number))

    def _rank(self, epoch: Epoch) -> Rank:
        return epoch.metrics[self._objective], -epoch.metrics["val_loss"]


class ByFronts:
    """By several objectives: a trial is worth its place on the rung, the best having the highest.

    Places go by non-dominated fronts, as in MO-ASHA (Schmucker et al., https://arxiv.org/abs/2106.12639), in a front by
    crowding distance. A new trial may move all others, so that they are found anew for each decision.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = objectives
        self._vectors: dict[int, dict[int, Vector]] = {}  # epoch -> trial -> values
        self._failed: set[int] = set()
        self._paused: dict[int, int] = {}  # trial -> its rung

    def add(self, number: int, epochs: Sequence[Epoch]) -> None:
        """See `Rungs`."""
        values = values_at(epochs, len(epochs), self._objectives)
        self._vectors.setdefault(len(epochs), {})[number] = vector(values, self._objectives)

    def put(self, trial: Trial, epochs: Sequence[Epoch]) -> None:
        """See `Rungs`."""
        self._failed.discard(trial.number)
        self._paused.pop(trial.number, None)
        if trial.state is State.FAILED:
            self._failed.add(trial.number)
        elif trial.state is State.PAUSED:
            self._paused[trial.number] = len(epochs)

    def rung(self, epoch: int) -> Rung[float]:
        """See `Rungs`."""
        return Rung(self._places(epoch))

    @property
    def ladder(self) -> Ladder:
        """See `Rungs`."""
        ranks: dict[int, dict[int, Rank]] = {
            epoch: {number: (place, 0.0) for number, place in self._places(epoch, self._failed).items()}
            for epoch in set(self._paused.values())
        }
        return Ladder.of(self._paused, ranks)

    def poorest_first(self, paused: Sequence[Trial]) -> list[Trial]:
        """See `Rungs`."""
        places = {epoch: self._places(epoch) for epoch in set(self._paused.values())}

        def worth(trial: Trial) -> tuple[int, float]:
            epoch = self._paused[trial.number]
            return epoch, places[epoch][trial.number]

        return sorted(paused, key=worth)

    def _places(self, epoch: int, left_out: Collection[int] = ()) -> dict[int, float]:
        table = {number: each for number, each in self._vectors[epoch].items() if number not in left_out}
        return {number: -float(place) for place, number in enumerate(pareto.order(table))}

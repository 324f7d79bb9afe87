"""How the trials of a study stand: what the record holds of them, in the order that decisions need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator import pareto
from orchestrator.objectives import values_at, vector
from orchestrator.pruning import Ladder, Rung
from orchestrator.roster import Roster
from orchestrator.tables import Epoch, State, Trial

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.objectives import Objective
    from orchestrator.pareto import Vector
    from orchestrator.pruning import Rank
    from orchestrator.store import Record


class Standing:
    """Trials and their epochs by number; with `pauses`, also who stands on which rung and who may be promoted.

    Of several objectives a trial's value on a rung is its place there, the best having the highest: by non-dominated
    fronts as in MO-ASHA (Schmucker et al., https://arxiv.org/abs/2106.12639), in a front by crowding distance.
    """

    def __init__(
        self, record: Record, study_id: int, objective: str, objectives: Sequence[Objective] = (), *, pauses: bool
    ) -> None:
        """As the record has it."""
        self._record, self._study_id, self._objective, self._pauses = record, study_id, objective, pauses
        self.trials = Roster()
        self.epochs: dict[int, list[Epoch]] = record.epochs(study_id)
        self._rungs: dict[int, Rung[float]] = {}  # epoch -> trial -> value; of one objective
        self._ladder = Ladder()  # who may be promoted, where the pruner pauses
        self._objectives = objectives
        self._vectors: dict[int, dict[int, Vector]] = {}  # epoch -> trial -> values; of several objectives
        self._further: set[int] = set()  # trials that are further seeds of a leader: part of no search and of no rung
        self.read_trials()
        for number in self.drawn():
            for epoch in self.epochs.get(number, []):
                self._add_value(number, epoch)

    @property
    def num_drawn(self) -> int:
        """How many trials there are but for further seeds."""
        return len(self.trials) - len(self._further)

    def drawn(self) -> list[int]:
        """Their numbers, in order."""
        return sorted(self.trials.keys() - self._further)

    def read_trials(self) -> None:
        """Take all trials in anew."""
        for trial in self._record.trials(self._study_id):
            self.put(trial)

    def refresh(self, number: int) -> Trial:
        """Take one trial in as it is now."""
        trial = self._record.trial(self._study_id, number)
        assert trial is not None, f"trial {number} is in the record"
        self.put(trial)
        return trial

    def put(self, trial: Trial) -> None:
        """Take in a trial as it is now, and its place on the ladder; one that failed stands in nobody's way."""
        self.trials[trial.number] = trial
        if trial.confirms is not None:
            self._further.add(trial.number)
        elif self._pauses and not self._objectives:
            self._ladder.drop(trial.number)
            epochs = self.epochs.get(trial.number, []) if trial.state is not State.FAILED else []
            for epoch in epochs:
                self._ladder.reach(trial.number, epoch.number, self._rank(epoch))
            if trial.state is State.PAUSED:
                self._ladder.pause(trial.number, len(epochs))

    def add_epoch(self, number: int, epoch: Epoch) -> None:
        """Take in the next epoch of a trial, which the record has already."""
        self.epochs.setdefault(number, []).append(epoch)
        if number in self._further:
            return
        self._add_value(number, epoch)
        if self._pauses and not self._objectives:
            self._ladder.reach(number, epoch.number, self._rank(epoch))

    def _add_value(self, number: int, epoch: Epoch) -> None:
        if not self._objectives:
            self._rungs.setdefault(epoch.number, Rung()).add(number, epoch.metrics[self._objective])
            return
        values = values_at(self.epochs[number], epoch.number, self._objectives)
        self._vectors.setdefault(epoch.number, {})[number] = vector(values, self._objectives)

    def rung(self, epoch: int) -> Rung[float]:
        """What the trials that trained an epoch were worth after it."""
        return Rung(_places(self._vectors[epoch])) if self._objectives else self._rungs[epoch]

    @property
    def ladder(self) -> Ladder:
        """Who may be promoted, where the pruner pauses."""
        if not self._objectives:
            return self._ladder
        paused = {trial.number: len(self.epochs[trial.number]) for trial in self.trials.in_state(State.PAUSED)}
        return Ladder.of(paused, {epoch: self._ranks(epoch) for epoch in set(paused.values())})

    def _ranks(self, epoch: int) -> dict[int, Rank]:
        """Of several objectives, the ranks on a rung; those that failed stand in nobody's way."""
        vectors = self._vectors[epoch].items()
        there = {number: each for number, each in vectors if self.trials[number].state is not State.FAILED}
        return {number: (place, 0.0) for number, place in _places(there).items()}

    def poorest_first(self, trials: Sequence[Trial]) -> list[Trial]:
        """Paused trials, those of the lowest rung first, on a rung the worst first."""
        epochs = {trial.number: len(self.epochs[trial.number]) for trial in trials}
        places = {epoch: self.rung(epoch) for epoch in set(epochs.values())} if self._objectives else {}

        def worth(trial: Trial) -> float:
            return places[epochs[trial.number]][trial.number] if places else trial.value or 0.0

        return sorted(trials, key=lambda trial: (epochs[trial.number], worth(trial), -trial.number))

    def num_epochs(self) -> int:
        """How many epochs are trained in all."""
        return sum(map(len, self.epochs.values()))

    def _rank(self, epoch: Epoch) -> Rank:
        return epoch.metrics[self._objective], -epoch.metrics["val_loss"]


def _places(table: Mapping[int, Vector]) -> dict[int, float]:
    """Trial -> a number that is the higher the better it stands in a table."""
    return {number: -float(place) for place, number in enumerate(pareto.order(table))}

"""How the trials of a study stand: what the record holds of them, in the order that decisions need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.pruning import Ladder, Rung
from orchestrator.roster import Roster
from orchestrator.tables import Epoch, State, Trial

if TYPE_CHECKING:
    from orchestrator.pruning import Rank
    from orchestrator.store import Record


class Standing:
    """Trials and their epochs by number; with `pauses`, also who stands on which rung and who may be promoted."""

    def __init__(self, record: Record, study_id: int, objective: str, *, pauses: bool) -> None:
        """As the record has it."""
        self._record, self._study_id, self._objective, self._pauses = record, study_id, objective, pauses
        self.trials = Roster()
        self.epochs: dict[int, list[Epoch]] = record.epochs(study_id)
        self.rungs: dict[int, Rung[float]] = {}  # epoch -> trial -> value
        self.ladder = Ladder()  # who may be promoted, where the pruner pauses
        self._further: set[int] = set()  # trials that are further seeds of a leader: part of no search and of no rung
        self.read_trials()
        for number in self.drawn():
            for epoch in self.epochs.get(number, []):
                self.rungs.setdefault(epoch.number, Rung()).add(number, epoch.metrics[objective])

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
        elif self._pauses:
            self.ladder.drop(trial.number)
            epochs = self.epochs.get(trial.number, []) if trial.state is not State.FAILED else []
            for epoch in epochs:
                self.ladder.reach(trial.number, epoch.number, self._rank(epoch))
            if trial.state is State.PAUSED:
                self.ladder.pause(trial.number, len(epochs))

    def add_epoch(self, number: int, epoch: Epoch) -> None:
        """Take in the next epoch of a trial, which the record has already."""
        self.epochs.setdefault(number, []).append(epoch)
        if number in self._further:
            return
        self.rungs.setdefault(epoch.number, Rung()).add(number, epoch.metrics[self._objective])
        if self._pauses:
            self.ladder.reach(number, epoch.number, self._rank(epoch))

    def num_epochs(self) -> int:
        """How many epochs are trained in all."""
        return sum(map(len, self.epochs.values()))

    def _rank(self, epoch: Epoch) -> Rank:
        return epoch.metrics[self._objective], -epoch.metrics["val_loss"]

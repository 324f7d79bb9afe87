"""How the trials of a study stand: what the record holds of them, in the order that decisions need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.roster import Roster
from orchestrator.rungs import ByFronts, ByValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.objectives import Objective
    from orchestrator.rungs import Rungs
    from orchestrator.store import Record
    from orchestrator.tables import Epoch, Trial


class Standing:
    """Trials and their epochs by number; with `pauses`, `rungs` also say who may be promoted."""

    def __init__(
        self, record: Record, study_id: int, objective: str, objectives: Sequence[Objective] = (), *, pauses: bool
    ) -> None:
        """As the record has it."""
        self._record, self._study_id = record, study_id
        self.trials = Roster()
        self.epochs: dict[int, list[Epoch]] = {}
        self.rungs: Rungs = ByFronts(objectives) if objectives else ByValue(objective, pauses=pauses)
        trials = record.trials(study_id)
        # Trials that are further seeds of a leader: part of no search and of no rung.
        self._further = {trial.number for trial in trials if trial.confirms is not None}
        for number, epochs in record.epochs(study_id).items():
            for epoch in epochs:
                self.add_epoch(number, epoch)
        for trial in trials:
            self.put(trial)

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
        """Take in a trial as it is now."""
        self.trials[trial.number] = trial
        if trial.confirms is not None:
            self._further.add(trial.number)
        else:
            self.rungs.put(trial, self.epochs.get(trial.number, []))

    def add_epoch(self, number: int, epoch: Epoch) -> None:
        """Take in the next epoch of a trial, which the record has already."""
        epochs = self.epochs.setdefault(number, [])
        epochs.append(epoch)
        if number not in self._further:
            self.rungs.add(number, epochs)

    def num_epochs(self) -> int:
        """How many epochs are trained in all."""
        return sum(map(len, self.epochs.values()))

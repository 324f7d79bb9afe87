"""What samplers are shown of a long study: the latest of its results and the best, and all that is open.

A model of all results would cost ever more to fit. TPE takes for good the best tenth of the results, 25 at most, and
the rest for poor, the older the less they weigh (https://arxiv.org/abs/2304.11127): with the best `NUM_BEST` among what
it sees, the good ones are the same as if it saw all. Latest are those of the highest numbers, whenever they ended, so
that a resumed study shows the same. Up to `NUM_LATEST` results are all shown.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, insort
from typing import TYPE_CHECKING

from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from orchestrator.pareto import order

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from optuna.trial import FrozenTrial

NUM_LATEST, NUM_BEST = 1000, 100

_Worth = tuple[int, float, float, int]  # the lower the better; the trial's id is the last


class RecentStorage(InMemoryStorage):
    """Optuna's storage in memory, of one study; `reopen` takes back how a trial ended.

    With `everything`, samplers are shown all there is, however much. Of `several` objectives the best are the first in
    the order of `pareto.order`, which is found anew for each draw.
    """

    def __init__(self, *, everything: bool = False, several: bool = False) -> None:
        super().__init__()
        self._everything, self._several = everything, several
        self._open: set[int] = set()
        self._ended: list[int] = []  # ids of trials with a result, in order; they count up with the numbers
        self._ranked: list[_Worth] = []  # the same, the best first; of one objective
        self._best_of_several: list[int] | None = None

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See `BaseStorage`."""
        trial_id = super().create_new_trial(study_id, template_trial)
        if template_trial is None:
            self._open.add(trial_id)
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See `BaseStorage`."""
        done = super().set_trial_state_values(trial_id, state, values)
        if state is TrialState.RUNNING:
            self._open.add(trial_id)
        elif state.is_finished():
            self._open.discard(trial_id)
        if state in (TrialState.COMPLETE, TrialState.PRUNED):
            insort(self._ended, trial_id)
            self._best_of_several = None
            if not self._several:
                insort(self._ranked, _worth(self.get_trial(trial_id)))
        return done

    def reopen(self, trial_id: int) -> None:
        """Take back what was told of a trial: it runs again, as if it had never ended."""
        ended = self.get_trial(trial_id)
        if ended.state in (TrialState.COMPLETE, TrialState.PRUNED):
            del self._ended[bisect_left(self._ended, trial_id)]
            self._best_of_several = None
            if not self._several:
                del self._ranked[bisect_left(self._ranked, _worth(ended))]
        again = copy.copy(ended)
        again.state, again.values, again.datetime_complete = TrialState.RUNNING, None, None
        again.intermediate_values, again.system_attrs = {}, {}
        self._set_trial(trial_id, again)
        self._open.add(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Those that samplers are shown, by number; what failed teaches nothing and is left out."""
        if self._everything or states == (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        best = self._best(study_id) if len(self._ended) > NUM_LATEST else []
        shown = [self.get_trial(trial_id) for trial_id in sorted({*self._ended[-NUM_LATEST:], *best, *self._open})]
        found = [trial for trial in shown if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def _best(self, study_id: int) -> list[int]:
        if not self._several:
            return [trial_id for *_, trial_id in self._ranked[:NUM_BEST]]
        if self._best_of_several is None:
            signs = [1 if way is StudyDirection.MAXIMIZE else -1 for way in self.get_study_directions(study_id)]
            ended = map(self.get_trial, self._ended)
            self._best_of_several = order(
                {
                    trial._trial_id: tuple(sign * value for sign, value in zip(signs, trial.values, strict=True))
                    for trial in ended
                    if trial.state is TrialState.COMPLETE
                }
            )[:NUM_BEST]
        return self._best_of_several


def _worth(trial: FrozenTrial) -> _Worth:
    """Where a result stands in TPE's order: complete by value, then pruned by how far and how well, then impossible."""
    violation = sum(value for value in trial.constraints.values() if value > 0)
    if violation:
        return (2, violation, 0.0, trial._trial_id)
    if trial.state is TrialState.COMPLETE:
        return (0, -trial.values[0], 0.0, trial._trial_id)
    step, value = max(trial.intermediate_values.items(), default=(-1, 0.0))
    return (1, -step, -value, trial._trial_id)

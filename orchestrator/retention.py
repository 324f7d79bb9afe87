"""Which trials keep their weights when they have ended: `keep=`, over the whole sweep.

A trial whose weights are freed has no `best.safetensors` in its manifest any more, and its message says why. The record
says so before the file goes, so that nothing that it names is ever missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from orchestrator import compare
from orchestrator.objectives import of_spec
from orchestrator.tables import FREED, Promotion, State, Trial
from recipes.checkpoint import BEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from orchestrator import tables
    from orchestrator.attempt_files import AttemptFiles
    from orchestrator.budget import Budget
    from orchestrator.leases import Lease
    from orchestrator.settings import Settings
    from orchestrator.store import Record
    from orchestrator.tables import Epoch

ALL = "all"
_ENDED = (State.COMPLETE, State.PRUNED)


class Retention:
    """What the policy of one study keeps; whoever frees has the study's lease."""

    def __init__(
        self,
        budget: Budget,
        row: tables.Study,
        settings: Settings,
        record: Record,
        lease: Lease,
        files: AttemptFiles,
    ) -> None:
        self._budget, self._row, self._settings = budget, row, settings
        self._objectives = of_spec(row.spec)
        self._record, self._lease, self._files = record, lease, files
        self._having: dict[int, Trial] = {}  # those that have weights, which are few where there is a policy

    def ended(self, trials: Iterable[Trial], epochs: Mapping[int, Sequence[Epoch]]) -> list[Trial]:
        """Take in trials that have ended, and free what is not kept; return what was freed, as it is now."""
        if not (spare := self.spare(trials, epochs)):
            return []
        freed = self._record.free_files(self._lease, spare, BEST, f"{FREED}keep={self._budget.keep}")
        for trial in freed:
            self._files.drop_weights(trial.number)
            del self._having[trial.number]
        return freed

    def spare(self, trials: Iterable[Trial], epochs: Mapping[int, Sequence[Epoch]]) -> list[Trial]:
        """The trials, with those taken in before, whose weights are not kept."""
        if self._budget.keep == ALL:
            return []
        self._having |= {each.number: each for each in trials if each.state in _ENDED and not each.is_freed}
        leaders = compare.ranked(self._having.values(), epochs, self._objectives)
        kept = {trial.number for trial in leaders[: self._budget.num_kept]}
        spare = self._having.keys() - kept
        spare -= held(self._record, self._settings, self._row, spare) if spare else set()
        return [self._having[number] for number in sorted(spare)]


def held(record: Record, settings: Settings, row: tables.Study, numbers: Iterable[int]) -> set[int]:
    """Those of a study's trials that something else needs, whatever its policy: exported, promoted, confirmed, or the
    beginning (`init=`) of another.
    """
    with record.read() as session:
        promoted = set(session.scalars(select(Promotion.trial).where(Promotion.study == row.name)))
        further = select(Trial.confirms).where(Trial.study_id == row.id).distinct()
        confirmed = {number for number in session.scalars(further) if number is not None}
    return (promoted | confirmed | set(record.exports(row.id))) & set(numbers) | _begun_from(
        record, settings, row, numbers
    )


def _begun_from(record: Record, settings: Settings, row: tables.Study, numbers: Iterable[int]) -> set[int]:
    """Those trials in whose folders, or artifacts in MLflow, lie weights that some study begins with."""
    inits = {Path(each).resolve() for study in record.studies() for each in _inits(study.spec)}
    if not inits:
        return set()
    folders = {number: [settings.trial_folder(row.name, number)] for number in numbers}
    for number, run_id in record.run_ids(row.id).items():
        folders.get(number, []).append(settings.artifacts / run_id)
    below = {parent for init in inits for parent in init.parents}
    return {number for number, of in folders.items() if any(folder.resolve() in below for folder in of)}


def _inits(spec: Mapping[str, Any]) -> list[str]:
    """The files that a study may begin with."""
    given = [spec.get("fixed", {}), *spec.get("queue", ())]
    found = [each.get("init") for each in given] + list(spec.get("space", {}).get("init", {}).get("choices", ()))
    return [each for each in found if isinstance(each, str) and each.endswith(".safetensors")]

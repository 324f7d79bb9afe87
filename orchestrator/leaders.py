"""The leaders of a study as ONNX files, once its trials have ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from orchestrator import compare, tables
from orchestrator.executors import Event, Exported, ExportSpec, TrialFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from orchestrator.executors import Executor
    from orchestrator.leases import Lease
    from orchestrator.monitor import Monitor
    from orchestrator.settings import Settings
    from orchestrator.store import Record
    from orchestrator.study import Study


class Leaders:
    """Exports what `export=` asks for and the record lacks."""

    def __init__(
        self,
        study: Study,
        row: tables.Study,
        settings: Settings,
        record: Record,
        lease: Lease,
        monitor: Monitor,
    ) -> None:
        self._study, self._row, self._settings = study, row, settings
        self._record, self._lease, self._monitor = record, lease, monitor

    def missing(
        self, trials: Iterable[tables.Trial], epochs: Mapping[int, Sequence[tables.Epoch]]
    ) -> list[tables.Trial]:
        """The leaders whose export has not been tried."""
        leaders = compare.ranked(trials, epochs, self._study.objectives)[: self._study.budget.num_exports]
        tried = self._record.exports(self._row.id, failed=True)
        return [trial for trial in leaders if trial.number not in tried and not trial.is_freed]

    def export(
        self, trials: Sequence[tables.Trial], executor: Executor, next_events: Callable[[], list[Event]]
    ) -> None:
        """Export trials on the slots that training left; a model that cannot be exported is only a note."""
        if not trials:
            return
        self._monitor.note(f"exporting {len(trials)} leader(s) to ONNX")
        losses = 0
        queue, pending = list(trials), {trial.number: trial for trial in trials}
        while pending:
            for slot in executor.free_slots()[: len(queue)]:
                executor.submit(self._spec(queue.pop(0)), slot)
            for event in next_events():
                if isinstance(event, TrialFailed) and losses < self._study.budget.retries:
                    losses += 1
                    queue.append(pending[event.trial])
                    continue
                self._exported(pending.pop(event.trial), event)

    def _spec(self, trial: tables.Trial) -> ExportSpec:
        attempt = self._record.attempts(trial.id)[-1].number
        return ExportSpec(
            study=self._study.name,
            trial=trial.number,
            attempt=attempt,
            recipe=self._study.recipe,
            config=trial.config,
            folder=str(self._settings.attempt_folder(self._study.name, trial.number, attempt)),
        )

    def _exported(self, trial: tables.Trial, event: Event) -> None:
        if isinstance(event, TrialFailed):  # its worker was lost; the next run tries again
            self._monitor.note(f"trial {event.trial} was not exported: {event.message}")
            return
        assert isinstance(event, Exported), "only exports are under way"
        if event.error:
            self._monitor.note(f"trial {event.trial} was not exported: {event.error}")
        file = self._settings.attempt_folder(self._study.name, event.trial, event.attempt) / event.file
        export = tables.Export(
            trial_id=trial.id,
            file=str(file.relative_to(self._settings.home)),
            sha256=event.sha256,
            size_bytes=event.size_bytes,
            max_difference=event.max_difference,
            error=event.error or None,
            recorded_at=time.time(),
        )
        self._record.add_export(self._lease, trial, export)

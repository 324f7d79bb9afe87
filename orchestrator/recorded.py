"""A study in the record: written, recognised under its name, read back, deleted."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

from orchestrator import depot, provenance, starts, tables
from orchestrator.errors import UsageError
from orchestrator.leases import Holding, Lease, study_lease
from orchestrator.store import Record
from orchestrator.study import Study, differences

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.settings import Settings

PROVENANCE = "provenance"  # key of a study's spec, beside the fields of `Study`


def from_record(row: tables.Study) -> Study:
    """The study that a row of the record describes."""
    return Study.model_validate({key: value for key, value in row.spec.items() if key != PROVENANCE})


def write(record: Record, lease: Lease, study: Study) -> tables.Study:
    """Create the study's row, or bring its budget up to date; the total never falls below what is there."""
    spec = study.model_dump(mode="json")
    row = record.find_study(study.name)
    if row is None:
        return record.create_study(
            lease,
            tables.Study(
                name=study.name,
                recipe=study.recipe,
                data=study.data,
                spec={**spec, PROVENANCE: provenance.collect(study)},
                identity=study.identity,
                created_at=time.time(),
            ),
        )
    check_identity(row, study)  # it may have been written while we waited for the lease
    former = from_record(row)
    begun = {"queue": former.queue, "warm_start": former.warm_start, "known": former.known}
    study = study.model_copy(update=begun)
    if former != study:
        spec = study.model_dump(mode="json")
        record.update_study(lease, row.id, {**spec, PROVENANCE: row.spec[PROVENANCE]})
    return record.study(study.name)


def check_identity(row: tables.Study | None, study: Study) -> None:
    """See that a study is what is on record under its name, if anything is.

    Raises:
        UsageError: it differs in what may not change.
    """
    if row is None:
        return
    if row.identity != study.identity:
        lines = "; ".join(differences(row.identity, study.identity))
        raise UsageError(f"study {study.name!r} exists and differs ({lines}); name another with study=NAME")
    begun = from_record(row)
    if (study.queue and study.queue != begun.queue) or study.warm_start not in {"", begun.warm_start}:
        begins = "default_first, enqueue and warm_start are for the beginning of a study"
        raise UsageError(f"study {study.name!r} has begun otherwise; {begins}, name another with study=NAME")


def with_known(record: Record, study: Study, tell: Callable[[str], None]) -> Study:
    """The study with what its sampler learns from another one; it is kept, since the other may go on or away."""
    if study.warm_start == study.name:
        raise UsageError(f"warm_start={study.warm_start} is this study itself; name another with study=NAME")
    row = record.study(study.warm_start)
    trials, epochs = record.trials(row.id), record.epochs(row.id)
    known = starts.results_of(trials, epochs, study.space, study.objective, study.objectives)
    num_ended = sum(trial.state.finished for trial in trials)
    tell(f"the sampler knows {len(known)} trial(s) of {row.name}; {num_ended - len(known)} do not fit")
    return study.model_copy(update={"known": known})


def delete(settings: Settings, name: str) -> None:
    """Remove a study's mirrored runs, its rows and its files, in that order, so that a crash leaves it deletable.

    Raises:
        UnknownNameError: no such study.
        HeldError: it runs.
    """
    from orchestrator import mirror

    record = Record.open(settings.record_url)
    try:
        row = record.study(name)
        with Holding(record, study_lease(name)) as lease:
            mirror.remove(settings, name)
            record.delete_study(lease, row.id)
            folder, url = settings.study_folder(name), from_record(row).budget.checkpoints
            if kept := depot.of_study(url, name, row.created_at, folder):
                kept.remove()
            for each in (folder, settings.logs / name):
                shutil.rmtree(each, ignore_errors=True)
    finally:
        record.close()

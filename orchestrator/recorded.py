"""A study in the record: written, recognised under its name, read back, deleted."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

from orchestrator import depot, ledger, names, provenance, starts, tables
from orchestrator.errors import UsageError
from orchestrator.leases import Holding, Lease, study_lease
from orchestrator.store import Record
from orchestrator.study import Study, differences
from orchestrator.tables import ARCHIVED

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.settings import Settings

PROVENANCE = "provenance"  # key of a study's spec, beside the fields of `Study`
IMPORTED = "imported"  # the same of a study that was not begun here: where it comes from
BESIDE = (PROVENANCE, IMPORTED, ARCHIVED)


def from_record(row: tables.Study) -> Study:
    """The study that a row of the record describes.

    Raises:
        UsageError: it was imported.
    """
    check_trained_here(row)
    return Study.model_validate({key: value for key, value in row.spec.items() if key not in BESIDE})


def check_trained_here(row: tables.Study) -> None:
    """See that a study has a recipe and files.

    Raises:
        UsageError: it was imported.
    """
    if IMPORTED in row.spec:
        raise UsageError(
            f"study {row.name!r} was imported: it can be looked at, and known to another by warm_start={row.name}"
        )


def write(record: Record, lease: Lease, study: Study) -> tables.Study:
    """Create the study's row, or bring its budget up to date; the total never falls below what is there."""
    row = record.find_study(study.name)
    if row is None:
        return record.create_study(lease, new_row(study))
    check_identity(row, study)  # it may have been written while we waited for the lease
    former = from_record(row)
    study = as_begun(study, former)
    if former != study:
        spec = study.model_dump(mode="json")
        record.update_study(lease, row.id, {**spec, PROVENANCE: row.spec[PROVENANCE]})
    return record.study(study.name)


def new_row(study: Study) -> tables.Study:
    """The row of a study that begins now."""
    return tables.Study(
        name=study.name,
        recipe=study.recipe,
        data=study.data,
        spec={**study.model_dump(mode="json"), PROVENANCE: provenance.collect(study)},
        identity=study.identity,
        created_at=time.time(),
    )


def as_begun(study: Study, former: Study) -> Study:
    """A study with what it began with, which a later command does not change."""
    begun = ("queue", "warm_start", "known", "version")
    return study.model_copy(update={name: getattr(former, name) for name in begun})


def check_identity(row: tables.Study | None, study: Study) -> None:
    """See that a study is what is on record under its name, if anything is.

    Raises:
        UsageError: it differs in what may not change.
    """
    if row is None:
        return
    check_trained_here(row)
    if row.identity != study.identity:
        lines = "; ".join(differences(row.identity, study.identity))
        raise UsageError(
            f"study {study.name!r} exists and differs ({lines}); name another with study=NAME,"
            " or let `orch sweep --new-version` keep the trials that still fit"
        )
    begun = from_record(row)
    if (study.queue and study.queue != begun.queue) or study.warm_start not in {"", begun.warm_start}:
        begins = "default_first, enqueue and warm_start are for the beginning of a study"
        raise UsageError(f"study {study.name!r} has begun otherwise; {begins}, name another with study=NAME")


def with_known(record: Record, study: Study, tell: Callable[[str], None]) -> Study:
    """The study with what its sampler learns from another one; it is kept, since the other may go on or away."""
    if study.warm_start == study.name:
        raise UsageError(f"warm_start={study.warm_start} is this study itself; name another with study=NAME")
    row = names.named(record, study.warm_start)
    trials, epochs = record.trials(row.id), record.epochs(row.id)
    known = starts.results_of(trials, epochs, study.space, study.objective, study.objectives)
    num_ended = sum(trial.state.finished for trial in trials)
    tell(f"the sampler knows {len(known)} trial(s) of {row.name}; {num_ended - len(known)} do not fit")
    return study.model_copy(update={"known": known})


def archive(settings: Settings, name: str, *, restore: bool = False) -> str:
    """Put a study away, out of lists and of MLflow's UI, or `restore` it; nothing of it is lost. Return its name.

    MLflow goes on to list one of which a version was promoted. The record changes last, so that the same command ends
    what a crash has left half done.

    Raises:
        UnknownNameError: no such study.
        HeldError: it runs.
        UnavailableError: MLflow cannot be reached.
    """
    from orchestrator import mirror

    record = Record.open(settings.record_url)
    try:
        row = names.named(record, name)
        with Holding(record, study_lease(row.name)) as lease:
            # What MLflow does not list, `mlflow gc` removes; a version's files are nowhere else.
            if restore or not ledger.has_versions_of(record, row.name):
                mirror.show(settings, row.name, shown=restore)
            spec = {key: value for key, value in row.spec.items() if key != ARCHIVED}
            record.update_study(lease, row.id, spec if restore else {**spec, ARCHIVED: time.time()})
        return row.name
    finally:
        record.close()


def delete(settings: Settings, name: str) -> None:
    """Remove a study's mirrored runs, its rows and its files, in that order, so that a crash leaves it deletable.

    Raises:
        UnknownNameError: no such study.
        HeldError: it runs.
    """
    from orchestrator import mirror

    record = Record.open(settings.record_url)
    try:
        row = names.named(record, name)
        with Holding(record, study_lease(row.name)) as lease:
            mirror.remove(settings, row.name)
            record.delete_study(lease, row.id)
            folder, url = settings.study_folder(row.name), row.spec["budget"].get("checkpoints", "")
            if kept := depot.of_study(url, row.name, row.created_at, folder):
                kept.remove()
            for each in (folder, settings.logs / row.name):
                shutil.rmtree(each, ignore_errors=True)
    finally:
        record.close()

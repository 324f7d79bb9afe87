"""A new version of a study (`orchestrator.names`): what is searched changes, and trials that still fit are taken over.

They become trials of the new version with all that the record holds of them. Their files get second names on the disk.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator import names, recorded, tables
from orchestrator.errors import UnavailableError
from orchestrator.leases import Holding, study_lease
from orchestrator.starts import inside
from orchestrator.study import Version, check_name, differences, feasible
from orchestrator.tables import Attempt, Base, Change, ChangeRow, Epoch, Export, Reason, State
from recipes.files import link_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from orchestrator.feasible import Feasible
    from orchestrator.leases import Lease
    from orchestrator.settings import Settings
    from orchestrator.space import Scalar
    from orchestrator.store import Record
    from orchestrator.study import Study

# What a new version may change; if anything else of its identity differs, no trial fits.
CHANGEABLE = {"fixed", "space", "constraints"}

R = TypeVar("R", bound=Base)


@dataclass(frozen=True, kw_only=True)
class Next:
    """A version that is not on record yet, and what it takes over of the one before."""

    study: Study
    former: tables.Study
    taken: Sequence[tables.Trial]  # of the former
    trials: Sequence[tables.Trial]  # the same as trials of this one
    notes: list[str]


def meant(record: Record, study: Study) -> Study:
    """The study as the newest version of its name, if there is any.

    Raises:
        UnknownNameError: its name is that of a version, and there is none such.
    """
    if names.is_taken(record, study.name) or names.NUMBERED.search(study.name):
        return study.model_copy(update={"name": names.named(record, study.name).name})
    return study


def begin(record: Record, settings: Settings, study: Study, tell: Callable[[str], None]) -> Study:
    """Make a study the next version of the one on record under its name; return it as it is recorded.

    Files are in place before the one transaction that makes them count, so that a kill leaves the record as it was.
    Nothing is done where the newest version is this very study.

    Raises:
        UnknownNameError: there is no study of that name.
        UsageError: it was begun otherwise than by `orch sweep`.
        HeldError: it runs.
        UnavailableError: no space is left for the files.
    """
    former = record.study(study.name)
    with Holding(record, study_lease(former.name)) as lease:
        newest = names.named(record, names.family(former))
        if newest.identity == study.identity:
            tell(f"{newest.name} is that already; it goes on")
            return study.model_copy(update={"name": newest.name})
        record.requeue_running(lease, former.id)
        following = prepare(record, study)
        _link_files(settings, following)
        _write(record, settings, lease, following)
    for note in following.notes:
        tell(note)
    return following.study


def prepare(record: Record, study: Study) -> Next:
    """What would be the next version of the study on record under the name of `study`; nothing is written.

    Raises:
        UnknownNameError: there is no study of that name.
    """
    former = record.study(study.name)
    recorded.from_record(former)  # see that it is a study to go on with
    notes: list[str] = []
    name = _free_name(record, names.family(former))
    if study.warm_start:
        study = recorded.with_known(record, study, notes.append)
    taken, trials = _taken_over(record, former, study)
    version = Version(of=names.family(former), former=former.name, kept=tuple(trial.number for trial in taken))
    changed = differences(former.identity, study.identity)
    num_left = len(record.trials(former.id)) - len(taken)
    notes.insert(0, f"new version: {name} differs from {former.name} ({'; '.join(changed)})")
    notes.append(f"{len(taken)} trial(s) of {former.name} are kept, {num_left} do not fit")
    study = study.model_copy(update={"name": name, "version": version})
    return Next(study=study, former=former, taken=taken, trials=trials, notes=notes)


def _free_name(record: Record, first: str) -> str:
    return next(check_name(name) for number in count(2) if not record.find_study(name := f"{first}@{number}"))


def _taken_over(record: Record, former: tables.Study, study: Study) -> tuple[list[tables.Trial], list[tables.Trial]]:
    """The trials that fit, and the same as trials of the new version, numbered anew."""
    old, new = ({k: v for k, v in each.items() if k not in CHANGEABLE} for each in (former.identity, study.identity))
    if old != new:
        return [], []
    possible, is_elsewhere = feasible(study), bool(former.spec["budget"].get("checkpoints"))
    taken: list[tables.Trial] = []
    trials: list[tables.Trial] = []
    numbers: dict[int, int] = {}  # old -> new
    for trial in record.trials(former.id):
        params = _params(study, possible, trial) if trial.confirms is None else None
        if trial.confirms in numbers:  # a further seed of one that is kept
            params = trials[numbers[trial.confirms]].params
        # Checkpoints at a URL stay with the study that they are of: what would go on from one begins anew.
        if params is None or (is_elsewhere and not trial.state.finished):
            continue
        number = numbers[trial.number] = len(trials)
        confirms = None if trial.confirms is None else numbers[trial.confirms]
        taken.append(trial)
        trials.append(_copied(trial, id=None, study_id=None, number=number, params=params, confirms=confirms))
    return taken, trials


def _params(study: Study, possible: Feasible, trial: tables.Trial) -> dict[str, Scalar] | None:
    """What the study searches of a trial's configuration; None if it is not of the study, or had no result to keep."""
    if trial.state is State.FAILED and trial.reason in {Reason.ERROR, Reason.LOST}:
        return None
    params = inside(study.space, trial.config)
    if params is None or possible.complaint(params):
        return None
    mine, its = (study.identifying(each) for each in (study.config(params), trial.config))
    return params if _but(mine, params) == _but(its, params) else None


def _but(values: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, str]:
    """All other values, as text: `true` is not 1."""
    return {name: repr(value) for name, value in values.items() if name not in names}


def _copied(row: R, **changes: Any) -> R:
    """A new row like `row` but for `changes`."""
    values = {name: getattr(row, name) for name in row.__mapper__.column_attrs.keys()}  # noqa: SIM118
    return type(row)(**{**values, **changes})


def _link_files(settings: Settings, following: Next) -> None:
    """Give all files of the trials a second name, in the folders of the new version."""
    shutil.rmtree(settings.study_folder(following.study.name), ignore_errors=True)  # left by one who was killed here
    try:
        for source, target in _folders(settings, following):
            for file in source.rglob("*"):
                if file.is_file():
                    link_whole(file, target / file.relative_to(source))
    except OSError as error:
        raise UnavailableError(f"files of {following.former.name} cannot be kept: {error.strerror}") from error


def _folders(settings: Settings, following: Next) -> list[tuple[Path, Path]]:
    """Of each trial that is taken over, its folder in the former version and in the new one."""
    return [
        (
            settings.trial_folder(following.former.name, old.number),
            settings.trial_folder(following.study.name, new.number),
        )
        for old, new in zip(following.taken, following.trials, strict=True)
    ]


def _write(record: Record, settings: Settings, lease: Lease, following: Next) -> None:
    """Write the study and all that the record holds of its trials, in one transaction."""
    moved = [[folder.relative_to(settings.home) for folder in pair] for pair in _folders(settings, following)]
    belongings = _belongings(record, following)
    with record.write(lease) as session:
        row = recorded.new_row(following.study)
        session.add(row)
        session.flush()
        session.add(ChangeRow(study_id=row.id, kind=Change.STUDY))
        for trial, (source, target), of_trial in zip(following.trials, moved, belongings, strict=True):
            trial.study_id = row.id
            session.add(trial)
            session.flush()
            for each in of_trial:
                copy = _copied(each, trial_id=trial.id)
                if isinstance(copy, Export):
                    copy.file = str(target / Path(copy.file).relative_to(source))
                session.add(copy)
            session.add(ChangeRow(study_id=row.id, kind=Change.TRIAL, trial=trial.number))


def _belongings(record: Record, following: Next) -> list[list[Attempt | Epoch | Export]]:
    """The attempts, epochs and export of each trial that is taken over."""
    epochs, exports = record.epochs(following.former.id), record.exports(following.former.id, failed=True)
    return [
        [
            *record.attempts(trial.id),
            *epochs.get(trial.number, []),
            *([exports[trial.number]] if trial.number in exports else []),
        ]
        for trial in following.taken
    ]

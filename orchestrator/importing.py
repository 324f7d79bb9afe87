"""An existing Optuna study as a study of the record: to be looked at, and to be known to another (`warm_start=`).

Its parameters are the fields of its trials, by their names or others that are given; its values count as our objective.
The storage is only read.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from orchestrator import names, tables
from orchestrator.engines import cause, make_engine
from orchestrator.errors import UnavailableError, UnknownNameError, UsageError
from orchestrator.leases import Holding, study_lease
from orchestrator.recorded import IMPORTED, PROVENANCE
from orchestrator.store import Record
from orchestrator.study import check_name
from orchestrator.tables import Change, ChangeRow, Epoch, Reason, State
from recipes.config import OBJECTIVES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from optuna.trial import FrozenTrial
    from sqlalchemy import URL

    from orchestrator.leases import Lease
    from orchestrator.settings import Settings

ACCURACY = "val_accuracy"  # what values are, unless the study says otherwise
TABLES = ("studies", "trials", "version_info", "alembic_version")  # which Optuna's storage makes if they are missing


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A study as it was taken in."""

    study: str
    states: dict[str, int]  # of its trials, in Optuna's words
    fields: tuple[str, ...]

    @property
    def num_trials(self) -> int:
        """How many trials it has."""
        return sum(self.states.values())


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What an Optuna storage holds of a study."""

    address: str
    name: str
    metric: str
    trials: Sequence[FrozenTrial]

    @property
    def shift(self) -> int:
        """What makes its steps numbers of epochs, which count from 1."""
        return int(any(step == 0 for trial in self.trials for step in trial.intermediate_values))

    @property
    def task(self) -> dict[str, str]:
        """The field that says which objective of ours its values are; none is accuracy."""
        tasks = {metric: task for task, metric in OBJECTIVES.items()}
        return {} if self.metric == ACCURACY else {"task": tasks[self.metric]}


def import_study(
    settings: Settings, storage: str, name: str, *, target: str = "", renamed: Sequence[str] = ()
) -> Imported:
    """Take a study of an Optuna storage into the record, under the name `target` if it is to have another.

    `storage` is a URL or an SQLite file; `renamed` says PARAMETER=FIELD where a field has another name.

    Raises:
        UsageError: no such storage or study, one that is not of one value that is maximised, or a name that is taken.
        UnavailableError: a server cannot be reached.
    """
    target, url = check_name(target or name), _url(storage)
    if names.NUMBERED.search(target):
        raise UsageError(f"{target!r} is how a later version of a study is called; give this one another with --name")
    source = _read(url, name)
    fields = _fields(source.trials, renamed)
    if target == name and url == make_url(settings.optuna_url):
        raise UsageError(f"{storage} is where studies are mirrored, by their names; give this one another with --name")
    with closing(Record.open(settings.record_url, create=True)) as record:
        if names.is_taken(record, target):
            raise UsageError(f"there is a study {target!r} already; give this one another name with --name")
        with Holding(record, study_lease(target)) as lease:
            _write(record, lease, target, source, fields)
    states = Counter(trial.state.name.lower() for trial in source.trials)
    return Imported(study=target, states=dict(states), fields=tuple(fields.values()))


def _write(record: Record, lease: Lease, name: str, source: _Source, fields: Mapping[str, str]) -> None:
    with record.write(lease) as session:
        row = _study_row(name, source, fields)
        session.add(row)
        session.flush()
        session.add(ChangeRow(study_id=row.id, kind=Change.STUDY))
        for found in source.trials:
            trial = _trial_row(row.id, source, found, fields)
            session.add(trial)
            session.flush()
            session.add_all(_epoch_rows(trial, found, source))
            session.add(ChangeRow(study_id=row.id, kind=Change.TRIAL, trial=trial.number))


# -- reading


def _url(storage: str) -> URL:
    """The address of a storage; nothing is made where nothing is."""
    try:
        url = make_url(storage) if "://" in storage else make_url(f"sqlite:///{storage}")
    except (ArgumentError, ValueError) as error:  # its message may carry a password
        raise UsageError("the storage's URL is malformed; expected sqlite:///FILE, postgresql://HOST/NAME") from error
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise UsageError(f"there is no file {url.database or storage!r}")
    return url


def _read(url: URL, name: str) -> _Source:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    address = url.render_as_string()
    try:
        _check_tables(url, address)
        storage = RDBStorage(url.render_as_string(hide_password=False), skip_table_creation=True)
        known = {study.study_name: study for study in storage.get_all_studies()}
        if name not in known:
            raise UnknownNameError(f"study in {address}", name, known)
        study = known[name]
        if study.directions != [StudyDirection.MAXIMIZE]:
            told = ", ".join(direction.name.lower() for direction in study.directions)
            raise UsageError(f"study {name!r} has the objectives {told}; one that is maximised can be taken in")
        trials = storage.get_all_trials(study._study_id, deepcopy=False)
        (metric,) = study.system_attrs.get("study:metric_names", [ACCURACY])
        storage.engine.dispose()
    except DBAPIError as error:
        wrong = UsageError if url.get_backend_name() == "sqlite" else UnavailableError
        raise wrong(f"{address} cannot be read: {cause(error)}") from error
    except (SQLAlchemyError, RuntimeError) as error:
        raise UsageError(f"{address} cannot be read: {str(error).splitlines()[0]}") from error
    metric = metric if metric in OBJECTIVES.values() else ACCURACY
    return _Source(address=address, name=name, metric=metric, trials=trials)


def _check_tables(url: URL, address: str) -> None:
    engine = make_engine(url)
    try:
        there = inspect(engine).get_table_names()
    finally:
        engine.dispose()
    if missing := [name for name in TABLES if name not in there]:
        raise UsageError(f"{address} is no storage of Optuna's: it has no table {missing[0]!r}")


def _fields(trials: Sequence[FrozenTrial], renamed: Sequence[str]) -> dict[str, str]:
    """Parameter -> field."""
    fields = {name: name for trial in trials for name in trial.params}
    for text in renamed:
        name, _, field = text.partition("=")
        if not field:
            raise UsageError(f"--rename {text}: expected PARAMETER=FIELD, as in learning_rate=lr")
        if name not in fields:
            raise UnknownNameError("parameter", name, fields)
        fields[name] = field
    if len(set(fields.values())) < len(fields):
        twice = next(field for field, count in Counter(fields.values()).items() if count > 1)
        raise UsageError(f"two parameters would be field {twice!r}")
    return fields


# -- rows


def _study_row(name: str, source: _Source, fields: Mapping[str, str]) -> tables.Study:
    given = {key: each for trial in source.trials for key, each in trial.distributions.items()}
    spec = {
        "name": name,
        "fixed": source.task,
        "space": {field: _searched(given[key]) for key, field in fields.items()},
        "budget": {"trials": len(source.trials)},
        IMPORTED: {"storage": source.address, "study": source.name},
        PROVENANCE: {"versions": {package: version(package) for package in ("orch", "optuna")}},
    }
    return tables.Study(name=name, recipe="optuna", data="", spec=spec, identity={}, created_at=time.time())


def _searched(given: BaseDistribution) -> dict[str, Any]:
    """What Optuna drew a parameter from, as the record has it."""
    match given:
        case CategoricalDistribution():
            return {"choices": [_plain(choice) for choice in given.choices]}
        case IntDistribution() | FloatDistribution():
            number = {"low": given.low, "high": given.high, "log": given.log, "step": given.step or 0}
            return {**number, "integer": isinstance(given, IntDistribution)}
    raise UsageError(f"parameters drawn from {type(given).__name__} cannot be taken in")


def _trial_row(study_id: int, source: _Source, found: FrozenTrial, fields: Mapping[str, str]) -> tables.Trial:
    params = {fields[name]: _plain(value) for name, value in found.params.items()}
    state, reason, message = _outcome(found)
    values = _values(found, source.shift)
    best = max(values, key=lambda number: (values[number], -number), default=None)
    started_at, ended_at = map(_seconds, (found.datetime_start, found.datetime_complete))
    return tables.Trial(
        study_id=study_id,
        number=found.number,
        state=state,
        params=params,
        config={**source.task, **params},
        threads=1,
        value=found.value if state is State.COMPLETE else values[best] if best and state is State.PRUNED else None,
        best_epoch=best if state is not State.FAILED else None,
        reason=reason,
        message=message,
        created_at=started_at or time.time(),
        started_at=started_at,
        ended_at=ended_at or started_at or time.time(),
    )


def _outcome(found: FrozenTrial) -> tuple[State, Reason | None, str | None]:
    """How a trial ended; what has not will never do so here."""
    match found.state:
        case TrialState.COMPLETE if not math.isfinite(found.value or 0.0):
            return State.FAILED, Reason.DIVERGED, f"its value is {found.value}"
        case TrialState.COMPLETE:
            return State.COMPLETE, None, None
        case TrialState.PRUNED:
            return State.PRUNED, None, None
        case TrialState.FAIL:
            return State.FAILED, Reason.ERROR, "it failed in Optuna"
    did = "ran" if found.state is TrialState.RUNNING else "waited"
    return State.FAILED, Reason.LOST, f"it {did} when it was taken in from Optuna"


def _values(found: FrozenTrial, shift: int) -> dict[int, float]:
    """Epoch -> value; a complete trial that reported nothing has its value in its only epoch."""
    reported = {step + shift: value for step, value in sorted(found.intermediate_values.items())}
    if not reported and found.state is TrialState.COMPLETE and found.value is not None:
        reported = {1: found.value}
    return {number: value for number, value in reported.items() if math.isfinite(value)}


def _epoch_rows(trial: tables.Trial, found: FrozenTrial, source: _Source) -> list[Epoch]:
    """Epochs of equal length over the time that the trial took."""
    values = _values(found, source.shift)
    begun_at, ended_at = trial.created_at, trial.ended_at or trial.created_at
    seconds = (ended_at - begun_at) / max(1, len(values))
    return [
        Epoch(
            trial_id=trial.id,
            number=number,
            attempt=1,
            metrics={source.metric: value},
            seconds=seconds,
            recorded_at=begun_at + place * seconds,
        )
        for place, (number, value) in enumerate(values.items(), 1)
    ]


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None


def _plain(value: Any) -> Any:
    """A value that JSON has."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

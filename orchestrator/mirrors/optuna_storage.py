"""Optuna's view of a study: a storage with the same trial numbers, for optuna-dashboard and `optuna.load_study`.

Optuna numbers trials as they arrive and never changes one that ended; trials are therefore added in the record's order
and ended once all of their epochs are there. Optuna knows no pause and no second attempt: such a trial runs.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event, make_url
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import UnavailableError
from orchestrator.mirrors import finite_or_none, opening, prepare_sqlite, study_key
from orchestrator.objectives import of_spec, values_at
from orchestrator.tables import State
from recipes.config import objective_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping, Sequence

    from orchestrator.mirrors import Place, Progress, Snapshot
    from orchestrator.tables import Epoch, Study, Trial

KEY = "orch.study_id"  # user attribute of a study: whose it is
NUMBER = "orch.trial"  # user attribute of a trial: its number in the record

_DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
_STATES = {State.COMPLETE: TrialState.COMPLETE, State.PRUNED: TrialState.PRUNED, State.FAILED: TrialState.FAIL}


@dataclass
class _Mirrored:
    """What the storage holds of a trial."""

    id: int
    ended: bool
    epochs: set[int]


class OptunaStorage:
    """The target `optuna`."""

    def __init__(self, place: Place) -> None:
        self._settings, self._study = place.settings, place.study
        self._storage: RDBStorage | None = None
        self._study_id = -1
        self._trials: dict[int, _Mirrored] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def open(self, progress: Mapping[int, Progress]) -> set[int]:
        """Open the storage, create the study, and read what it holds; see `Target.open`."""
        with self._translated():
            self._storage = self._connect()
            self._study_id = self._find_study(self._storage)
            self._trials = self._read_trials(self._storage)
        return {number for number, trial in progress.items() if self._lacks(number, trial)}

    def apply(self, study: Study, trials: Sequence[Snapshot]) -> None:
        """Write what is missing; see `Target.apply`."""
        assert self._storage is not None, "opened"
        with self._translated():
            for snapshot in trials:
                self._apply(self._storage, study, snapshot)

    def close(self) -> None:
        """Give the connections back."""
        if self._storage is not None:
            self._storage.remove_session()
            self._storage.engine.dispose()
            self._storage = None

    def remove(self) -> None:
        """Delete the study, if it is this one."""
        with self._translated():
            storage = self._storage = self._connect()
            name, key = self._study.name, study_key(self._study)
            if any(
                found.study_name == name and found.user_attrs.get(KEY) == key for found in storage.get_all_studies()
            ):
                storage.delete_study(storage.get_study_id_from_name(name))
        self.close()

    def _connect(self) -> RDBStorage:
        self.close()
        url = self._settings.optuna_url
        with opening(self._settings):
            prepare_sqlite(url)
            storage = RDBStorage(url)
        if make_url(url).get_backend_name() == "sqlite":
            event.listen(storage.engine, "connect", _sync_less)
            storage.engine.dispose()
        return storage

    def _find_study(self, storage: RDBStorage) -> int:
        """The id of the study, new if it is missing; one of its name that the record no longer has makes way."""
        name, key = self._study.name, study_key(self._study)
        named = of_spec(self._study.spec)
        directions = [_DIRECTIONS[each.direction] for each in named] or [StudyDirection.MAXIMIZE]
        metrics = [each.name for each in named] or [objective_of(self._study.spec.get("fixed", {}))]
        try:
            found = storage.get_study_id_from_name(name)
        except KeyError:
            found = storage.create_new_study(directions, name)
        owner = storage.get_study_user_attrs(found).get(KEY)
        if owner not in {None, key}:
            storage.delete_study(found)
            found = storage.create_new_study(directions, name)
        if owner != key:
            storage.set_study_user_attr(found, "recipe", self._study.recipe)
            storage.set_study_user_attr(found, "data", self._study.data)
            storage.set_study_system_attr(found, "study:metric_names", metrics)
            storage.set_study_user_attr(found, KEY, key)  # the last: a study without it is begun again
        return found

    def _read_trials(self, storage: RDBStorage) -> dict[int, _Mirrored]:
        trials = storage.get_all_trials(self._study_id, deepcopy=False)
        if any(trial.user_attrs.get(NUMBER) != trial.number for trial in trials):
            raise UnavailableError(
                f"study {self._study.name!r} in {_address(self._settings.optuna_url)} holds trials that are not orch's;"
                f" rename or delete it there, then `orch sync {self._study.name}`"
            )
        return {
            trial.number: _Mirrored(trial._trial_id, trial.state.is_finished(), set(trial.intermediate_values))
            for trial in trials
        }

    def _lacks(self, number: int, trial: Progress) -> bool:
        mirrored = self._trials.get(number)
        if mirrored is None:
            return True
        return not mirrored.ended and (trial.state.finished or len(mirrored.epochs) < trial.num_epochs)

    def _apply(self, storage: RDBStorage, study: Study, snapshot: Snapshot) -> None:
        trial = snapshot.trial
        mirrored = self._trials.get(trial.number)
        if mirrored is None:
            assert trial.number == len(self._trials), "trials come in order"
            mirrored = self._trials[trial.number] = self._add(storage, study, snapshot)
        if mirrored.ended:
            return
        for epoch in snapshot.epochs:
            if epoch.number not in mirrored.epochs:
                storage.set_trial_intermediate_value(mirrored.id, epoch.number, _value(snapshot.trial, epoch))
                mirrored.epochs.add(epoch.number)
        if trial.state.finished:
            storage.set_trial_state_values(mirrored.id, *_outcome(study, snapshot))
            mirrored.ended = True

    def _add(self, storage: RDBStorage, study: Study, snapshot: Snapshot) -> _Mirrored:
        """Add a trial; one that ended already is added whole, and so keeps its times."""
        template = _freeze(study, snapshot)
        trial_id = storage.create_new_trial(self._study_id, template)
        if storage.get_trial_number_from_id(trial_id) != snapshot.trial.number:
            raise UnavailableError(f"someone else adds trials to study {study.name!r} in {self._settings.optuna_url}")
        return _Mirrored(trial_id, template.state.is_finished(), set(template.intermediate_values))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
            cause = str(error.__cause__ or error).strip().splitlines()[0]
            raise UnavailableError(f"{_address(self._settings.optuna_url)} is not usable: {cause}") from error


def distribution(searched: Mapping[str, Any]) -> BaseDistribution:
    """Optuna's form of a searched field: `choices`, or `low` and `high` with or without `log`, `step`, `integer`."""
    if "choices" in searched:
        return CategoricalDistribution(tuple(searched["choices"]))
    low, high, log = searched["low"], searched["high"], bool(searched.get("log"))
    step = None if log else searched.get("step") or None
    if searched.get("integer"):
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=log, step=step)


def _freeze(study: Study, snapshot: Snapshot) -> FrozenTrial:
    trial = snapshot.trial
    searched = {name: distribution(space) for name, space in study.spec.get("space", {}).items()}
    params = {name: value for name, value in trial.params.items() if name in searched and _fits(searched[name], value)}
    state, values = _outcome(study, snapshot) if trial.state.finished else (TrialState.RUNNING, None)
    return FrozenTrial(
        number=trial.number,
        trial_id=-1,
        state=state,
        value=None,
        values=values,
        datetime_start=datetime.fromtimestamp(trial.started_at or trial.created_at),
        datetime_complete=datetime.fromtimestamp(trial.ended_at) if trial.ended_at and state.is_finished() else None,
        params=params,
        distributions={name: searched[name] for name in params},
        user_attrs={NUMBER: trial.number, "config": trial.config},
        system_attrs={},
        intermediate_values={epoch.number: _value(snapshot.trial, epoch) for epoch in snapshot.epochs},
    )


def _outcome(study: Study, snapshot: Snapshot) -> tuple[TrialState, list[float] | None]:
    """Optuna's state and values of an ended trial; it would take an infinite value for the best."""
    trial = snapshot.trial
    value = finite_or_none(trial.value)
    if trial.state is State.FAILED or value is None:
        return TrialState.FAIL, None
    named = of_spec(study.spec)
    values = list(values_at(snapshot.epochs, trial.best_epoch or 0, named).values()) if named else [value]
    return _STATES[trial.state], values


def _fits(searched: BaseDistribution, value: Any) -> bool:
    try:
        return math.isfinite(searched.to_internal_repr(value))
    except ValueError:
        return False


def _value(trial: Trial, epoch: Epoch) -> float:
    value = epoch.metrics.get(objective_of(trial.config))
    return float("nan") if value is None else float(value)


def _address(url: str) -> str:
    return make_url(url).render_as_string()


def _sync_less(connection: sqlite3.Connection, _: object) -> None:
    # A power cut may take the last trials off this mirror, but never harms it; `open` finds out and writes them again.
    connection.execute("PRAGMA synchronous=NORMAL")

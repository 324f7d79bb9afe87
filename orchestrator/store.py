"""The record: studies, trials, attempts, epochs, exports, promotions and leases, in SQLAlchemy (`orchestrator.tables`).

It is the one truth. Optuna searches over it; MLflow, an Optuna storage and TensorBoard mirror it. SQLite by default,
PostgreSQL by URL. All times are Unix seconds. Rows come back detached: read them, never write them.

Every write of a sweep goes through `Database.write(lease)`, which checks the lease's fencing token in the same
transaction, and leaves a row in `changes`, from which the mirrors follow the record.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import case, delete, func, select

from orchestrator.database import Database, through_restarts
from orchestrator.errors import NothingRecordedError, UnknownNameError
from orchestrator.tables import (
    Attempt,
    Base,
    Change,
    ChangeRow,
    Command,
    Cursor,
    Epoch,
    Export,
    Launch,
    MirrorRun,
    Reason,
    Sample,
    State,
    Study,
    Trial,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from orchestrator.leases import Lease

_EPOCHS, _CHANGES = (Base.metadata.tables[kind.__tablename__] for kind in (Epoch, ChangeRow))
_EPOCH_KEYS = select(_EPOCHS.c.trial_id, _EPOCHS.c.number)


class _Start(NamedTuple):
    """Where and when an attempt begins, and of which launch it is."""

    worker: str
    device: str
    launch: int | None
    at: float


class Record(Database):
    """All that is read and written. Threads may share it; processes open their own."""

    # -- reading

    @through_restarts
    def find_study(self, name: str) -> Study | None:
        """The study called `name`, or None."""
        with self.read() as session:
            return session.scalar(select(Study).where(Study.name == name))

    def study(self, name: str) -> Study:
        """The study called `name`.

        Raises:
            UnknownNameError: there is none.
        """
        found = self.find_study(name)
        if found is None:
            raise UnknownNameError("study", name, [study.name for study in self.studies()])
        return found

    def newest_study(self) -> Study:
        """The study that was created last, but for those that are archived.

        Raises:
            UsageError: there is none.
        """
        studies = [study for study in self.studies() if not study.is_archived]
        if not studies:
            raise NothingRecordedError("no study has been recorded yet; start one with `orch sweep`")
        return studies[-1]

    @through_restarts
    def studies(self) -> Sequence[Study]:
        """All studies, the newest last."""
        with self.read() as session:
            return session.scalars(select(Study).order_by(Study.id)).all()

    @through_restarts
    def trials(self, study_id: int) -> Sequence[Trial]:
        """All trials of a study by number."""
        with self.read() as session:
            return session.scalars(select(Trial).where(Trial.study_id == study_id).order_by(Trial.number)).all()

    @through_restarts
    def trial(self, study_id: int, number: int) -> Trial | None:
        """One trial of a study, or None."""
        with self.read() as session:
            return session.scalar(select(Trial).where(Trial.study_id == study_id, Trial.number == number))

    @through_restarts
    def attempts(self, trial_id: int) -> Sequence[Attempt]:
        """All attempts at a trial, the first first."""
        with self.read() as session:
            return session.scalars(select(Attempt).where(Attempt.trial_id == trial_id).order_by(Attempt.number)).all()

    @through_restarts
    def provenance(self, study: Study, attempt: Attempt) -> dict[str, Any]:
        """What an attempt ran with; where it is from before that was kept, what its study began with."""
        with self.read() as session:
            launch = session.get(Launch, attempt.launch) if attempt.launch is not None else None
            return dict(launch.provenance if launch else study.spec.get("provenance", {}))

    @through_restarts
    def samples(self, trial_id: int) -> Sequence[Sample]:
        """How busy the machine was while a trial trained, in order."""
        with self.read() as session:
            return session.scalars(select(Sample).where(Sample.trial_id == trial_id).order_by(Sample.recorded_at)).all()

    @through_restarts
    def attempts_of_study(self, study_id: int) -> dict[int, list[Attempt]]:
        """Trial number -> all attempts at it, the first first."""
        query = select(Trial.number, Attempt).join(Trial, Trial.id == Attempt.trial_id)
        found: dict[int, list[Attempt]] = {}
        with self.read() as session:
            for number, attempt in session.execute(query.where(Trial.study_id == study_id).order_by(Attempt.number)):
                found.setdefault(number, []).append(attempt)
        return found

    @through_restarts
    def ran_out(self, study_id: int) -> set[int]:
        """Numbers of the trials of which an attempt ran out of memory."""
        query = select(Trial.number).join(Attempt, Attempt.trial_id == Trial.id)
        with self.read() as session:
            return set(session.scalars(query.where(Trial.study_id == study_id, Attempt.reason == Reason.OOM)))

    @through_restarts
    def epochs(self, study_id: int) -> dict[int, list[Epoch]]:
        """Trial number -> its recorded epochs in order, for all trials of a study that have any."""
        query = (
            select(Trial.number, Epoch)
            .join(Trial, Trial.id == Epoch.trial_id)
            .where(Trial.study_id == study_id)
            .order_by(Trial.number, Epoch.number)
        )
        found: dict[int, list[Epoch]] = {}
        with self.read() as session:
            for number, epoch in session.execute(query):
                found.setdefault(number, []).append(epoch)
        return found

    @through_restarts
    def epochs_of(self, trial_id: int) -> Sequence[Epoch]:
        """The recorded epochs of one trial in order."""
        with self.read() as session:
            return session.scalars(select(Epoch).where(Epoch.trial_id == trial_id).order_by(Epoch.number)).all()

    @through_restarts
    def telling_epochs(self, study_id: int) -> dict[int, list[Epoch]]:
        """What tells how good the trials of a study are: `epochs` with their `number` and `metrics` alone.

        A trial with a result has but one, its best, with what the first told and it did not, such as the model's size.
        """
        has_result = Trial.state.in_([State.COMPLETE, State.PRUNED]) & Trial.best_epoch.is_not(None)
        best = case((has_result, Trial.best_epoch))
        query = (
            select(Trial.number, best, Epoch.number, Epoch.metrics)  # no objects: they take as long again
            .join(Trial, Trial.id == Epoch.trial_id)
            .where(Trial.study_id == study_id, best.is_(None) | Epoch.number.in_([1, best]))
            .order_by(Trial.number, Epoch.number)
        )
        found: dict[int, list[Epoch]] = {}
        first: dict[int, dict[str, Any]] = {}
        with self.read() as session:
            for trial, best_epoch, number, metrics in session.execute(query):
                if best_epoch is None:
                    found.setdefault(trial, []).append(Epoch(number=number, metrics=metrics))
                elif number == best_epoch:
                    found[trial] = [Epoch(number=number, metrics=first.get(trial, {}) | metrics)]
                else:
                    first = {trial: metrics}
        return found

    @through_restarts
    def totals(self, study_id: int) -> dict[int, tuple[int, float]]:
        """Trial number -> how many epochs it has, and how many seconds they took."""
        query = (
            select(Trial.number, func.count(), func.sum(Epoch.seconds))
            .join(Trial, Trial.id == Epoch.trial_id)
            .where(Trial.study_id == study_id)
            .group_by(Trial.number)
        )
        with self.read() as session:
            return {number: (count, seconds) for number, count, seconds in session.execute(query)}

    @through_restarts
    def exports(self, study_id: int, *, failed: bool = False) -> dict[int, Export]:
        """Trial number -> its export; with `failed`, also those that could not be made."""
        query = select(Trial.number, Export).join(Trial, Trial.id == Export.trial_id).where(Trial.study_id == study_id)
        if not failed:
            query = query.where(Export.error.is_(None))
        with self.read() as session:
            return dict(session.execute(query).all())

    @through_restarts
    def launches(self, study_id: int, after: int = 0) -> Sequence[Launch]:
        """All launches of a study, the first first, or those behind the one that has the id `after`."""
        query = select(Launch).where(Launch.study_id == study_id, Launch.id > after).order_by(Launch.id)
        with self.read() as session:
            return session.scalars(query).all()

    @through_restarts
    def run_ids(self, study_id: int) -> dict[int, str]:
        """Trial number (or `PARENT`) -> MLflow run id, as far as the mirror has come."""
        with self.read() as session:
            runs = session.scalars(select(MirrorRun).where(MirrorRun.study_id == study_id))
            return {run.trial: run.run_id for run in runs}

    @through_restarts
    def commands(self, study_id: int) -> Sequence[Command]:
        """What is asked of the process that runs a study and is not answered, the oldest first."""
        query = select(Command).where(Command.study_id == study_id, Command.answer.is_(None)).order_by(Command.id)
        with self.read() as session:
            return session.scalars(query).all()

    @through_restarts
    def answer(self, command_id: int) -> str | None:
        """What came of a command, or None while nothing has."""
        with self.read() as session:
            return session.scalar(select(Command.answer).where(Command.id == command_id))

    @through_restarts
    def changes(self, study_id: int, after: int, limit: int = 1000) -> Sequence[ChangeRow]:
        """The next rows of a study's change log behind `after`."""
        query = (
            select(ChangeRow)
            .where(ChangeRow.study_id == study_id, ChangeRow.seq > after)
            .order_by(ChangeRow.seq)
            .limit(limit)
        )
        with self.read() as session:
            return session.scalars(query).all()

    # -- writing

    def create_study(self, lease: Lease, study: Study) -> Study:
        """Write a new study; its `id` is set on return."""
        with self.write(lease) as session:
            session.add(study)
            session.flush()
            session.add(ChangeRow(study_id=study.id, kind=Change.STUDY))
        return study

    def add_launch(self, lease: Lease, study_id: int, provenance: dict[str, Any]) -> Launch:
        """Write what a study is trained with from now on."""
        return self._add_launch(lease, study_id, provenance, time.time())

    @through_restarts
    def update_study(self, lease: Lease, study_id: int, spec: dict[str, Any]) -> None:
        """Replace what a study may change: trials, workers, timeout, export."""
        with self.write(lease) as session:
            session.get_one(Study, study_id).spec = spec
            session.add(ChangeRow(study_id=study_id, kind=Change.STUDY))

    def add_trial(
        self,
        lease: Lease,
        study_id: int,
        *,
        params: dict[str, Any],
        config: dict[str, Any],
        threads: int,
        confirms: int | None = None,
    ) -> Trial:
        """Write the next trial of a study, waiting; the record gives it its number."""
        new = {"study_id": study_id, "params": params, "config": config, "threads": threads, "confirms": confirms}
        return self._add_trial(lease, new, time.time())

    def start_trial(
        self,
        lease: Lease,
        study_id: int,
        *,
        params: dict[str, Any],
        config: dict[str, Any],
        threads: int,
        worker: str,
        device: str = "cpu",
        launch: int | None = None,
    ) -> tuple[Trial, Attempt]:
        """Write the next trial of a study and that it is tried on `worker`, in one transaction."""
        new = {"study_id": study_id, "params": params, "config": config, "threads": threads, "confirms": None}
        return self._start_trial(lease, new, _Start(worker, device, launch, time.time()))

    def start_attempt(
        self, lease: Lease, trial: Trial, worker: str, device: str = "cpu", launch: int | None = None
    ) -> tuple[Trial, Attempt]:
        """Write that a trial is tried (again) on `worker`; return it as it is now."""
        return self._start_attempt(lease, trial.id, _Start(worker, device, launch, time.time()))

    @through_restarts
    def _add_launch(self, lease: Lease, study_id: int, provenance: dict[str, Any], now: float) -> Launch:
        with self.write(lease) as session:
            last = session.scalar(select(Launch).where(Launch.study_id == study_id).order_by(Launch.id.desc()).limit(1))
            if last is not None and last.started_at == now:
                return last  # its answer got lost
            launch = Launch(study_id=study_id, provenance=provenance, started_at=now)
            session.add(launch)
            session.add(ChangeRow(study_id=study_id, kind=Change.STUDY))
            return launch

    @through_restarts
    def _add_trial(self, lease: Lease, new: dict[str, Any], now: float) -> Trial:
        with self.write(lease) as session:
            return _insert_trial(session, new, now)

    @through_restarts
    def _start_trial(self, lease: Lease, new: dict[str, Any], start: _Start) -> tuple[Trial, Attempt]:
        with self.write(lease) as session:
            trial = _insert_trial(session, new, start.at)
            return trial, _insert_attempt(session, trial, start)

    @through_restarts
    def _start_attempt(self, lease: Lease, trial_id: int, start: _Start) -> tuple[Trial, Attempt]:
        with self.write(lease) as session:
            trial = session.get_one(Trial, trial_id)
            return trial, _insert_attempt(session, trial, start)

    def add_epochs(self, lease: Lease, trial: Trial, epochs: Iterable[Epoch]) -> None:
        """Write finished epochs of one trial; one that is there already keeps its first values."""
        self.add_epochs_of(lease, [(trial, epoch) for epoch in epochs])

    @through_restarts
    def add_epochs_of(self, lease: Lease, epochs: Sequence[tuple[Trial, Epoch]]) -> None:
        """The same of several trials, in one transaction: on a disk that is what an epoch costs."""
        with self.write(lease) as session:
            connection = session.connection()  # tables, not objects: these are the most rows by far
            known = _EPOCH_KEYS.where(_EPOCHS.c.trial_id.in_({trial.id for trial, _ in epochs}))
            there = {(trial_id, number) for trial_id, number in connection.execute(known)}
            new = [(trial, epoch) for trial, epoch in epochs if (trial.id, epoch.number) not in there]
            if new:
                connection.execute(_EPOCHS.insert(), [_values(epoch) for _, epoch in new])
                connection.execute(_CHANGES.insert(), [_change_values(trial, epoch) for trial, epoch in new])

    @through_restarts
    def add_samples(self, lease: Lease, samples: Sequence[Sample]) -> None:
        """Write how busy machines were; mirrors get it with what their trials do next. One that is there stays."""
        with self.write(lease) as session:
            for sample in samples:
                session.merge(sample)

    @through_restarts
    def end_attempt(
        self,
        lease: Lease,
        trial: Trial,
        attempt: int,
        state: State,
        *,
        trial_state: State | None = None,
        reason: Reason | None = None,
        message: str | None = None,
        traceback: str | None = None,
        manifest: dict[str, str] | None = None,
        value: float | None = None,
        best_epoch: int | None = None,
    ) -> Trial:
        """Write how an attempt ended and, in the same transaction, what becomes of its trial; return it as it is now.

        `trial_state` is the attempt's `state` unless given: a failed attempt may leave its trial waiting.
        """
        now = time.time()
        becomes = trial_state or state
        with self.write(lease) as session:
            ended = session.get_one(Attempt, (trial.id, attempt))
            ended.state, ended.reason, ended.traceback, ended.manifest = state, reason, traceback, manifest
            ended.ended_at = now
            row = session.get_one(Trial, trial.id)
            row.state, row.value, row.best_epoch = becomes, value, best_epoch
            row.reason, row.message = (reason, message) if becomes.finished else (None, None)
            row.ended_at = now if becomes.finished else None
            session.add(ChangeRow(study_id=trial.study_id, kind=Change.TRIAL, trial=trial.number))
            return row

    @through_restarts
    def prune_paused(self, lease: Lease, trial: Trial) -> Trial:
        """Write that a paused trial will never go on; its value stays that of its rung. Return it as it is now."""
        with self.write(lease) as session:
            row = session.get_one(Trial, trial.id)
            row.state, row.ended_at = State.PRUNED, time.time()
            session.add(ChangeRow(study_id=trial.study_id, kind=Change.TRIAL, trial=trial.number))
            return row

    @through_restarts
    def free_files(self, lease: Lease, trials: Sequence[Trial], name: str, message: str) -> list[Trial]:
        """Write that the file `name` of some trials no longer counts, and why; return them as they are now."""
        numbers = [trial.id for trial in trials]
        with self.write(lease) as session:
            for attempt in session.scalars(select(Attempt).where(Attempt.trial_id.in_(numbers))):
                if attempt.manifest:
                    attempt.manifest = {file: sha256 for file, sha256 in attempt.manifest.items() if file != name}
            rows = session.scalars(select(Trial).where(Trial.id.in_(numbers)).order_by(Trial.number)).all()
            for row in rows:
                row.message = message
                session.add(ChangeRow(study_id=row.study_id, kind=Change.TRIAL, trial=row.number))
            return list(rows)

    @through_restarts
    def add_export(self, lease: Lease, trial: Trial, export: Export) -> None:
        """Write a finished export of a trial."""
        with self.write(lease) as session:
            session.merge(export)
            session.add(ChangeRow(study_id=trial.study_id, kind=Change.EXPORT, trial=trial.number))

    def add_command(self, study_id: int, kind: str, arguments: dict[str, Any]) -> int:
        """Ask something of the process that runs a study; return the command's id."""
        command = Command(study_id=study_id, kind=kind, arguments=arguments, issued_at=time.time())
        with self.write() as session:
            session.add(command)
            session.flush()
            return command.id

    def withdraw_command(self, command_id: int) -> None:
        """Take back a command that nobody answers."""
        with self.write() as session:
            session.execute(delete(Command).where(Command.id == command_id, Command.answer.is_(None)))

    @through_restarts
    def answer_command(self, lease: Lease, command_id: int, answer: str) -> None:
        """Write what came of a command."""
        with self.write(lease) as session:
            session.get_one(Command, command_id).answer = answer

    @through_restarts
    def retry_failed(self, lease: Lease, study_id: int, numbers: Sequence[int] = ()) -> list[int]:
        """Let trials wait again that failed for good, those of `numbers` or all; return which."""
        with self.write(lease) as session:
            failed = select(Trial).where(Trial.study_id == study_id, Trial.state == State.FAILED)
            if numbers:
                failed = failed.where(Trial.number.in_(numbers))
            trials = session.scalars(failed.order_by(Trial.number)).all()
            for trial in trials:
                trial.state, trial.reason, trial.message, trial.ended_at = State.WAITING, None, None, None
                session.add(ChangeRow(study_id=study_id, kind=Change.TRIAL, trial=trial.number))
            return [trial.number for trial in trials]

    @through_restarts
    def requeue_running(self, lease: Lease, study_id: int) -> int:
        """Take up what an earlier coordinator left: its running trials wait again, and no retry is spent."""
        with self.write(lease) as session:
            left = session.scalars(select(Trial).where(Trial.study_id == study_id, Trial.state == State.RUNNING)).all()
            for trial in left:
                trial.state = State.WAITING
                attempt = session.scalars(
                    select(Attempt).where(Attempt.trial_id == trial.id).order_by(Attempt.number.desc())
                ).first()
                assert attempt is not None, "a running trial has an attempt"
                attempt.state, attempt.reason, attempt.ended_at = State.FAILED, Reason.INTERRUPTED, time.time()
                session.add(ChangeRow(study_id=study_id, kind=Change.TRIAL, trial=trial.number))
        return len(left)

    def delete_study(self, lease: Lease, study_id: int) -> None:
        """Remove a study and all that hangs on it; promotions stay in the ledger."""
        with self.write(lease) as session:
            numbers = select(Trial.id).where(Trial.study_id == study_id).scalar_subquery()
            for of_trial in (Epoch, Sample, Attempt, Export):
                session.execute(delete(of_trial).where(of_trial.trial_id.in_(numbers)))
            for of_study in (Trial, ChangeRow, Command, Cursor, MirrorRun):
                session.execute(delete(of_study).where(of_study.study_id == study_id))
            kept = select(Attempt.launch).where(Attempt.launch.is_not(None))  # by a later version of it
            session.execute(delete(Launch).where(Launch.study_id == study_id, Launch.id.not_in(kept)))
            session.execute(delete(Study).where(Study.id == study_id))


def _insert_trial(session: Session, new: dict[str, Any], now: float) -> Trial:
    newest = select(Trial).where(Trial.study_id == new["study_id"]).order_by(Trial.number.desc()).limit(1)
    last = session.scalar(newest)
    if last is not None and (last.created_at, last.config) == (now, new["config"]):
        return last  # its answer got lost
    number = 0 if last is None else last.number + 1
    trial = Trial(**new, number=number, state=State.WAITING, created_at=now)
    session.add(trial)
    session.flush()  # it has an id from here on
    session.add(ChangeRow(study_id=trial.study_id, kind=Change.TRIAL, trial=number))
    return trial


def _insert_attempt(session: Session, trial: Trial, start: _Start) -> Attempt:
    newest = select(Attempt).where(Attempt.trial_id == trial.id).order_by(Attempt.number.desc()).limit(1)
    last = session.scalar(newest)
    if last is not None and last.started_at == start.at:
        return last  # its answer got lost
    number = 1 if last is None else last.number + 1
    attempt = Attempt(
        trial_id=trial.id,
        number=number,
        state=State.RUNNING,
        worker=start.worker,
        device=start.device,
        launch=start.launch,
        started_at=start.at,
    )
    session.add(attempt)
    trial.state = State.RUNNING
    trial.started_at = trial.started_at or start.at
    session.add(ChangeRow(study_id=trial.study_id, kind=Change.TRIAL, trial=trial.number))
    return attempt


def _change_values(trial: Trial, epoch: Epoch) -> dict[str, Any]:
    return {"study_id": trial.study_id, "kind": Change.EPOCH, "trial": trial.number, "epoch": epoch.number}


def _values(epoch: Epoch) -> dict[str, Any]:
    return {name: getattr(epoch, name) for name in _EPOCHS.columns.keys()}  # noqa: SIM118

"""Follows the record and brings MLflow, an Optuna storage and TensorBoard up to it.

`python -m orchestrator.mirror STUDY FD` is a process of its own beside the coordinator, so that a slow or dead server
holds up nothing; `sync` is the same in the foreground. Each target is followed by a thread with a cursor into the
record's change log. A cursor may lag behind what a target holds, never run ahead of it: targets do not write twice
what they have, and say when they are opened what they lack.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
from collections import defaultdict
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from orchestrator.errors import FencedError, HeldError, UnavailableError
from orchestrator.leases import Holding
from orchestrator.mirrors import TARGETS, Place, Progress, Snapshot, load
from orchestrator.names import check_listed
from orchestrator.processes import Channel, serve_parent
from orchestrator.settings import Settings
from orchestrator.store import Record
from orchestrator.tables import Attempt, Change, ChangeRow, Cursor, Epoch, Export, Sample, Trial

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from orchestrator.mirrors import Target

POLL_SECONDS = 1.0  # a sweep takes as long as with two, and its runs are seen sooner
SAVE_SECONDS = 1.0  # between two writes of a cursor
RETRY_SECONDS = (1.0, 30.0)  # the first and the longest pause after a failure; each is twice the one before
CHANGES_AT_ONCE = 500
TRIALS_AT_ONCE = 50
NICENESS = 5  # training goes first
GC_THRESHOLD = 100_000  # MLflow's import makes half a million objects that stay, and need not be looked through

logger = logging.getLogger(__name__)


class Follower:
    """Brings one target up to one study of the record."""

    def __init__(self, name: str, place: Place) -> None:
        self.name = name
        self._place = place
        self._record, self._study = place.record, place.study
        self._target: Target | None = None
        self._is_open = False
        self._seq = self._saved_seq = _cursor(place.record, name, place.study.id)
        self._saved_at = time.monotonic()

    def step(self) -> int:
        """Apply what comes next; return how many changes and repairs that was, 0 if there is nothing left.

        Raises:
            UnavailableError: the target cannot be reached; the next step starts over.
            FencedError: another process follows this study now.
        """
        try:
            target, repaired = self._opened()
            changes = self._record.changes(self._study.id, self._seq, CHANGES_AT_ONCE)
            repaired -= {change.trial for change in changes}
            if changes:
                self._apply(target, changes)
            self._save(at_once=not changes)
        except Exception:
            self._is_open = False
            raise
        return len(repaired) + len(changes)

    def drain(self) -> int:
        """Apply all that is left; return how many changes and repairs that was."""
        total = 0
        while applied := self.step():
            total += applied
        return total

    def close(self) -> None:
        """Tell the target that nothing more comes for now."""
        if self._target is not None and self._is_open:
            self._target.close()
            self._is_open = False

    def _opened(self) -> tuple[Target, set[int | None]]:
        """The target, connected, with what it had lost written again; and the trials that this was."""
        if self._target is None:
            self._target = load(self.name)(self._place)
        if self._is_open:
            return self._target, set()
        self._study = self._record.study(self._place.study.name)
        # A target that nothing was written to yet gets all there is from the change log.
        progress = _progress(self._record, self._study.id) if self._seq else {}
        lacking = self._target.open(progress)
        for numbers in _chunks(sorted(lacking), TRIALS_AT_ONCE):
            self._target.apply(self._study, _snapshots(self._record, self._study.id, numbers))
        self._is_open = True
        return self._target, {*lacking}

    def _apply(self, target: Target, changes: Sequence[ChangeRow]) -> None:
        if any(change.kind is Change.STUDY for change in changes):
            self._study = self._record.study(self._study.name)
        numbers = {change.trial for change in changes if change.trial is not None}
        for some in list(_chunks(sorted(numbers), TRIALS_AT_ONCE)) or [[]]:
            target.apply(self._study, _snapshots(self._record, self._study.id, some))
        self._seq = changes[-1].seq

    def _save(self, *, at_once: bool) -> None:
        """Write the cursor, but not more often than needed: it would be a transaction a poll and target."""
        due = at_once or time.monotonic() - self._saved_at >= SAVE_SECONDS
        if not due or self._seq == self._saved_seq:
            return
        with self._record.write(self._place.lease) as session:
            session.merge(Cursor(mirror=self.name, study_id=self._study.id, seq=self._seq))
        self._saved_seq, self._saved_at = self._seq, time.monotonic()


def sync(settings: Settings, study: str | None = None) -> dict[str, int]:
    """Bring all targets up to one study or all; return target -> how many changes and repairs were applied.

    Raises:
        UnknownNameError: there is no such study.
        UsageError: it is archived.
        HeldError: the mirror of a study runs, and does this already.
        UnavailableError: a target cannot be reached; the others are up to date.
    """
    record = Record.open(settings.record_url)
    applied = dict.fromkeys(TARGETS, 0)
    failures: list[UnavailableError] = []
    try:
        rows = [record.study(study)] if study else [row for row in record.studies() if not row.is_archived]
        for row in rows:
            check_listed(row)
            try:
                with Holding(record, _lease_name(row.name)) as lease:
                    place = Place(settings=settings, record=record, lease=lease, study=row)
                    for name in TARGETS:
                        failures += _sync(name, place, applied)
            except HeldError as error:
                failures.append(error)
    finally:
        record.close()
    if failures:
        raise failures[0]
    return applied


def _sync(name: str, place: Place, applied: dict[str, int]) -> list[UnavailableError]:
    follower = Follower(name, place)
    try:
        applied[name] += follower.drain()
        follower.close()
    except FencedError:
        raise
    except UnavailableError as error:
        return [error]
    return []


def lag(record: Record, study_id: int) -> dict[str, int]:
    """Target -> how many changes of a study it has not been brought up to yet."""
    with record.read() as session:
        cursors = dict(session.execute(select(Cursor.mirror, Cursor.seq).where(Cursor.study_id == study_id)).all())
        return {
            name: session.scalar(
                select(func.count())
                .select_from(ChangeRow)
                .where(ChangeRow.study_id == study_id, ChangeRow.seq > cursors.get(name, 0))
            )
            or 0
            for name in TARGETS
        }


def show(settings: Settings, study: str, *, shown: bool) -> None:
    """Let MLflow list a study's experiment or not.

    Raises:
        UnknownNameError: there is no such study.
        HeldError: its mirror runs.
        UnavailableError: MLflow cannot be reached.
    """
    from orchestrator.mirrors.mlflow_runs import MlflowRuns

    record = Record.open(settings.record_url)
    try:
        row = record.study(study)
        with Holding(record, _lease_name(study)) as lease:
            MlflowRuns(Place(settings=settings, record=record, lease=lease, study=row)).show(shown=shown)
    finally:
        record.close()


def remove(settings: Settings, study: str) -> None:
    """Remove a study from all targets: MLflow's runs are deleted, the Optuna study and TensorBoard's folder removed.

    Raises:
        UnknownNameError: there is no such study.
        HeldError: its mirror runs.
        UnavailableError: a target cannot be reached; it may be called again.
    """
    record = Record.open(settings.record_url)
    try:
        row = record.study(study)
        with Holding(record, _lease_name(study)) as lease:
            place = Place(settings=settings, record=record, lease=lease, study=row)
            for name in reversed(TARGETS):  # what can fail comes first
                load(name)(place).remove()
    finally:
        record.close()


# -- reading


def _cursor(record: Record, name: str, study_id: int) -> int:
    with record.read() as session:
        row = session.get(Cursor, (name, study_id))
        return row.seq if row is not None else 0


def _progress(record: Record, study_id: int) -> dict[int, Progress]:
    query = (
        select(Trial.number, Trial.state, Trial.started_at, func.count(Epoch.number))
        .outerjoin(Epoch, Epoch.trial_id == Trial.id)
        .where(Trial.study_id == study_id)
        .group_by(Trial.id)
    )
    with record.read() as session:
        return {
            number: Progress(state=state, started=started_at is not None, num_epochs=num_epochs)
            for number, state, started_at, num_epochs in session.execute(query)
        }


def _snapshots(record: Record, study_id: int, numbers: Iterable[int]) -> list[Snapshot]:
    attempts: dict[int, list[Attempt]] = defaultdict(list)
    epochs: dict[int, list[Epoch]] = defaultdict(list)
    samples: dict[int, list[Sample]] = defaultdict(list)
    with record.read() as session:
        trials = session.scalars(
            select(Trial).where(Trial.study_id == study_id, Trial.number.in_(numbers)).order_by(Trial.number)
        ).all()
        ids = [trial.id for trial in trials]
        for attempt in session.scalars(select(Attempt).where(Attempt.trial_id.in_(ids)).order_by(Attempt.number)):
            attempts[attempt.trial_id].append(attempt)
        for epoch in session.scalars(select(Epoch).where(Epoch.trial_id.in_(ids)).order_by(Epoch.number)):
            epochs[epoch.trial_id].append(epoch)
        for sample in session.scalars(select(Sample).where(Sample.trial_id.in_(ids)).order_by(Sample.recorded_at)):
            samples[sample.trial_id].append(sample)
        exports = {
            export.trial_id: export for export in session.scalars(select(Export).where(Export.trial_id.in_(ids)))
        }
    return [
        Snapshot(
            trial=trial,
            attempts=attempts[trial.id],
            epochs=epochs[trial.id],
            export=exports.get(trial.id),
            samples=samples[trial.id],
        )
        for trial in trials
    ]


def _chunks(numbers: Iterable[int], size: int) -> Iterator[list[int]]:
    rest = iter(numbers)
    while chunk := list(islice(rest, size)):
        yield chunk


# -- the process


class _Mirror:
    """All targets of one study, each followed by a thread until `finish`."""

    def __init__(self, place: Place, inbox: SimpleQueue[dict[str, Any] | FencedError]) -> None:
        self._place, self._inbox = place, inbox
        self._finishing = threading.Event()
        self._importing = threading.Lock()  # two threads that import one library can meet half-made modules
        self._threads = [
            threading.Thread(target=self._follow, args=(name,), name=name, daemon=True) for name in TARGETS
        ]

    def start(self) -> None:
        """Begin to follow."""
        for thread in self._threads:
            thread.start()

    def finish(self, seconds: float) -> None:
        """Apply what is left for at most `seconds`; a thread that hangs in a call is left behind."""
        deadline = time.monotonic() + seconds
        self._finishing.set()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _follow(self, name: str) -> None:
        with self._importing:
            load(name)
        follower = Follower(name, self._place)
        failures, told = 0, ""
        while True:
            finishing = self._finishing.is_set()
            try:
                applied = follower.step()
                if finishing and not applied:
                    follower.close()
                    return
            except FencedError as error:
                self._inbox.put(error)
                return
            except Exception as error:
                told = _tell(name, error, told)
                self._pause(failures)
                failures += 1
                continue
            if told:
                logger.info("%s: goes on", name)
            failures, told = 0, ""
            if applied < CHANGES_AT_ONCE:
                self._finishing.wait(POLL_SECONDS)

    def _pause(self, failures: int) -> None:
        shortest, longest = RETRY_SECONDS
        if self._finishing.is_set():
            time.sleep(shortest)
        else:
            self._finishing.wait(min(shortest * 2**failures, longest))


def _tell(name: str, error: Exception, told: str) -> str:
    """Log an error, but only once in a row; return its text."""
    text = f"{name}: {error}"
    if text != told:
        expected = isinstance(error, UnavailableError | DBAPIError)
        logger.warning("%s; it is tried again", text, exc_info=None if expected else error)
    return text


def _lease_name(study: str) -> str:
    return f"mirror:{study}"


def _hold(record: Record, study: str) -> Holding:
    """Take the mirror's lease, if need be after a `sync` that is under way."""
    while True:
        try:
            return Holding(record, _lease_name(study))
        except HeldError as error:
            logger.info("%s; waiting for it", error)


def _main(name: str, descriptor: int) -> None:
    os.nice(NICENESS)
    gc.set_threshold(GC_THRESHOLD)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    inbox: SimpleQueue[dict[str, Any] | FencedError] = SimpleQueue()
    channel = Channel.inherited(descriptor)
    serve_parent(channel, inbox.put)
    settings = Settings.from_environment()
    record = Record.open(settings.record_url)
    study = record.study(name)
    with _hold(record, name) as lease:
        mirror = _Mirror(Place(settings=settings, record=record, lease=lease, study=study), inbox)
        mirror.start()
        message = inbox.get()
        if isinstance(message, FencedError):
            logger.error("%s", message)
            os._exit(message.exit_code)
        mirror.finish(message["finish"])
    channel.send({"lag": lag(record, study.id)})
    logging.shutdown()
    os._exit(0)  # a thread may hang in a call for longer


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))

"""The record: one contract over SQLite and PostgreSQL, and what each of them does when it is hurt."""

from __future__ import annotations

import hashlib
import json
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from sqlalchemy import event, func, select, text

from orchestrator import database
from orchestrator.database import SCHEMA_VERSION
from orchestrator.errors import FencedError, UnavailableError, UnknownNameError, UsageError
from orchestrator.leases import Lease
from orchestrator.store import Record
from orchestrator.tables import (
    PARENT,
    Attempt,
    Base,
    Change,
    Cursor,
    Epoch,
    Export,
    LeaseRow,
    Meta,
    MirrorRun,
    Promotion,
    Reason,
    State,
    Study,
    Trial,
)

LEASE = Lease(name="study:s", token=3)


@pytest.fixture
def record(record_url):
    made = Record.open(record_url, create=True)
    with made.write() as session:
        session.add(LeaseRow(name=LEASE.name, token=LEASE.token, counter=0, holder={"pid": 1}))
    yield made
    made.close()


def new_study(record, name="s", **spec):
    study = Study(name=name, recipe="cnn", data="digits", spec=spec, identity={"space": {}}, created_at=time.time())
    return record.create_study(LEASE, study)


def new_trial(record, study, **params):
    return record.add_trial(LEASE, study.id, params=params, config={**params, "epochs": 3}, threads=2)


def new_epoch(trial, number, attempt=1, **metrics):
    found = {"val_accuracy": 0.5, "val_loss": 1.0, **metrics}
    return Epoch(trial_id=trial.id, number=number, attempt=attempt, metrics=found, seconds=0.1, recorded_at=1.0)


def new_export(trial, error=None):
    return Export(
        trial_id=trial.id, file="a/b", sha256="c" * 64, size_bytes=5, max_difference=1e-6, error=error, recorded_at=1.0
    )


def rows(record, table):
    with record.read() as session:
        return session.scalar(select(func.count()).select_from(table))


# -- opening


def test_missing_record_is_not_made_by_who_only_reads(record_url, tmp_path):
    with pytest.raises(UsageError, match="no study has been recorded"):
        Record.open(record_url)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError):
        Record.open(record_url)


def test_record_that_is_there_is_opened_again(record_url):
    first = Record.open(record_url, create=True)
    with first.write() as session:
        session.add(LeaseRow(name=LEASE.name, token=LEASE.token, counter=0, holder=None))
    new_study(first)
    first.close()
    for create in (True, False):
        with closing(Record.open(record_url, create=create)) as again:
            assert [study.name for study in again.studies()] == ["s"]


def test_record_is_made_once_by_many_at_once(record_url):
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda _: Record.open(record_url, create=True), range(8)))
    for record in records:
        assert record.studies() == []
        record.close()


def test_record_of_another_version_is_refused_untouched(record_url, tmp_path):
    with closing(Record.open(record_url, create=True)) as record, record.write() as session:
        session.connection().exec_driver_sql(f"UPDATE meta SET value = '{SCHEMA_VERSION + 1}'")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for create in (True, False):
        with pytest.raises(UnavailableError, match=f"schema version {SCHEMA_VERSION + 1}; this orch reads"):
            Record.open(record_url, create=create)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def make_old(record):
    """Leave a record as the first version made it."""
    with record.write() as session:
        for statement in (
            "ALTER TABLE trials DROP COLUMN confirms",
            "ALTER TABLE promotions DROP COLUMN alias",
            "ALTER TABLE promotions DROP COLUMN reason",
            "ALTER TABLE promotions DROP COLUMN figures",
            "ALTER TABLE attempts DROP COLUMN launch",
            "DROP TABLE commands",
            "DROP TABLE launches",
            "UPDATE meta SET value=1",
        ):
            session.execute(text(statement))


def test_record_of_the_first_version_is_brought_up_to_date_with_all_it_holds(record_url):
    with closing(Record.open(record_url, create=True)) as record:
        with record.write() as session:
            session.add(LeaseRow(name=LEASE.name, token=LEASE.token, counter=0, holder=None))
        study = new_study(record)
        new_trial(record, study)
        make_old(record)
    with closing(Record.open(record_url)) as again:
        (trial,) = again.trials(study.id)
        assert (trial.number, trial.confirms) == (0, None)
        again.add_command(study.id, "stop", {})
        assert [command.kind for command in again.commands(study.id)] == ["stop"]
        with again.read() as session:
            assert session.get(Meta, "schema_version").value == str(SCHEMA_VERSION)


def test_old_record_is_brought_up_to_date_once_by_many_at_once(record_url):
    with closing(Record.open(record_url, create=True)) as record:
        make_old(record)
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda _: Record.open(record_url), range(8)))
    for record in records:
        assert record.studies() == []
        record.close()


def test_record_is_opened_and_read_while_another_is_amid_a_write(record_url):
    with closing(Record.open(record_url, create=True)) as writer, writer.write() as session:
        session.add(LeaseRow(name=LEASE.name, token=LEASE.token, counter=0, holder=None))
        session.flush()
        for create in (True, False):
            with closing(Record.open(record_url, create=create)) as reader:
                assert reader.studies() == []


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("nonsense", "malformed"),
        ("user:s3cret@host", "malformed"),
        ("postgresql://u:s3cret@h:port/d", "malformed"),
        ("mysql://u:s3cret@h/d", "no record can be kept at mysql://u:***@h/d"),
        ("postgres://u:s3cret@h/d", "no record can be kept at postgres://u:***@h/d"),
        ("postgresql://u:s3cret@h", "no record can be kept"),
        ("postgresql+nothing://u:s3cret@h/d", "no database driver 'postgresql+nothing'"),
        ("sqlite://", "no record can be kept"),
        ("sqlite:///:memory:", "no record can be kept"),
    ],
)
def test_address_that_is_none_is_refused_without_its_password(url, complaint):
    with pytest.raises(UsageError) as refused:
        Record.open(url, create=True)
    assert complaint in str(refused.value)
    assert "s3cret" not in str(refused.value)


# -- studies


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "'; DROP TABLE studies; --", "100% [bold]", "日本語 é", "x" * 200]
)
def test_study_keeps_its_name_and_spec(record, name):
    spec = {"space": {"lr": {"low": 1e-4, "log": True, "choices": [1, "a", None, False, 0.1]}}, "text": "é\n"}
    made = new_study(record, name, **spec)
    found = record.study(name)
    assert (found.id, found.name, found.spec) == (made.id, name, spec)
    assert type(found.spec["space"]["lr"]["choices"][0]) is int


def test_study_is_found_by_its_whole_name(record):
    new_study(record, "cnn-digits")
    assert record.find_study("cnn") is None
    with pytest.raises(UnknownNameError, match=r"unknown study 'cnn-digit'; did you mean 'cnn-digits'\?"):
        record.study("cnn-digit")


def test_second_study_of_a_name_is_refused(record):
    new_study(record)
    with pytest.raises(UnavailableError, match="cannot be written"):
        new_study(record)
    assert len(record.studies()) == 1


def test_newest_study_is_the_one_made_last(record):
    with pytest.raises(UsageError, match="no study has been recorded yet"):
        record.newest_study()
    for name in ("b", "c", "a"):
        new_study(record, name)
    assert record.newest_study().name == "a"
    assert [study.name for study in record.studies()] == ["b", "c", "a"]


def test_changed_spec_leaves_the_identity(record):
    study = new_study(record, trials=5)
    record.update_study(LEASE, study.id, {"trials": 9})
    found = record.study("s")
    assert (found.spec, found.identity) == ({"trials": 9}, {"space": {}})


# -- trials


def test_trials_are_numbered_from_zero_in_each_study(record):
    one, two = new_study(record, "one"), new_study(record, "two")
    assert [new_trial(record, one).number for _ in range(3)] == [0, 1, 2]
    assert new_trial(record, two).number == 0
    assert [trial.number for trial in record.trials(one.id)] == [0, 1, 2]
    found = record.trial(one.id, 2)
    assert (found.state, found.threads, found.config) == (State.WAITING, 2, {"epochs": 3})
    assert record.trial(one.id, 3) is None


def test_trials_added_by_threads_at_once_are_numbered_without_gap_or_double(record):
    study = new_study(record)
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda _: new_trial(record, study).number, range(24)))
    assert sorted(numbers) == list(range(24))


def test_attempts_are_counted_and_the_trial_keeps_its_start(record):
    study = new_study(record)
    trial = new_trial(record, study, lr=0.1)
    began, first = record.start_attempt(LEASE, trial, "host/worker-0")
    assert began.state is record.trial(study.id, 0).state
    assert (first.number, began.state, began.started_at) == (1, State.RUNNING, first.started_at)
    record.end_attempt(
        LEASE, trial, 1, State.FAILED, trial_state=State.WAITING, reason=Reason.LOST, message="gone", traceback="…"
    )
    waiting = record.trial(study.id, 0)
    assert (waiting.state, waiting.reason, waiting.message, waiting.ended_at) == (State.WAITING, None, None, None)
    assert record.start_attempt(LEASE, trial, "host/worker-1")[1].number == 2
    assert record.trial(study.id, 0).started_at == first.started_at
    lost, running = record.attempts(trial.id)
    assert (lost.state, lost.reason, lost.traceback) == (State.FAILED, Reason.LOST, "…")
    assert (running.state, running.worker, running.ended_at) == (State.RUNNING, "host/worker-1", None)


@pytest.mark.parametrize(
    ("state", "ended"),
    [
        (State.COMPLETE, {"value": 0.9, "best_epoch": 2, "manifest": {"best.safetensors": "a" * 64}}),
        (State.PRUNED, {"value": 0.4, "best_epoch": 1, "manifest": {}}),
        (State.FAILED, {"reason": Reason.OOM, "message": "too big"}),
    ],
)
def test_ended_trial_holds_how_it_ended(record, state, ended):
    study = new_study(record)
    trial = new_trial(record, study)
    record.start_attempt(LEASE, trial, "w")
    record.end_attempt(LEASE, trial, 1, state, **ended)
    found, (attempt,) = record.trial(study.id, 0), record.attempts(trial.id)
    assert found.state is attempt.state is state
    assert found.ended_at == attempt.ended_at > 0
    for name, value in ended.items():
        assert getattr(attempt if name == "manifest" else found, name) == value


def test_paused_trial_has_the_value_of_its_rung_until_it_ends_and_is_not_requeued(record):
    study = new_study(record)
    trial = new_trial(record, study)
    record.start_attempt(LEASE, trial, "w")
    record.end_attempt(LEASE, trial, 1, State.PAUSED, value=0.4, best_epoch=1, manifest={"best.safetensors": "a" * 64})
    paused = record.trial(study.id, 0)
    assert (paused.state, paused.value, paused.best_epoch, paused.ended_at) == (State.PAUSED, 0.4, 1, None)
    assert record.requeue_running(LEASE, study.id) == 0
    assert record.start_attempt(LEASE, trial, "w")[1].number == 2
    assert record.requeue_running(LEASE, study.id) == 1
    assert record.trial(study.id, 0).value == 0.4
    record.prune_paused(LEASE, trial)
    pruned, (first, _) = record.trial(study.id, 0), record.attempts(trial.id)
    assert (pruned.state, pruned.value, pruned.best_epoch) == (State.PRUNED, 0.4, 1)
    assert pruned.ended_at >= first.ended_at > 0


def test_epoch_recorded_twice_keeps_its_first_values(record):
    study = new_study(record)
    trial, other = new_trial(record, study), new_trial(record, study)
    record.add_epochs(LEASE, trial, [new_epoch(trial, 1, val_accuracy=0.1)])
    record.add_epochs(LEASE, trial, [new_epoch(trial, 2), new_epoch(trial, 1, attempt=2, val_accuracy=0.9)])
    epochs = record.epochs(study.id)
    assert [(epoch.number, epoch.attempt, epoch.metrics["val_accuracy"]) for epoch in epochs[0]] == [
        (1, 1, 0.1),
        (2, 1, 0.5),
    ]
    assert other.number not in epochs
    assert [change.epoch for change in record.changes(study.id, 0) if change.kind is Change.EPOCH] == [1, 2]


def test_epochs_of_several_trials_are_recorded_together_and_each_once(record):
    study = new_study(record)
    one, two = new_trial(record, study), new_trial(record, study)
    record.add_epochs(LEASE, one, [new_epoch(one, 1, val_accuracy=0.1)])
    again = new_epoch(one, 1, attempt=2, val_accuracy=0.9)
    record.add_epochs_of(LEASE, [(two, new_epoch(two, 1)), (one, again), (one, new_epoch(one, 2))])
    record.add_epochs_of(LEASE, [])
    epochs = record.epochs(study.id)
    assert {trial: [(epoch.number, epoch.attempt) for epoch in of] for trial, of in epochs.items()} == {
        one.number: [(1, 1), (2, 1)],
        two.number: [(1, 1)],
    }
    assert epochs[one.number][0].metrics["val_accuracy"] == 0.1
    changes = [change for change in record.changes(study.id, 0) if change.kind is Change.EPOCH]
    assert [(change.trial, change.epoch) for change in changes] == [(one.number, 1), (two.number, 1), (one.number, 2)]


def test_trials_that_ran_wait_again_exactly_once(record):
    study = new_study(record)
    running, waiting, ended = (new_trial(record, study) for _ in range(3))
    for trial in (running, ended):
        record.start_attempt(LEASE, trial, "w")
    record.end_attempt(LEASE, ended, 1, State.COMPLETE, value=1.0, best_epoch=1)
    assert record.requeue_running(LEASE, study.id) == 1
    assert record.requeue_running(LEASE, study.id) == 0
    assert [trial.state for trial in record.trials(study.id)] == [State.WAITING, State.WAITING, State.COMPLETE]
    (attempt,) = record.attempts(running.id)
    assert (attempt.state, attempt.reason) == (State.FAILED, Reason.INTERRUPTED)
    assert record.attempts(waiting.id) == []


def test_export_that_failed_is_told_apart_and_replaced(record):
    study = new_study(record)
    trial = new_trial(record, study)
    record.add_export(LEASE, trial, new_export(trial, error="no such operator"))
    assert record.exports(study.id) == {}
    assert record.exports(study.id, failed=True)[0].error == "no such operator"
    record.add_export(LEASE, trial, new_export(trial))
    assert record.exports(study.id)[0].sha256 == "c" * 64


def test_runs_are_known_by_trial(record):
    study = new_study(record)
    with record.write() as session:
        session.add(MirrorRun(study_id=study.id, trial=PARENT, run_id="p"))
        session.add(MirrorRun(study_id=study.id, trial=3, run_id="r"))
        session.add(MirrorRun(study_id=study.id + 1, trial=3, run_id="other"))
    assert record.run_ids(study.id) == {PARENT: "p", 3: "r"}


# -- the change log


def test_every_write_leaves_a_change_in_order(record):
    study = new_study(record)
    trial = new_trial(record, study)
    record.start_attempt(LEASE, trial, "w")
    record.add_epochs(LEASE, trial, [new_epoch(trial, 1), new_epoch(trial, 2)])
    record.end_attempt(LEASE, trial, 1, State.COMPLETE, value=1.0, best_epoch=2)
    record.add_export(LEASE, trial, new_export(trial))
    record.update_study(LEASE, study.id, {})
    other = new_study(record, "other")
    changes = record.changes(study.id, 0)
    assert [(change.kind, change.trial, change.epoch) for change in changes] == [
        (Change.STUDY, None, None),
        (Change.TRIAL, 0, None),
        (Change.TRIAL, 0, None),
        (Change.EPOCH, 0, 1),
        (Change.EPOCH, 0, 2),
        (Change.TRIAL, 0, None),
        (Change.EXPORT, 0, None),
        (Change.STUDY, None, None),
    ]
    assert [change.seq for change in changes] == sorted({change.seq for change in changes})
    next_two = record.changes(study.id, changes[2].seq, limit=2)
    assert [change.seq for change in next_two] == [change.seq for change in changes[3:5]]
    assert len(record.changes(other.id, 0)) == 1


def test_number_of_a_change_is_never_used_again(record):
    study = new_study(record)
    last = record.changes(study.id, 0)[-1].seq
    record.delete_study(LEASE, study.id)
    assert record.changes(new_study(record).id, 0)[0].seq > last


# -- fencing and transactions


def write_everything(record, lease, study, trial):
    """All writes of a sweep, by name, each ready to be called."""
    new = Study(name="new", recipe="", data="", spec={}, identity={}, created_at=0.0)
    return {
        "create_study": lambda: record.create_study(lease, new),
        "update_study": lambda: record.update_study(lease, study.id, {"trials": 1}),
        "add_trial": lambda: record.add_trial(lease, study.id, params={}, config={}, threads=1),
        "start_trial": lambda: record.start_trial(lease, study.id, params={}, config={}, threads=1, worker="w"),
        "start_attempt": lambda: record.start_attempt(lease, trial, "w"),
        "add_epochs": lambda: record.add_epochs(lease, trial, [new_epoch(trial, 1)]),
        "end_attempt": lambda: record.end_attempt(lease, trial, 1, State.COMPLETE),
        "prune_paused": lambda: record.prune_paused(lease, trial),
        "add_export": lambda: record.add_export(lease, trial, new_export(trial)),
        "requeue_running": lambda: record.requeue_running(lease, study.id),
        "delete_study": lambda: record.delete_study(lease, study.id),
    }


WRITES = tuple(write_everything(None, None, None, None))


def contents(record):
    """All rows of all tables."""
    with record.read() as session:
        return {
            table.name: sorted(map(repr, session.execute(select(table)).all())) for table in Base.metadata.sorted_tables
        }


def test_trial_that_starts_at_once_is_on_record_as_one_that_waited(record):
    study = new_study(record)
    waited, _ = record.start_attempt(LEASE, new_trial(record, study, lr=0.1), "w", "cuda:0")
    config = {"lr": 0.1, "epochs": 3}
    record.start_trial(LEASE, study.id, params={"lr": 0.1}, config=config, threads=2, worker="w", device="cuda:0")
    kept = [
        (trial.number, trial.state, trial.params, trial.config, trial.threads, attempt.number, attempt.device)
        for trial in record.trials(study.id)
        for attempt in record.attempts(trial.id)
    ]
    assert kept == [(n, State.RUNNING, waited.params, waited.config, 2, 1, "cuda:0") for n in (0, 1)]


@pytest.mark.parametrize("write", WRITES)
def test_write_without_the_newest_token_is_refused_and_changes_nothing(record, write):
    study = new_study(record)
    trial = new_trial(record, study)
    record.start_attempt(LEASE, trial, "w")
    before = contents(record)
    for token in (LEASE.token - 1, LEASE.token + 1):
        with pytest.raises(FencedError, match="study:s was taken over by another process"):
            write_everything(record, Lease(name=LEASE.name, token=token), study, trial)[write]()
    assert contents(record) == before
    write_everything(record, LEASE, study, trial)[write]()
    assert contents(record) != before


def test_write_under_a_lease_that_nobody_holds_is_refused(record):
    study = new_study(record)
    with pytest.raises(FencedError, match="study:other"):
        record.requeue_running(Lease(name="study:other", token=1), study.id)


def test_write_that_fails_half_way_changes_nothing(record):
    study = new_study(record)
    before = contents(record)

    def write():
        with record.write(LEASE) as session:
            session.get_one(Study, study.id).spec = {"changed": True}
            session.flush()
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write()
    assert contents(record) == before


def test_rows_can_be_read_after_the_record_is_closed(record):
    study = new_study(record)
    new_trial(record, study, lr=0.1)
    study, (trial,) = record.study("s"), record.trials(study.id)
    record.close()
    assert (study.recipe, trial.params) == ("cnn", {"lr": 0.1})


def test_deleted_study_leaves_nothing_but_its_promotions(record):
    def fill(name):
        study = new_study(record, name)
        trial = new_trial(record, study)
        record.start_attempt(LEASE, trial, "w")
        record.add_epochs(LEASE, trial, [new_epoch(trial, 1)])
        record.add_export(LEASE, trial, new_export(trial))
        with record.write() as session:
            session.add(MirrorRun(study_id=study.id, trial=0, run_id=name))
            session.add(Cursor(mirror="mlflow", study_id=study.id, seq=1))
        return study

    kept = fill("kept")
    before = contents(record)
    gone = fill("gone")
    promotion = dict.fromkeys(("model", "kind", "to_version", "study", "run_id", "sha256", "who"), "gone")
    with record.write() as session:
        session.add(Promotion(**promotion, trial=0, test_score=1.0, gates=[], recorded_at=1.0))
    record.delete_study(LEASE, gone.id)
    assert rows(record, Promotion) == 1
    assert {**contents(record), "promotions": []} == before
    assert rows(record, Attempt) == rows(record, Trial) == 1
    assert record.study("kept").id == kept.id


# -- SQLite, hurt


@pytest.fixture
def lite(tmp_path):
    """A record in a file, and the file."""
    path = tmp_path / "orch.db"
    made = Record.open(f"sqlite:///{path}", create=True)
    with made.write() as session:
        session.add(LeaseRow(name=LEASE.name, token=LEASE.token, counter=0, holder=None))
    yield made, path
    made.close()


def test_sqlite_keeps_a_log_and_syncs_it(lite):
    record, _ = lite
    with record.read() as session:
        pragma = {
            name: session.connection().exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="cannot be made: Not a directory"):
        Record.open(f"sqlite:///{tmp_path}/file/mlruns/orch.db", create=True)


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
@pytest.mark.parametrize("create", [True, False])
def test_file_that_is_no_database_is_named_and_untouched(tmp_path, content, create):
    path = tmp_path / "orch.db"
    path.write_bytes(content)
    with pytest.raises(UnavailableError, match=r"orch\.db is not usable: file is not a database"):
        Record.open(f"sqlite:///{path}", create=create)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["orch.db"]


def test_record_of_another_version_and_journal_is_untouched(tmp_path):
    path = tmp_path / "orch.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)")
        connection.execute("INSERT INTO meta VALUES ('schema_version', 'nine')")
    before = path.read_bytes()
    with pytest.raises(UnavailableError, match="schema version nine"):
        Record.open(f"sqlite:///{path}", create=True)
    assert path.read_bytes() == before


def test_damaged_page_is_one_line_when_it_is_read(lite):
    record, path = lite
    study = new_study(record)
    for _ in range(200):
        new_trial(record, study, note="x" * 500)  # so that rows lie within pages, whichever of them are damaged
    record.close()
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : -4096] = b"\xff" * (len(content) // 2 - 4096)
    path.write_bytes(content)
    complaint = r"orch\.db cannot be read: database disk image is malformed"
    with closing(Record.open(f"sqlite:///{path}")) as again, pytest.raises(UnavailableError, match=complaint):
        again.trials(study.id)
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(content).digest()


@pytest.mark.slow
def test_writer_waits_for_a_database_that_another_program_holds(lite):
    record, path = lite
    study = new_study(record)
    holder = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    threading.Timer(1.5, lambda: holder.execute("COMMIT")).start()
    began = time.monotonic()
    assert new_trial(record, study).number == 0
    assert time.monotonic() - began > 1
    holder.close()


def test_full_disk_is_one_line_and_what_was_written_stays(lite):
    record, _ = lite
    study = new_study(record)
    record.close()

    @event.listens_for(record.engine, "connect")
    def limit(connection, _):
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages + 5}")

    def fill():
        for _ in range(1000):
            new_trial(record, study, note="x" * 1000)

    with pytest.raises(UnavailableError, match=r"cannot be written: database or disk is full"):
        fill()
    trials = record.trials(study.id)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert len(trials) > 2
    assert json.dumps(trials[-1].params)


# -- PostgreSQL, hurt


@pytest.mark.slow
def test_restarted_server_loses_nothing(postgres, monkeypatch):
    with postgres.database() as url, closing(Record.open(url, create=True)) as record:
        with record.write() as session:
            session.add(LeaseRow(name=LEASE.name, token=LEASE.token, counter=0, holder=None))
        study = new_study(record)
        postgres.stop("immediate")
        postgres.start()
        assert new_trial(record, study).number == 0
        postgres.stop("immediate")
        monkeypatch.setattr(database, "RESTART_SECONDS", 0.5)  # that is waited for one which stays away
        try:
            with pytest.raises(UnavailableError, match="cannot be written") as refused:
                new_trial(record, study)
            with pytest.raises(UnavailableError, match="cannot be read"):
                record.trials(study.id)
        finally:
            postgres.start()
        assert "s3cret" not in str(refused.value)
        assert new_trial(record, study).number == 1
        assert [trial.number for trial in record.trials(study.id)] == [0, 1]


@pytest.mark.slow
def test_what_was_written_when_a_crash_took_the_answer_is_not_written_twice(postgres, monkeypatch):
    with postgres.database() as url, closing(Record.open(url, create=True)) as record:
        with record.write() as session:
            session.add(LeaseRow(name=LEASE.name, token=LEASE.token, counter=0, holder=None))
        study, commit, crashes = new_study(record), record.engine.dialect.do_commit, []

        def crash_after(connection):
            commit(connection)
            if not crashes:
                crashes.append(1)
                postgres.stop("immediate")
                postgres.start()
                connection.execute("SELECT 1")  # the server it was connected to is gone

        monkeypatch.setattr(record.engine.dialect, "do_commit", crash_after)
        trial = new_trial(record, study)
        crashes.clear()
        record.start_attempt(LEASE, trial, "w")
        crashes.clear()
        record.add_launch(LEASE, study.id, {"command": "orch"})
        assert crashes
        assert [each.number for each in record.trials(study.id)] == [0]
        assert [each.number for each in record.attempts(trial.id)] == [1]
        assert len(record.launches(study.id)) == 1


def test_server_that_refuses_is_one_line_without_the_password(postgres):
    for url in (postgres.url("nothing"), postgres.url().replace("s3cret", "wr0ng")):
        with pytest.raises(UnavailableError, match=r"postgresql://orch:\*\*\*@127.0.0.1") as refused:
            Record.open(url, create=True)
        assert not {"s3cret", "wr0ng"} & set(str(refused.value).replace("@", ":").split(":"))
        assert str(refused.value).isprintable()


@pytest.mark.parametrize("silent", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_server_that_is_not_there_is_given_up_within_ten_seconds(silent):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen()
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=r"orch:\*\*\*@127.0.0.1"):
            Record.open(f"postgresql://orch:s3cret@127.0.0.1:{listener.getsockname()[1]}/d", create=True)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("value", ["\udcff.png", "é\x00", 2**70, 1e-300, -0.0, float("inf"), [None, True, {"a": {}}]])
def test_what_a_spec_holds_is_read_as_it_was_written(lite, value):
    record, _ = lite
    new_study(record, value=value)
    found = record.study("s").spec["value"]
    assert repr(found) == repr(value)

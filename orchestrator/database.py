"""The record's database: tables of one version, and transactions that a lease fences and a restarted server delays."""

from __future__ import annotations

import functools
import logging
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from orchestrator.engines import cause, make_engine, make_folder, parse_url
from orchestrator.errors import FencedError, NothingRecordedError, UnavailableError
from orchestrator.tables import Base, LeaseRow, Meta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from orchestrator.leases import Lease

log = logging.getLogger(__name__)

SCHEMA_VERSION = 4
# What brings a record of an older version to the next, but for tables that it lacks.
_MIGRATIONS = {
    1: ("ALTER TABLE trials ADD COLUMN confirms INTEGER",),
    2: (
        "ALTER TABLE promotions ADD COLUMN alias VARCHAR(255) NOT NULL DEFAULT 'champion'",
        "ALTER TABLE promotions ADD COLUMN reason VARCHAR",
        "ALTER TABLE promotions ADD COLUMN figures JSON",
        "ALTER TABLE attempts ADD COLUMN launch BIGINT",
    ),
    3: (),  # a table alone
}
_CREATION_LOCK = 0x6F726368  # any number that other programs do not lock
RESTART_SECONDS = 120  # that a server which was there may be away
LOOK_SECONDS = 0.5
# PostgreSQL's classes of errors of a broken connection, and of a server that stops or starts (its manual, appendix A).
RESTART_STATES = ("08", "57P")

_LEASES = Base.metadata.tables[LeaseRow.__tablename__]
_TOKEN = select(_LEASES.c.token).where(_LEASES.c.name == bindparam("lease")).with_for_update()

P = ParamSpec("P")
R = TypeVar("R")


def through_restarts(method: Callable[P, R]) -> Callable[P, R]:
    """A whole transaction that is done again when the server it was sent to has come back.

    Whether one that lost its answer was committed cannot be known: what is done here may be done twice.
    """

    @functools.wraps(method)
    def outlive(*args: P.args, **kwargs: P.kwargs) -> R:
        deadline = time.monotonic() + RESTART_SECONDS
        while True:
            try:
                return method(*args, **kwargs)
            except UnavailableError as error:
                if not _is_restart(error.__cause__) or time.monotonic() > deadline:
                    raise
            log.warning("the record's server is away; waiting for it")
            time.sleep(LOOK_SECONDS)

    return outlive


def _is_restart(error: BaseException | None) -> bool:
    if not isinstance(error, OperationalError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    is_server = type(error.orig).__module__.startswith("psycopg")
    return is_server and (state is None or str(state).startswith(RESTART_STATES))


class Database:
    """A connection to the record. Threads may share it; processes open their own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._address = engine.url.render_as_string()  # hides the password
        self._read = sessionmaker(engine, expire_on_commit=False)
        self._write = sessionmaker(engine.execution_options(immediate=True), expire_on_commit=False)

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> Self:
        """Open the record at `url`; `create` makes what is missing, else a missing one is an error.

        Raises:
            UsageError: a malformed URL, a missing driver, or nothing there and not `create`.
            UnavailableError: unreachable, corrupt, or written by a newer version; its bytes are untouched.
        """
        parsed = parse_url(url)
        file = Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None
        if file is not None and not file.exists():
            if not create:
                raise NothingRecordedError(f"no study has been recorded in {file.parent}; start one with `orch sweep`")
            make_folder(file.parent)
        record = cls(make_engine(parsed))
        try:
            record._prepare(create=create)
        except BaseException as error:
            record.close()
            if isinstance(error, DBAPIError):
                raise UnavailableError(f"the record at {record._address} is not usable: {cause(error)}") from error
            raise
        return record

    def _prepare(self, *, create: bool) -> None:
        with self._read() as session:  # a stopped process may hold SQLite's only lock: who just reads asks for none
            found = self._version(session) if self._has_tables(session) else "none"
        if found != str(SCHEMA_VERSION):
            with self._write.begin() as session:
                if not self._has_tables(session):
                    if not create:
                        raise NothingRecordedError("no study has been recorded yet; start one with `orch sweep`")
                    self._create_tables(session)
                self._migrate(session)
                found = self._version(session)
        if found != str(SCHEMA_VERSION):
            raise UnavailableError(
                f"the record at {self._address} has schema version {found}; this orch reads {SCHEMA_VERSION}"
            )

    def _has_tables(self, session: Session) -> bool:
        return self.engine.dialect.has_table(session.connection(), Meta.__tablename__)

    def _version(self, session: Session) -> str:
        """The version that the tables say they have."""
        meta = session.get(Meta, "schema_version")
        return meta.value if meta else "none"

    def _create_tables(self, session: Session) -> None:
        if self.engine.dialect.name == "postgresql":  # where two could create them at once
            session.execute(select(func.pg_advisory_xact_lock(_CREATION_LOCK)))
        Base.metadata.create_all(session.connection())
        session.merge(Meta(key="schema_version", value=str(SCHEMA_VERSION)))

    def _migrate(self, session: Session) -> None:
        """Bring an older record up to date, in the transaction that found it so."""
        meta = session.get(Meta, "schema_version", with_for_update=True)
        while meta is not None and meta.value.isdecimal() and int(meta.value) in _MIGRATIONS:
            for statement in _MIGRATIONS[int(meta.value)]:
                session.execute(text(statement))
            Base.metadata.create_all(session.connection())
            meta.value = str(int(meta.value) + 1)
            session.flush()

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading.

        Raises:
            UnavailableError: the database is gone or corrupt.
        """
        try:
            with self._read() as session:
                yield session
        except DBAPIError as error:
            raise UnavailableError(f"the record at {self._address} cannot be read: {cause(error)}") from error

    @contextmanager
    def write(self, lease: Lease | None = None) -> Iterator[Session]:
        """One write transaction; with a `lease`, only while its token is the newest.

        Raises:
            FencedError: another process holds the lease now.
            UnavailableError: the database refused, for lack of space for example; nothing was written.
        """
        try:
            with self._write.begin() as session:
                if lease is not None:
                    self._check(session, lease)
                yield session
        except DBAPIError as error:
            raise UnavailableError(f"the record at {self._address} cannot be written: {cause(error)}") from error

    def _check(self, session: Session, lease: Lease) -> None:
        if session.connection().scalar(_TOKEN, {"lease": lease.name}) != lease.token:
            raise FencedError(f"{lease.name} was taken over by another process; nothing more is written from here")

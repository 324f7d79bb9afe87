"""SQLAlchemy's engines for the record: SQLite that waits and never half writes, PostgreSQL by URL."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json
from sqlalchemy import create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from orchestrator.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.exc import DBAPIError

BUSY_SECONDS = 120  # a backup or a virus scanner may hold the file for a minute; waiting loses nothing


def parse_url(url: str) -> URL:
    """Read the URL of a record.

    Raises:
        UsageError: malformed, or of a database that is not kept or not taken.
    """
    expected = "expected sqlite:///FILE or postgresql://HOST/NAME"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # its message may carry the URL, and with it the password
        raise UsageError(f"the record's URL is malformed; {expected}") from error
    if parsed.get_backend_name() not in {"sqlite", "postgresql"} or parsed.database in {None, "", ":memory:"}:
        raise UsageError(f"no record can be kept at {parsed.render_as_string()}; {expected}")
    return parsed


def make_folder(path: Path) -> None:
    """Make the folder of a database's file.

    Raises:
        UnavailableError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"the folder {path} cannot be made: {error.strerror}") from error


def cause(error: DBAPIError) -> str:
    """What the driver said, in a line."""
    return (str(error.orig).strip().splitlines() or ["no reason given"])[0]


def make_engine(url: URL) -> Engine:
    """The engine for a URL; it has connected to nothing yet.

    Raises:
        UsageError: there is no such driver, or it is not installed.
    """
    if url.get_backend_name() != "sqlite":
        try:
            return create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 5})
        except NoSuchModuleError as error:
            raise UsageError(f"there is no database driver {url.drivername!r}; use postgresql") from error
        except ModuleNotFoundError as error:
            raise UsageError(f"{error.name} is not installed; `pip install 'orch[postgres]'`") from error
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, json_deserializer=_read_json)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _read_json(text: str) -> Any:
    """As `json.loads`, in a third of the time, which is much of that which reading thousands of trials takes."""
    try:
        return from_json(text)
    except ValueError:  # half of a surrogate pair, as in the path of a file whose name is no text
        return json.loads(text)


def _configure_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # pysqlite would begin transactions late, and as readers
    if connection.execute("PRAGMA page_count").fetchone() == (0,):  # only of a new file: the mode is kept in it
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that starts as a reader and then writes can fail with "locked" at once, whatever the timeout.
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

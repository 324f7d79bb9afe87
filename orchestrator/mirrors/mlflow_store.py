"""MLflow's store as everything here opens it: tables that are whole or not there, addresses, and time for files."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from sqlalchemy import event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from orchestrator.engines import cause, make_engine
from orchestrator.errors import UnavailableError
from orchestrator.mirrors import opening, prepare_sqlite

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping

    from mlflow import MlflowClient

    from orchestrator.settings import Settings


TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
FILE_SECONDS = 120  # a server may put a file into a store of its own before it answers


@contextmanager
def opening_store(settings: Settings) -> Iterator[None]:
    """While a client is made no other process here makes one; a local database has its tables by then.

    Raises:
        UnavailableError: the database's file cannot be used, or its server cannot be reached.
        SQLAlchemyError: its tables cannot be made.
    """
    _check_reachable(settings.tracking_uri)
    with opening(settings):
        if not is_server(settings.tracking_uri):
            prepare_sqlite(settings.tracking_uri, _create_tables)
        yield


def _check_reachable(uri: str) -> None:
    """See that the server of a database answers: MLflow would try for 100 seconds, and keep others waiting for it."""
    if not uri.startswith("postgresql"):
        return
    engine = make_engine(make_url(uri))
    try:
        engine.connect().close()
    except DBAPIError as error:
        raise UnavailableError(f"MLflow at {address(uri)} is not usable now: {cause(error)}") from error
    finally:
        engine.dispose()


def wait_for_no_disk(client: MlflowClient) -> None:
    """Let the commits of a client of a local database return before they are on the disk.

    A run takes eight of them. A power cut may then cost the latest, in order; as a trial's state is written last, the
    mirror sees what is lacking and writes it again. A process that is killed loses none (https://sqlite.org/pragma.html).
    """
    engine = client._tracking_client.store.engine
    if engine.dialect.name == "sqlite" and not event.contains(engine, "connect", _commit_to_memory):
        event.listen(engine, "connect", _commit_to_memory)
        engine.dispose()  # of connections that were made without


def _commit_to_memory(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")


def is_server(uri: str) -> bool:
    """Whether a tracking URI names a server, and not a database."""
    return urlsplit(uri).scheme in {"http", "https"}


def address(uri: str) -> str:
    """A tracking URI without user and password."""
    if is_server(uri):
        parts = urlsplit(uri)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    try:
        return make_url(uri).render_as_string()
    except ArgumentError:
        return uri


def local_path(uri: str) -> Path | None:
    """The path behind an artifact URI of this machine, or None."""
    if uri.startswith("file:"):
        return Path(url2pathname(urlsplit(uri).path))
    return None if "://" in uri or ":/" in uri else Path(uri)


@contextmanager
def call_environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Settings that MLflow reads from the environment at each call, but for those that the user has made.

    They are gone afterwards: a registry may try again what a mirror must not.
    """
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def time_for_files() -> Iterator[None]:
    """A longer timeout; MLflow reads it from the environment at each call."""
    before = os.environ[TIMEOUT]
    os.environ[TIMEOUT] = str(max(FILE_SECONDS, int(before)))
    try:
        yield
    finally:
        os.environ[TIMEOUT] = before


def _create_tables(url: str) -> None:
    from mlflow.db import upgrade

    assert upgrade.callback is not None, "`mlflow db upgrade` is a command"
    upgrade.callback(url)

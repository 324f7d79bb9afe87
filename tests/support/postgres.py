"""A real PostgreSQL server in a folder of its own, on a loopback port; it can be stopped hard and started again."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from tests.conftest import require
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

USER, PASSWORD = "orch", "s3cret"


class Server:
    """A cluster of databases; `programs` is the folder of `initdb` and `pg_ctl`."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._data = folder / "data"
        self.port = free_ports()
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:  # which initdb refuses
            for path in (folder, password):
                shutil.chown(path, "postgres", "postgres")
        options = [f"--username={USER}", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync"]
        self._run("initdb", f"--pgdata={self._data}", "--encoding=UTF8", "--locale=C", *options)
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(f"listen_addresses = '127.0.0.1'\nport = {self.port}\n")
            settings.write(f"unix_socket_directories = '{folder}'\n")
            settings.write("fsync = off\n")  # processes crash here, not machines

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._run("pg_ctl", "start", f"--pgdata={self._data}", f"--log={self._folder / 'log'}", "--wait")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; `immediate` is as good as a crash."""
        self._run("pg_ctl", "stop", f"--pgdata={self._data}", f"--mode={mode}", "--wait")

    def url(self, name: str = "postgres") -> str:
        """The address of a database, with its password."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """The address of an empty database for so long: a schema of its own, which is made sooner than a database."""
        name = f"s{uuid.uuid4().hex}"
        self._execute(f"CREATE SCHEMA {name}")
        try:
            yield f"{self.url()}?options=-csearch_path%3D{name}"
        finally:
            self._execute(f"DROP SCHEMA {name} CASCADE")

    def create(self, name: str) -> str:
        """Make a database that stays; its address."""
        self._execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        done = subprocess.run(command, cwd=self._folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@contextmanager
def running() -> Iterator[Server]:
    """A server that runs until the end; the test is skipped where PostgreSQL is missing."""
    programs = require("postgresql")
    # Not pytest's folder: another user must be able to enter it.
    with tempfile.TemporaryDirectory(prefix="orch-postgres-") as folder:
        server = Server(programs, Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")

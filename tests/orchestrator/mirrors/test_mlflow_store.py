"""MLflow's tables, which are made in dozens of steps, none of which gets over being interrupted."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from mlflow import MlflowClient

from orchestrator.errors import UnavailableError
from orchestrator.mirrors import prepare_sqlite
from orchestrator.mirrors.mlflow_store import opening_store
from tests.support.sweeps import settings_of

KILLED_IN_CREATION = """
import os, signal, sqlite3, sys
from orchestrator.mirrors import prepare_sqlite

def create(url):
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    connection.execute("create table half (x)")
    os.kill(os.getpid(), signal.SIGKILL)

prepare_sqlite(sys.argv[1], create)
"""
# The libraries are imported once and the children forked, so that a kill costs no second of imports.
KILLED_AT_RANDOM = """
import os, random, signal, sys, time
from pathlib import Path
import mlflow
from orchestrator.mirrors.mlflow_store import opening_store
from tests.support.sweeps import settings_of

chance, settings = random.Random(0), settings_of(Path(sys.argv[1]))
for _ in range(10):
    child = os.fork()
    if child == 0:
        with opening_store(settings):
            os._exit(0)
    time.sleep(chance.uniform(0.1, 1.0))
    os.kill(child, signal.SIGKILL)
    print(os.WIFSIGNALED(os.waitpid(child, 0)[1]))
"""


def create(url):
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        connection.execute("create table whole (x)")


def tables(file):
    with closing(sqlite3.connect(file)) as connection:
        return [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]


def test_database_whose_maker_was_killed_is_made_anew(tmp_path):
    file = tmp_path / "folder é" / "mlflow.db"
    url = f"sqlite:///{file}"
    done = subprocess.run([sys.executable, "-c", KILLED_IN_CREATION, url], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not file.exists()
    prepare_sqlite(url, create)
    assert tables(file) == ["whole"]
    assert [path.name for path in file.parent.iterdir()] == ["mlflow.db"]


def test_database_that_is_there_is_not_made_again(tmp_path):
    url = f"sqlite:///{tmp_path / 'x.db'}"
    prepare_sqlite(url, create)
    prepare_sqlite(url, lambda _: pytest.fail("made again"))
    assert tables(tmp_path / "x.db") == ["whole"]


def test_file_that_is_no_database_is_named_and_left_alone(tmp_path):
    file = tmp_path / "x.db"
    file.write_bytes(b"a text" * 100)
    with pytest.raises(UnavailableError, match=r"x\.db"):
        prepare_sqlite(f"sqlite:///{file}", create)
    assert file.read_bytes() == b"a text" * 100


@pytest.mark.slow
def test_mlflow_store_works_after_kills_at_random_moments_of_its_making(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_RANDOM, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "True" in done.stdout, "some were killed"
    settings = settings_of(tmp_path)
    with opening_store(settings):
        client = MlflowClient(settings.tracking_uri)
    assert client.create_experiment("x")

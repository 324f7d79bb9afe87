"""The mirrors' databases with their tables and nothing in them: making them takes seconds of every first sweep."""

from __future__ import annotations

import atexit
import functools
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from orchestrator.settings import Settings

NAMES = ("mlflow.db", "optuna.db")


@functools.cache
def _made() -> Path:
    """A folder that holds them, made once a process."""
    import optuna
    from mlflow import MlflowClient

    from orchestrator.mirrors import opening, prepare_sqlite
    from orchestrator.mirrors.mlflow_store import opening_store

    home = Path(tempfile.mkdtemp(prefix="empty-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    settings = Settings(
        home=home, record_url=f"sqlite:///{home / 'orch.db'}", tracking_uri=f"sqlite:///{home / 'mlflow.db'}"
    )
    with opening_store(settings):
        MlflowClient(settings.tracking_uri).search_experiments()
    with opening(settings):
        prepare_sqlite(settings.optuna_url)
        optuna.storages.RDBStorage(settings.optuna_url).engine.dispose()
    for name in NAMES:
        with closing(sqlite3.connect(home / name)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # all in the one file that is copied
    return home


def put_into(home: Path) -> Path:
    """Copy those that are missing into a state folder, and return it."""
    home.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if not (home / name).exists():
            shutil.copyfile(_made() / name, home / name)
    return home

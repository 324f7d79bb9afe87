"""Where the record is mirrored to: one file a target, behind one protocol.

A target is given trials whole, as the record holds them now, and writes what it lacks of them. It therefore never
matters how often, or after what crash, it is given one: what is there already is not written again.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout
from sqlalchemy import make_url

from orchestrator.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from orchestrator.leases import Lease
    from orchestrator.settings import Settings
    from orchestrator.store import Record
    from orchestrator.tables import Attempt, Epoch, Export, Sample, State, Study, Trial

# Name of a target, as in cursors -> its module and class. A target's libraries are imported with its module.
TARGETS = {
    "tensorboard": ("orchestrator.mirrors.tensorboard_events", "TensorBoardEvents"),
    "optuna": ("orchestrator.mirrors.optuna_storage", "OptunaStorage"),
    "mlflow": ("orchestrator.mirrors.mlflow_runs", "MlflowRuns"),
}
OPEN_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that the record knows of a trial, read in one transaction."""

    trial: Trial
    attempts: Sequence[Attempt]
    epochs: Sequence[Epoch]
    export: Export | None
    samples: Sequence[Sample] = ()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a trial has come."""

    state: State
    started: bool
    num_epochs: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a target is made with: whose runs it mirrors, from which record, into which state folder."""

    settings: Settings
    record: Record
    lease: Lease
    study: Study


class Target(Protocol):
    """Something that shows a study, and is brought up to the record in one thread at a time."""

    def open(self, progress: Mapping[int, Progress]) -> set[int]:
        """Connect (again) and return which of these trials it should hold but lacks, in whole or in part.

        Raises:
            UnavailableError: it cannot be reached; the message names its address.
        """

    def apply(self, study: Study, trials: Sequence[Snapshot]) -> None:
        """Write what it lacks of the study's row and of these trials, which come by number.

        Raises:
            UnavailableError: it cannot be reached; some of it may be written.
        """

    def close(self) -> None:
        """Write that nothing more will come for now; `apply` may follow after another `open`."""

    def remove(self) -> None:
        """Remove all of the study."""


def load(name: str) -> Callable[[Place], Target]:
    """Import what makes the target called `name`, with its libraries."""
    module, kind = TARGETS[name]
    found: Callable[[Place], Target] = getattr(importlib.import_module(module), kind)
    return found


def study_key(study: Study) -> str:
    """What tells a study from all others, also of other records and of deleted ones of its name."""
    return hashlib.sha256(f"{study.name}/{study.id}/{study.created_at!r}".encode()).hexdigest()[:16]


@contextmanager
def opening(settings: Settings) -> Iterator[None]:
    """Only one process at a time opens local databases: creating their tables is not safe otherwise."""
    settings.home.mkdir(parents=True, exist_ok=True)
    lock = settings.home / ".mirrors.lock"
    try:
        with FileLock(lock, timeout=OPEN_SECONDS):
            yield
    except Timeout as error:
        raise UnavailableError(f"another process holds {lock} for more than {OPEN_SECONDS:.0f} s") from error


def prepare_sqlite(url: str, create_tables: Callable[[str], None] | None = None) -> None:
    """Set the database at `url` to write-ahead logging, if it is SQLite: readers do not block, commits are cheap.

    `create_tables` is for those who would not get over being killed in the middle of it: a file that is not there yet
    is made elsewhere, and gets its name once it is whole.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return
    file = Path(parsed.database)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if create_tables is not None and not (file.exists() and file.stat().st_size):
            _create_whole(url, file, create_tables)
        with closing(sqlite3.connect(file, timeout=OPEN_SECONDS)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    except (OSError, sqlite3.Error) as error:
        raise UnavailableError(f"{file} is not usable: {error}") from error


def _create_whole(url: str, file: Path, create_tables: Callable[[str], None]) -> None:
    prefix = ".new-"
    folder, _, name = url.rpartition("/")
    for left in file.parent.glob(f"{prefix}{glob.escape(file.name)}*"):  # by one who was killed here
        left.unlink()
    create_tables(f"{folder}/{prefix}{name}")
    file.with_name(prefix + file.name).replace(file)


def finite_or_none(value: Any) -> float | None:
    """`value` as a finite float, or None."""
    number = float("nan") if value is None else float(value)
    return number if abs(number) < float("inf") else None

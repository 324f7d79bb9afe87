"""Leases with fencing tokens: who may write a study, and how another takes over from one that died or sleeps.

A holder raises its lease's counter every `RENEW_SECONDS`. A challenger looks at that counter again and again, and at
no clock: if it stands still over `LEASE_SECONDS` of looks, or the holder's process is gone from this host, the
challenger takes the lease with the next token. `Record.write` then refuses the old token.
(M. Kleppmann, "How to do distributed locking", 2016.)
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from orchestrator.errors import HeldError, UnavailableError
from orchestrator.processes import LEASE_SECONDS
from orchestrator.tables import LeaseRow

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy.orm import Session

    from orchestrator.store import Record

RENEW_SECONDS = 2.0
LOOK_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write what `name` stands for, as long as `token` is the newest."""

    name: str
    token: int


class Holding:
    """A context in which this process holds a lease and renews it from a thread."""

    def __init__(self, record: Record, name: str) -> None:
        self._record = record
        self._stop = threading.Event()
        self.lease = _acquire(record, name)
        self._thread = threading.Thread(target=self._renew, name=f"lease {name}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self.lease

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        with self._record.write() as session:
            session.execute(_mine(self.lease).values(holder=None))

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                with self._record.write() as session:
                    session.execute(_mine(self.lease).values(counter=LeaseRow.counter + 1))
            except UnavailableError:
                continue  # a database that restarts; the token decides whether this holder still counts


def study_lease(study: str) -> str:
    """The name of the lease of who may write a study."""
    return f"study:{study}"


def holder_of(record: Record, name: str) -> dict[str, Any] | None:
    """The process that holds a lease, as far as can be seen from here: host, pid, and `paused` if it is."""
    with record.read() as session:
        row = session.get(LeaseRow, name)
    return None if row is None or is_gone(row.holder) else row.holder


def mark_paused(record: Record, lease: Lease, *, paused: bool) -> None:
    """Let others see that the holder of a lease does nothing but wait, or no longer."""
    with record.write(lease) as session:
        session.execute(_mine(lease).values(holder={**_this_process(), "paused": paused}))


def _mine(lease: Lease) -> Any:
    return update(LeaseRow).where(LeaseRow.name == lease.name, LeaseRow.token == lease.token)


def _acquire(record: Record, name: str) -> Lease:
    seen: tuple[int, int] | None = None
    # Looks are counted, not seconds: a database that is locked for a minute holds up the holder too.
    looks_left = int(LEASE_SECONDS / LOOK_SECONDS)
    while True:
        with record.write() as session:
            row = _locked_row(session, name)
            if is_gone(row.holder) or (seen == (row.token, row.counter) and looks_left <= 0):
                row.token += 1
                row.holder = _this_process()
                return Lease(name=name, token=row.token)
            if seen is not None and seen != (row.token, row.counter):
                assert row.holder is not None
                raise HeldError(f"{name} is held by process {row.holder['pid']} on {row.holder['host']}")
            seen = (row.token, row.counter)
        looks_left -= 1
        time.sleep(LOOK_SECONDS)


def _locked_row(session: Session, name: str) -> LeaseRow:
    """The lease's row, made if there is none yet, and kept from others until the transaction ends."""
    if session.get(LeaseRow, name) is None:
        with contextlib.suppress(IntegrityError), session.begin_nested():  # another may make it just now
            session.add(LeaseRow(name=name, token=0, counter=0, holder=None))
    return session.get_one(LeaseRow, name, with_for_update=True, populate_existing=True)


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "boot": _boot_id(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_gone(holder: dict[str, Any] | None) -> bool:
    """Whether the holder released the lease or was a process of this host that no longer lives."""
    if holder is None:
        return True
    if holder["host"] != socket.gethostname():
        return False
    return bool(holder["boot"] != _boot_id() or holder["started"] != _started(holder["pid"]))


def _started(pid: int) -> float | None:
    """When a process started, by a clock that nobody sets; None if it does not live."""
    try:
        if sys.platform != "linux":
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
        # In ticks since the boot, see proc(5); psutil adds the time of the boot, which moves with the wall clock.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in {"Z", "X"} else float(fields[18])
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))

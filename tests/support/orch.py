"""The installed `orch` as a user runs it: real processes in a state folder of their own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import psutil
import pytest
from sqlalchemy import update

from orchestrator import cli, coordinator, forkserver
from orchestrator.executors.local import FOR_EXPORTS
from orchestrator.store import Record
from orchestrator.tables import LeaseRow
from tests.support import databases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from orchestrator.mirror_process import Mirror

ORCH = str(Path(sys.executable).with_name("orch"))
COUNTING = str(Path(__file__).with_name("counting.py"))


class Orch:
    """One state folder and the commands run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "mlruns"
        self.journal = folder / "journal"
        self.environment = {**os.environ, "ORCH_HOME": str(self.home)}
        self.environment.pop("MLFLOW_TRACKING_URI", None)

    def __call__(self, *arguments: str, code: int | None = 0, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; `code` is the exit code it must have (None: any)."""
        done = subprocess.run(
            [ORCH, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=seconds
        )
        if code is not None:
            assert done.returncode == code, f"orch {arguments} gave {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str) -> Any:
        """What a command that runs in this process prints with --json."""
        return json.loads(self.here(*arguments, "--json").stdout)

    def here(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """A command in this process, without what takes a sweep's first ten seconds, where a test is not about that.

        Workers are forked from a server that all tests of a process share, and no mirror follows the record.
        """
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.chdir(self.folder)
            patch.setattr(os, "environ", dict(self.environment))
            patch.setattr(sys, "argv", ["orch", *arguments])
            patch.setattr(sys, "stdin", io.StringIO())  # nobody is at the keyboard
            patch.setattr(forkserver, "worker_server", lambda: contextlib.nullcontext(_shared_server()))
            patch.setattr(coordinator, "run", functools.partial(coordinator.run, make_mirror=_no_mirror))
            with pytest.raises(SystemExit) as ended:
                cli.main()
        done = subprocess.CompletedProcess(arguments, ended.value.code or 0, out.getvalue(), err.getvalue())
        assert done.returncode == code, done
        return done

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on while the test does something to it; nothing of it is left afterwards."""
        process = subprocess.Popen(
            [ORCH, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            for left in [*descendants(process.pid), *([psutil.Process(process.pid)] if process.poll() is None else [])]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
            process.communicate()

    def counting(self, *keys: str, **fields: Any) -> list[str]:
        """Arguments of a sweep of the counting recipe, written down in the journal; the mirrors have databases."""
        databases.put_into(self.home)
        chosen = {"hidden": "range(4,16)", "journal": str(self.journal), "pruner": "none", "export": "none"}
        chosen |= {"sampler": "random", **fields}  # the quickest; others take seconds to import and draw
        return ["sweep", f"recipe={COUNTING}", "study=s", *(f"{key}={value}" for key, value in chosen.items()), *keys]

    def begun(self) -> Counter[tuple[int, int]]:
        """How often each (trial, epoch) was begun."""
        if not self.journal.exists():
            return Counter()
        lines = self.journal.read_text().splitlines()
        return Counter((int(trial), int(epoch)) for trial, epoch in map(str.split, lines))

    def let_go(self) -> None:
        """Let the trials that a `hold_epoch` holds go on."""
        Path(f"{self.journal}.go").touch()

    @contextlib.contextmanager
    def record(self) -> Iterator[Record]:
        """The record, opened for reading."""
        record = Record.open(f"sqlite:///{self.home / 'orch.db'}")
        try:
            yield record
        finally:
            record.close()

    def stop_between_writes(self, process: subprocess.Popen[str]) -> None:
        """Stop a process that does not hold a lock of the record at that moment."""
        with self.record() as record:
            stop_between_writes(process, record)

    def recorded(self) -> dict[int, list[int]]:
        """The epochs that the record holds of each trial of study `s`."""
        with self.record() as record:
            study = record.study("s")
            epochs = record.epochs(study.id)
            return {trial.number: [e.number for e in epochs.get(trial.number, [])] for trial in record.trials(study.id)}


@functools.cache
def _shared_server() -> forkserver.ForkServer:
    server = forkserver.ForkServer(*forkserver.FOR_WORKERS, FOR_EXPORTS)
    atexit.register(server.close)
    return server


def _no_mirror(*_: object) -> contextlib.AbstractContextManager[Mirror]:
    mirror = SimpleNamespace(keep_alive=lambda: None, finish=lambda _: 0, kill=lambda: None)
    return contextlib.nullcontext(cast("Mirror", mirror))


def stop_between_writes(process: subprocess.Popen[str], record: Record) -> None:
    """Send SIGSTOP at a moment when the process does not hold a database's lock, which nobody can take from it."""

    def write() -> None:
        with record.write() as session:
            session.execute(update(LeaseRow).values(counter=LeaseRow.counter))

    with ThreadPoolExecutor(1) as pool:
        for _ in range(100):
            os.kill(process.pid, signal.SIGSTOP)
            written = pool.submit(write)
            with contextlib.suppress(TimeoutError):
                written.result(timeout=1)
                return
            os.kill(process.pid, signal.SIGCONT)
            written.result()
    raise AssertionError(f"process {process.pid} always writes")


def descendants(pid: int) -> list[psutil.Process]:
    """All living processes below `pid`."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in psutil.Process(pid).children(recursive=True) if alive(child)]
    return []


def children(pid: int, what: str) -> list[psutil.Process]:
    """The descendants that run `python -m what`, or whose name begins so."""
    found = []
    for child in descendants(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if what in child.cmdline() or child.name().startswith(what):
                found.append(child)
    return found


def assert_gone(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Wait for processes to end, and fail if one does not."""
    wait_until(lambda: not any(map(alive, processes)), seconds, f"{processes} to end")


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_until(condition: Callable[[], Any], seconds: float = 120, what: str = "") -> None:
    """Wait for a condition, and fail if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what or condition}"
        time.sleep(0.02)


def kill(process: psutil.Process | subprocess.Popen[str]) -> None:
    """Send SIGKILL; one that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        os.kill(process.pid, signal.SIGKILL)

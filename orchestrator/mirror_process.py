"""The mirror as the coordinator sees it: a child that follows the record and is started again when it dies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from orchestrator.errors import StoppedError
from orchestrator.processes import Child, Pinger, spawn

if TYPE_CHECKING:
    from types import TracebackType

    from orchestrator.monitor import Monitor
    from orchestrator.settings import Settings

RESTART_SECONDS = 5.0
STOP_SECONDS = 1.0


class Mirror(Protocol):
    """What brings MLflow and the others up to the record while a sweep runs."""

    def keep_alive(self) -> None:
        """Time passed."""

    def finish(self, seconds: float) -> int:
        """Catch up for at most `seconds`; return how many changes are still missing."""

    def kill(self) -> None:
        """End at once."""


MakeMirror = Callable[[str, "Settings", "Monitor"], AbstractContextManager[Mirror]]


class MirrorProcess:
    """A context in which `python -m orchestrator.mirror STUDY` runs."""

    def __init__(self, study: str, settings: Settings, monitor: Monitor) -> None:
        self._study, self._monitor = study, monitor
        self._log = settings.logs / study / "mirror.log"
        self._home = settings.home
        self._pinger = Pinger()
        self._child = self._spawn()
        self._started_at = time.monotonic()

    def keep_alive(self) -> None:
        """Start the mirror again if it died; what it had not done is still in the record."""
        code = self._child.process.poll()
        if code is None or time.monotonic() - self._started_at < RESTART_SECONDS:
            return
        self._monitor.note(f"the mirror ended with code {code} and is started again; see {self._log}")
        self._child.kill()
        self._child = self._spawn()
        self._started_at = time.monotonic()

    def finish(self, seconds: float) -> int:
        """Let the mirror catch up for at most `seconds`; return how many changes it still lacks."""
        self._child.channel.send({"finish": seconds})
        deadline = time.monotonic() + 1.5 * seconds
        while (left := deadline - time.monotonic()) > 0 and self._child.channel.wait(left):
            messages = self._child.channel.receive()
            if messages is None:
                break
            for message in messages:
                return int(sum(message["lag"].values()))
        return 1  # it died or was silent: something may be missing

    def kill(self) -> None:
        """End the mirror at once; what it had not done is still in the record."""
        self._pinger.stop()
        self._child.kill()

    def __enter__(self) -> MirrorProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if isinstance(error, StoppedError):
                self.finish(STOP_SECONDS)  # so that a stopped study does not look like one that runs
        finally:
            self.kill()

    def _spawn(self) -> Child:
        environment = {"ORCH_HOME": str(self._home), **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")}
        child = spawn("orchestrator.mirror", [self._study], log=self._log, environment={**os.environ, **environment})
        self._pinger.add(child.channel)
        return child

"""One slot as a Ray actor: what a worker process does on this machine, with method calls for messages.

It knows nothing of Ray, which runs its methods in several threads; the jobs are done in a thread of its own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import carrier, worker
from orchestrator.processes import LEASE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.depot import Depot

NUM_THREADS = 4  # that call methods: one waits in `events`, the others are quick
NUM_CHECKS = 5  # of whether the driver was heard, in one lease


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A file that the driver has written, and what is in it: who reads the same shares its state folder, or depot."""

    path: str  # at a depot a name
    text: str


class RayWorker:
    """Jobs in, events out."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._port = worker.MessagePort(self._events.put)
        self._heard = threading.Event()

    def ready(self, name: str, log: str, proof: Proof, depot: Depot | None = None) -> tuple[str, ...]:
        """Get ready for jobs, whose files go to and fro by `depot` if there is one; return the GPUs that Ray gave.

        Raises:
            OSError: the state folder is not here, or not to be written; or the depot cannot be reached.
        """
        if (depot.read(proof.path) if depot else Path(proof.path).read_text()) != proof.text:
            raise FileNotFoundError(f"{proof.path} is another one here")
        if depot:
            Path(log).parent.mkdir(parents=True, exist_ok=True)
        _write_output_to(log)
        worker.prepare(name)
        do = functools.partial(carrier.run, depot=depot) if depot else worker.run
        threading.Thread(target=self._port.work, args=(do,), name="jobs", daemon=True).start()
        threading.Thread(target=_end_in_silence, args=(self._heard,), name="silence", daemon=True).start()
        return tuple(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))

    def receive(self, message: dict[str, Any]) -> None:
        """Take a job, a decision, or a sign of life."""
        self._heard.set()
        if "ping" not in message:
            self._port.receive(message)

    def events(self, seconds: float) -> list[dict[str, Any]]:
        """What happened since the last call, waiting at most so long for something to happen."""
        self._heard.set()
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._events.get(timeout=seconds))
            while True:
                found.append(self._events.get_nowait())
        return found


def _write_output_to(log: str) -> None:
    """Send what this process prints to the end of `log`, as a local worker's; Ray's own files are hard to find."""
    with Path(log).open("ab") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _end_in_silence(heard: threading.Event, end: Callable[[], None] | None = None) -> None:
    """End this process when its driver sleeps: another one may have taken the study over, and wants the place.

    Several checks, so that a job which held up all threads for long is not taken for a silent driver.
    """
    silent = 0
    while silent < NUM_CHECKS:
        time.sleep(LEASE_SECONDS / NUM_CHECKS)
        silent = 0 if heard.is_set() else silent + 1
        heard.clear()
    (end or _end)()


def _end() -> None:
    if os.getpgid(0) == os.getpid():  # else the group is Ray's
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

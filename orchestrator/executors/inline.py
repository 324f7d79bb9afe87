"""Jobs in this process, where a debugger reaches them."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from orchestrator import worker
from orchestrator.executors import UNDER_WAY, Decision, EpochEnded, Event, Slot

if TYPE_CHECKING:
    from orchestrator.executors import Job


def done(job: Job) -> list[Event]:
    """Do a job that waits for no decision in this thread, and return all that it reported."""
    port = _Kept()
    worker.run(job, port)
    return port.events


class _Kept:
    """Keeps the events of a job."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def decision(self) -> Decision:
        """Never asked for."""
        raise AssertionError("nobody is here to decide")


class ClosedError(Exception):
    """Unwinds a job whose executor was closed."""


class InlineExecutor:
    """One slot in a thread. It cannot end a job in the middle of an epoch, only at the end of one."""

    def __init__(self, threads: int) -> None:
        self.slots = (Slot(name="inline", threads=threads),)
        self._events: queue.Queue[Event] = queue.Queue()
        self._decisions: queue.Queue[Decision | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._busy = False

    def free_slots(self) -> list[Slot]:
        """The one slot, if no job is on it."""
        return [] if self._busy else list(self.slots)

    def submit(self, job: Job, slot: Slot) -> None:
        """Start `job` in a thread."""
        assert not self._busy, f"slot {slot.name} is busy"
        self._busy = True
        self._thread = threading.Thread(target=worker.run, args=(job, self), name=slot.name)
        self._thread.start()

    def events(self, timeout_seconds: float) -> list[Event]:
        """What happened, waiting for at most `timeout_seconds` for the first."""
        found: list[Event] = []
        try:
            found.append(self._events.get(timeout=timeout_seconds))
            while True:
                found.append(self._events.get_nowait())
        except queue.Empty:
            pass
        if any(not isinstance(event, UNDER_WAY) for event in found):
            self._busy = False
        return found

    def decide(self, trial: int, decision: Decision) -> None:
        """Answer the job."""
        del trial  # there is but one
        self._decisions.put(decision)

    def close(self) -> None:
        """Let the job end at its next epoch, and wait for that."""
        self._decisions.put(None)
        self._closed = True
        if self._thread is not None:
            self._thread.join()

    # -- worker.Port

    _closed = False

    def send(self, event: Event) -> None:
        """Report an event of the job."""
        if self._closed and isinstance(event, EpochEnded):
            raise ClosedError
        self._events.put(event)

    def decision(self) -> Decision:
        """Wait for the answer."""
        answer = self._decisions.get()
        if answer is None:
            raise ClosedError
        return answer

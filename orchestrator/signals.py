"""SIGINT and SIGTERM while a sweep runs."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from orchestrator.errors import StoppedError

if TYPE_CHECKING:
    from types import FrameType

SHOW_CURSOR = b"\x1b[?25h"


class Signals:
    """Remembers SIGINT and SIGTERM; a second SIGINT ends the process and its children at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.at_second: list[Any] = []  # called before leaving in a hurry

    def __enter__(self) -> Signals:
        self._former = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def stop(self) -> None:
        """Have the run end as by a SIGTERM."""
        self.received = self.received or signal.SIGTERM

    def check(self, study: str) -> None:
        """End the run of `study` here if a signal came.

        Raises:
            StoppedError: one came.
        """
        if self.received is not None:
            error = StoppedError(f"stopped; all finished epochs are saved. Go on with `orch resume {study}`")
            error.exit_code = 128 + self.received
            raise error

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None:
            for end in self.at_second:
                end()
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), SHOW_CURSOR)  # the live display hid it
            os._exit(128 + number)  # the next run finds the lease's holder gone, and its trials still running
        self.received = signal.Signals(number)

"""An event loop that looks for the next request for a moment before it sleeps.

Whoever asks for one thing after another sends the next within that moment. To be woken takes a process 50 µs, and
whatever it does then takes longer: together a quarter of what a small model's answer takes its client.
"""

from __future__ import annotations

import asyncio
import time

from orchestrator.executors.local import num_cores

AWAKE_SECONDS = 0.0002


class Waking:
    """Keeps the event loop that runs from sleeping, on a machine that has another core for whoever asks."""

    def __init__(self) -> None:
        self._seconds = AWAKE_SECONDS if num_cores() > 1 else 0.0
        self._until = 0.0
        self._looks = False

    def stay(self) -> None:
        """Do so for a moment from now on."""
        self._until = time.perf_counter() + self._seconds
        if not self._looks:
            self._look()

    def _look(self) -> None:
        self._looks = time.perf_counter() < self._until
        if self._looks:
            asyncio.get_running_loop().call_soon(self._look)

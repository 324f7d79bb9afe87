"""Starts `tests.support.child`, keeps it awake, prints the ids that it tells, and waits.

`python parent.py LOG LEASE_SECONDS`
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from orchestrator import processes

ROOT = Path(__file__).parents[2]


def main() -> None:
    processes.PING_SECONDS = 0.2
    child = start(Path(sys.argv[1]), sys.argv[2])
    processes.Pinger().add(child.channel)
    print(next(hear(child)), flush=True)
    threading.Event().wait()


def start(log, lease_seconds, **environment):
    """Spawn the child."""
    return processes.spawn(
        "tests.support.child", [str(lease_seconds)], log=log, environment={"PYTHONPATH": str(ROOT), **environment}
    )


def hear(child, seconds=60):
    """The messages of a child, one after another."""
    while child.channel.wait(seconds):
        messages = child.channel.receive()
        if messages is None:
            return
        yield from messages


if __name__ == "__main__":
    main()

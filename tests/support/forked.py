"""What the tests of the fork server let it import and fork: it tells of itself, then does as it is told."""

from __future__ import annotations

import os
import signal
import sys
import threading

prepared_in: int | None = None


def prepare() -> None:
    """Called in a server, and never in what is forked from it."""
    global prepared_in
    prepared_in = os.getpid()


def serve(channel, *arguments):
    """Tell where this runs, then `exit N`, `raise` or `hang`, or end with the parent."""
    print("a line in the log", flush=True)
    channel.send(
        {
            "arguments": arguments,
            "prepared_in": prepared_in,
            "parent": os.getppid(),
            "session": os.getsid(0),
            "pid": os.getpid(),
            "variable": os.environ.get("VARIABLE"),
            "threads": threading.active_count(),
        }
    )
    while messages := channel.receive():
        for message in messages:
            match message.get("do"):
                case "exit":
                    sys.exit(message["code"])
                case "raise":
                    raise RuntimeError("as the test asked")
                case "segfault":
                    os.kill(os.getpid(), signal.SIGSEGV)

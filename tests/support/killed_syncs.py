"""Run as a program: `sync` in child processes that are killed (-9) at random moments, then once to its end.

The libraries are imported once and the children forked, so that a kill costs no second of imports.
Arguments: the state folder, how many kills, the latest moment of a kill in seconds. Prints how far each child came.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from orchestrator import mirrors
from orchestrator.mirror import sync
from tests.support.sweeps import settings_of


def main(home: Path, num_kills: int, latest: float) -> int:
    for name in mirrors.TARGETS:
        mirrors.load(name)
    chance = random.Random(0)
    for _ in range(num_kills):
        child = _fork(home)
        time.sleep(chance.uniform(0, latest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print("killed" if os.WIFSIGNALED(status) else "done", flush=True)
    _, status = os.waitpid(_fork(home), 0)
    return os.waitstatus_to_exitcode(status)


def _fork(home: Path) -> int:
    child = os.fork()
    if child == 0:
        sync(settings_of(home))
        os._exit(0)
    return child


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))

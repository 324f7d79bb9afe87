"""How long `orch --help` takes against `python -c "import click"`, and that it imports nothing heavy."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import machine

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAVY = ("torch", "mlflow", "optuna", "sklearn")
MIN_REPEATS = 20
LIMIT = 5.0

COMMANDS = {
    "orch --help": [str(machine.ORCH), "--help"],
    'python -c "import click"': [sys.executable, "-c", "import click"],
}
# Runs the command as its entry point does, and then says which of HEAVY it has imported.
LOOK = f"""
import sys
from orchestrator.cli import main
sys.argv = ["orch", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("imported:", *(name for name in {HEAVY!r} if name in sys.modules))
"""


def milliseconds(command: Sequence[str]) -> float:
    """From the start of a process to its end."""
    started = time.perf_counter()
    subprocess.run(command, env=machine.environment(), stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - started) * 1000


def heavy_imports() -> list[str]:
    """Which of the heavy libraries `orch --help` imports."""
    command = [sys.executable, "-c", LOOK]
    shown = subprocess.run(command, env=machine.environment(), stdout=subprocess.PIPE, text=True, check=True).stdout
    return shown.splitlines()[-1].removeprefix("imported:").split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=40, help=f"runs of each side, at least {MIN_REPEATS}")
    repeat = parser.parse_args().repeat
    if repeat < MIN_REPEATS:
        parser.error(f"--repeat must be at least {MIN_REPEATS}")
    print(machine.hardware(machine.use_cores(2)))
    print(machine.versions("typer", "click"))
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(repeat + 1):  # the first writes byte code and fills the file cache
        for name, command in COMMANDS.items():
            taken = milliseconds(command)
            if turn:
                times[name].append(taken)
    for name, own in times.items():
        print(f"{name:26} n {len(own)}, {machine.spread(own, 0)} ms")
    ours, peer = (statistics.median(own) for own in times.values())
    print(f"ratio of medians: {ours / peer:.2f} (limit {LIMIT:.0f})")
    found = heavy_imports()
    print(f"of {', '.join(HEAVY)} it imports {', '.join(found) or 'none'}")
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main()

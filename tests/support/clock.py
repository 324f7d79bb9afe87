"""A wall clock that a test can move under running processes, by libfaketime."""

from __future__ import annotations

import os
from pathlib import Path

from tests.conftest import require

# libfaketime 0.9.10 breaks the absolute `clock_nanosleep` of Python's `time.sleep`; `select` is left alone.
_SLEEP = """
import select
import time

time.sleep = lambda seconds: select.select([], [], [], seconds)
"""


class Clock:
    """The environment of processes whose wall clock `move` moves at once; their monotonic clock stays true."""

    def __init__(self, folder: Path) -> None:
        require("faketime")
        (library,) = [str(path) for path in Path("/usr").glob("lib*/*/faketime/libfaketimeMT.so.1")]
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_SLEEP)
        self._offset = folder / "offset"
        self.move(0)
        self.environment = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])),
        }

    def move(self, seconds: int) -> None:
        """Set the clock to so many seconds from now."""
        temporary = self._offset.with_suffix(".new")
        temporary.write_text(f"{seconds:+d}\n")
        temporary.replace(self._offset)

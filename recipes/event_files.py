"""TensorBoard's event files in an attempt's folder: where they lie, and what they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER = "tensorboard"  # in an attempt's
PATTERN = "events.out.tfevents.*"


def read(folder: Path) -> Iterator[Any]:
    """All events of a folder in the order in which they were written."""
    for path in sorted(folder.glob(PATTERN)):
        for record in RawEventFileLoader(str(path)).Load():  # ends at a record that is cut off
            yield Event.FromString(record)

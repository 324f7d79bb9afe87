"""Data sets that installed packages offer, by entry points of the group `orch.data`.

Each is a function without arguments that returns images `(N, C, H, W)` uint8, labels `(N,)` and names of the classes.
It is called once a process; nothing says when what it returns changes, so nothing of it is kept in the cache.
"""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from recipes.data import checked, pictures
from recipes.data.types import Arrays, DataError, Source

if TYPE_CHECKING:
    from recipes.config import DatasetConfig

ENTRY_POINTS = "orch.data"


def names() -> list[str]:
    """Names of the data sets that installed packages offer."""
    return sorted(entry.name for entry in entry_points(group=ENTRY_POINTS))


def source(config: DatasetConfig) -> Source:
    """What the function of that name returns."""
    read = functools.partial(pictures.fitted, functools.partial(_call, config.data), config)
    return Source(key="", read=read, keep=False)


def _call(name: str) -> Arrays:
    (entry, *_) = entry_points(group=ENTRY_POINTS, name=name)
    try:
        images, labels, class_names = entry.load()()
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise DataError(f"data {name!r} ({entry.value}) fails: {type(error).__name__}: {reason}") from error
    return checked.arrays(name, images, labels, class_names)

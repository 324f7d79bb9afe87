"""Folders and files that data sets are made of, and what is said where they are not."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.data.types import DataError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def absolute(path: str) -> str:
    """From the root, without `..` and a slash at the end; links are kept as they are named."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 (`Path.absolute` keeps `..`)


def check_folder(path: Path) -> None:
    """Do nothing if it is a folder.

    Raises:
        DataError: it is not; its nearest neighbour is named.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder" if path.exists() else _missing("folder", path))


def check_file(path: Path) -> None:
    """Do nothing if it is a file.

    Raises:
        DataError: it is not; its nearest neighbour is named.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file" if path.exists() else _missing("file", path))


def _missing(kind: str, path: Path) -> str:
    around = [entry.name for entry in entries(path.parent)] if path.parent.is_dir() else []
    return f"{kind} {path} does not exist{nearest(path.name, around)}"


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name, without hidden things.

    Raises:
        DataError: it can't be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {error.strerror}") from error


def files_below(folder: Path, seen: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All files below a folder in the order of their names, through links too, but not around in circles."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    for entry in entries(folder):
        if entry.is_dir():
            yield from files_below(Path(entry.path), seen | {real})
        else:
            yield Path(entry.path)


def key_of(files: Iterable[Path], *more: object) -> str:
    """A hash that changes when a file does (its name, size or time of change), or one of `more` (JSON values)."""
    digest = hashlib.sha256(json.dumps(more).encode())
    for file in files:
        try:
            status = file.stat()
            digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except OSError:
            digest.update(f"{file}\0missing\n".encode(errors="surrogateescape"))
    return digest.hexdigest()

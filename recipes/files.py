"""Files that are whole or not there, and what tells that they are what they were."""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path`, which holds all of it or what it held before, however this ends.

    Raises:
        OSError: it can't be written; nothing of it is left.
    """
    # A name of its own for each writer: two may be at it at once. Not `tempfile`, whose files only the owner may read.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def link_whole(source: Path, target: Path) -> None:
    """Make `target` another name of a file, or a copy where the disk knows no links; whole or not at all.

    Raises:
        OSError: it can't be made.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        write_whole(target, source.read_bytes())


def replace_by_link(source: Path, target: Path) -> None:
    """Make `target` another name of a file, or a copy where the disk knows no links, whatever was there before.

    Raises:
        OSError: it can't be made; what was there before still is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.hardlink_to(source)
        temporary.replace(target)
    except OSError:
        write_whole(target, source.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)  # is still there where both were the same file before


def sync(folder: Path) -> None:
    """Make a rename in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

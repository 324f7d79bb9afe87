"""Prepared arrays in files: preparing takes seconds, reading milliseconds."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from recipes.config import DatasetConfig
from recipes.data import stored
from recipes.data.types import Arrays, DataError, Labels, columns_from_json, task_from
from recipes.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from recipes.data.types import Source

log = logging.getLogger(__name__)

# They decide which image is where, and how files came here; not what the arrays hold.
NOT_IN_NAME = {"split_seed", "download"}
MAX_SLUG_LENGTH = 40

JSON = TypeVar("JSON")


def cache_folder() -> Path:
    """Where prepared arrays are kept: `cache` in `$ORCH_HOME`, which is `mlruns` here if it is not set."""
    return Path(os.environ.get("ORCH_HOME", "mlruns")).resolve() / "cache"


def path_of(config: DatasetConfig) -> Path:
    """The file of a configuration: one for each choice, so that changed pictures take the place of the former."""
    options = {name: value for name, value in config if name not in NOT_IN_NAME}
    changed = {name: value for name, value in options.items() if value != DatasetConfig.model_fields[name].default}
    slug = re.sub(r"\W+", "-", config.data.rpartition("/")[2]).strip("-")[:MAX_SLUG_LENGTH]
    if changed.keys() <= {"data"} and slug == config.data:
        return cache_folder() / f"{slug}.npz"
    digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{slug}-{digest[:12]}.npz"


@functools.lru_cache(maxsize=2)
def prepared(source: Source, path: Path) -> Arrays:
    """The arrays of a source, read from `path` if they are there, else made and written there.

    Raises:
        DataError: the source is not what it must be; nothing is written.
        OSError: they can't be written.
    """
    if not source.keep:
        found: Arrays | None = source.read()
    elif (found := _read(path, source.key)) is None:
        found = _prepare(source, path)
    assert found is not None
    if found.warning:
        log.warning("%s", found.warning)
    return found


def _prepare(source: Source, path: Path) -> Arrays:
    """One process makes them while all others wait."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        found = _read(path, source.key)
        if found is None:
            try:
                found = source.read()
            except DataError:
                _leave_no_trace(path)
                raise
            _write(path, found, source.key)
            if isinstance(found.images, np.memmap):  # in a file without a name, as large as the one it was copied to
                found = _read(path, source.key)
                assert found is not None, "it has just been written"
    return found


def remembered(arrays: Arrays, path: Path, name: str, make: Callable[[], JSON]) -> JSON:
    """What `make` finds out about arrays; of those that are mapped from `path`, only once.

    Raises:
        OSError: it can't be written down.
    """
    if arrays.mapped is None:
        return make()
    return noted(path.with_name(f"{path.stem}.{name}.json"), arrays.mapped.mark, make)


def noted(file: Path, mark: object, make: Callable[[], JSON]) -> JSON:
    """What `make` finds out about something, made once for each `mark` that it has.

    Raises:
        DataError: from `make`; nothing is written.
        OSError: it can't be written down.
    """
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            note = json.loads(file.read_bytes())
            if note["of"] == mark:
                found: JSON = note["found"]
                return found
        try:
            found = make()
        except DataError:
            _leave_no_trace(file)
            raise
        write_whole(file, json.dumps({"of": mark, "found": found}).encode())
    return found


def _leave_no_trace(path: Path) -> None:
    """Remove what `_prepare` made before it came to nothing; whoever waits for the lock only does the work again."""
    with contextlib.suppress(OSError):  # folders that hold something stay
        path.with_suffix(".lock").unlink()
        path.parent.rmdir()
        path.parent.parent.rmdir()


def _read(path: Path, key: str) -> Arrays | None:
    """The arrays at `path`, if they are there, whole, and made of what is there now.

    What is read is held against its checksums; images that are only mapped are not.
    """
    try:
        with np.load(path) as file:
            if "key" in file and str(file["key"]) != key:
                log.info("%s is made again: its pictures have changed", path)
                return None
            about = Labels(
                labels=file["labels"],
                class_names=tuple(file["class_names"].tolist()),
                parts=file.get("parts"),
                task=task_from(str(file["task"])),
                columns=columns_from_json(json.loads(str(file["columns"]))),
                files=file.get("files"),
            )
            warning = str(file["warning"]) if "warning" in file else ""
            mapped = stored.in_archive(path, "images")
            images = file["images"] if mapped is None else mapped.array
            return Arrays(images=images, about=about, warning=warning, mapped=mapped)
    except FileNotFoundError:
        return None
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        log.warning("%s is broken (%s) and is made again", path, error)
        return None


def _write(path: Path, arrays: Arrays, key: str) -> None:
    about = arrays.about
    found: dict[str, Any] = {
        "images": arrays.images,
        "labels": about.labels,
        "class_names": np.array(about.class_names, dtype=str),
    }
    columns = json.dumps([asdict(column) for column in about.columns])
    found |= {"key": np.array(key), "warning": np.array(arrays.warning)}
    found |= {"task": np.array(about.task), "columns": np.array(columns)}
    found |= {name: each for name, each in (("parts", about.parts), ("files", about.files)) if each is not None}
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        temporary = Path(file.name)
        try:
            np.savez(file, allow_pickle=False, **found)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

"""Files of attempts at a URL, for workers that share no folder with the coordinator: whatever fsspec knows.

A folder of an attempt has a prefix of the same name there. Nothing relies on renames or on what is written at once:
files that count are read by their SHA-256, and a checkpoint's JSON, which names those of its files, is sent last.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UsageError
from recipes.checkpoint import is_checkpoint, write_file
from recipes.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

log = logging.getLogger(__name__)


class DepotError(ConnectionError):
    """The depot did not do what it was asked to."""


def check(url: str) -> None:
    """See that files can be kept at a URL; nothing is written.

    Raises:
        UsageError: no such protocol, its package is not installed, or the URL is not a folder of its own.
    """
    import fsspec  # type: ignore[import-untyped]

    protocol, _, rest = url.partition("://")
    if not rest.strip("/") or (protocol in {"file", "local"} and not rest.startswith("/")):
        raise UsageError(f"checkpoints={url}: expected a URL, such as s3://bucket/folder or file:///folder")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise UsageError(f"checkpoints={url}: {error}") from error
    except ValueError as error:
        raise UsageError(f"checkpoints={url}: {error}; expected one of fsspec, such as s3, gs, abfs or file") from error


@dataclass(frozen=True, kw_only=True)
class Depot:
    """What lies under `url`, as it would in the folder `root` of the coordinator's machine."""

    url: str
    root: str

    def send(self, source: Path, folder: str, *, sent: dict[str, tuple[int, int]]) -> None:
        """Make the prefix of `folder` what the local folder `source` is; `sent` is what of it is there already.

        Raises:
            DepotError, OSError: it may hold a part of it now.
        """
        with self._at(folder) as (fs, prefix):
            files = {str(path.relative_to(source)): path for path in source.rglob("*") if _counts(path)}
            for name in sorted(files, key=lambda name: name.endswith(".json")):
                stamp = files[name].stat().st_size, files[name].stat().st_mtime_ns
                if sent.get(name) != stamp:
                    fs.pipe_file(f"{prefix}/{name}", files[name].read_bytes())
                    sent[name] = stamp
            for name in sorted(sent.keys() - files.keys(), key=lambda name: not name.endswith(".json")):
                fs.rm_file(f"{prefix}/{name}")
                del sent[name]

    def fetch(self, folder: str, target: Path) -> bool:
        """Bring all files of the prefix of `folder` into the local folder `target`; whether there are any.

        Raises:
            DepotError, OSError: not all of them came.
        """
        with self._at(folder) as (fs, prefix):
            found = fs.find(prefix) if fs.exists(prefix) else []
            for path in found:
                _write(target / path[len(prefix) :].lstrip("/"), fs.cat_file(path))
            return bool(found)

    def fetch_files(self, folder: str, target: Path, hashes: Mapping[str, str]) -> None:
        """Bring some files of the prefix of `folder`, with their SHA-256, into the local folder `target`.

        Raises:
            DepotError, OSError: one did not come, or is not what it was.
        """
        with self._at(folder) as (fs, prefix):
            for name, expected in hashes.items():
                path = target / name
                if not path.exists() or sha256_of(path) != expected:
                    _write(path, fs.cat_file(f"{prefix}/{name}"))
                if (found := sha256_of(path)) != expected:
                    path.unlink()
                    raise DepotError(f"{name} has SHA-256 {found}, its worker sent {expected}")

    def remove_generations(self, folder: str) -> None:
        """Remove what only going on with a training would need; that it stays is no harm, and only a warning."""
        with self._tidying(folder) as (fs, prefix):
            for path in fs.find(prefix):
                if is_checkpoint(Path(path)):
                    fs.rm_file(path)

    def remove(self, folder: str = "") -> None:
        """Remove all of the prefix of `folder`, or all there is."""
        with self._tidying(folder or self.root) as (fs, prefix):
            fs.rm(prefix, recursive=True)

    def remove_file(self, folder: str, name: str) -> None:
        """Remove one file of the prefix of `folder`, if it is there."""
        with self._tidying(folder) as (fs, prefix):
            fs.rm_file(f"{prefix}/{name}")

    def write(self, name: str, text: str) -> None:
        """Write a small file beside the prefixes.

        Raises:
            DepotError, OSError: it cannot be written.
        """
        with self._at(self.root) as (fs, prefix):
            fs.pipe_file(f"{prefix}/{name}", text.encode())

    def read(self, name: str) -> str:
        """Read a small file that was written so.

        Raises:
            DepotError, OSError: it is not there, or cannot be read.
        """
        with self._at(self.root) as (fs, prefix):
            return bytes(fs.cat_file(f"{prefix}/{name}")).decode()

    @contextlib.contextmanager
    def _at(self, folder: str) -> Iterator[tuple[Any, str]]:
        """The file system, and the prefix of a folder there; what its driver raises is translated."""
        import fsspec

        makes_folders = {"auto_mkdir": True} if self.url.startswith(("file:", "local:")) else {}
        try:
            fs, top = fsspec.url_to_fs(self.url, **makes_folders)
            fs.invalidate_cache()  # others write there, too
            yield fs, f"{top}/{os.path.relpath(folder, self.root)}".removesuffix("/.")
        except OSError:
            raise
        except Exception as error:
            raise DepotError(f"{self.url}: {type(error).__name__}: {error}") from error

    @contextlib.contextmanager
    def _tidying(self, folder: str) -> Iterator[tuple[Any, str]]:
        try:
            with self._at(folder) as found:
                yield found
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("what is not needed any more stays at %s: %s", self.url, error)


def of_study(url: str, study: str, created_at: float, root: Path) -> Depot | None:
    """The depot of a study below a URL, none without one; another study of that name has another."""
    if not url:
        return None
    return Depot(url=f"{url.rstrip('/')}/{study}-{round(created_at * 1000):x}", root=str(root))


def _counts(path: Path) -> bool:
    return path.is_file() and path.suffix != ".tmp"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data)

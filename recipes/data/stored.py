"""Images that stay in a file: mapped into memory, where the system keeps what is used and lets go of the rest."""

from __future__ import annotations

import functools
import os
import tempfile
import zipfile
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from recipes.data.types import Split

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from recipes.data.types import Names

MAPPED_BYTES = 1 << 28  # of images, from which on they are not read whole
LOCAL_HEADER_BYTES = 30  # of a member in a zip file, before its name


class Mapped:
    """Images `(N, C, H, W)` uint8 somewhere in a file.

    A loader worker gets the open file and maps it again, whatever has the file's name by then.
    """

    def __init__(self, file: IO[bytes], offset: int, shape: tuple[int, ...]) -> None:
        self._file, self._offset = file, offset
        self.array: NDArray[np.uint8] = np.memmap(file, np.uint8, "r", offset, shape)

    @property
    def mark(self) -> list[int]:
        """Tells the file from any other, and from what it was before it was written to."""
        status = os.fstat(self._file.fileno())
        return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd

        return _mapped_again, (DupFd(self._file.fileno()), self._offset, self.array.shape)


def _mapped_again(descriptor: Any, offset: int, shape: tuple[int, ...]) -> Mapped:
    return Mapped(os.fdopen(descriptor.detach(), "rb"), offset, shape)


def in_archive(path: Path, name: str) -> Mapped | None:
    """An array of an `.npz` file as it lies there, or None if it is to be read whole.

    Raises:
        FileNotFoundError, zipfile.BadZipFile, ValueError, KeyError: it is not there, or broken.
    """
    file = path.open("rb")
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo(f"{name}.npy")
    if member.file_size <= MAPPED_BYTES:
        file.close()
        return None
    file.seek(member.header_offset)
    lengths = np.frombuffer(file.read(LOCAL_HEADER_BYTES)[-4:], "<u2")
    file.seek(member.header_offset + LOCAL_HEADER_BYTES + int(lengths.sum()))
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read_header(file)
    if kind != np.uint8:  # a table, which is read whole
        file.close()
        return None
    return Mapped(file, file.tell(), shape)


class StoredSplit(Split):
    """A split whose images are rows of a mapped file; `images` reads them all, `take` those that are asked for."""

    def __init__(self, stored: Mapped, rows: NDArray[np.int64], labels: torch.Tensor, names: Names) -> None:
        vars(self).update(stored=stored, rows=rows, labels=labels, names=names)

    if TYPE_CHECKING:
        stored: Mapped
        rows: NDArray[np.int64]

    @functools.cached_property
    def images(self) -> torch.Tensor:
        """All of them, in memory."""
        return self._read(self.rows)

    def to(self, device: torch.device | str) -> Split:
        """All images on `device`."""
        return Split(images=self._read(self.rows).to(device), labels=self.labels.to(device), names=self.names)

    @property
    def num_bytes(self) -> int:
        """What its images would take up."""
        return len(self.rows) * int(np.prod(self.stored.array.shape[1:]))

    @property
    def is_features(self) -> bool:
        """Features are never stored so."""
        return False

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The images of these rows `(B,)`."""
        return self._read(self.rows[rows.numpy()])

    def _read(self, rows: NDArray[np.int64]) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.take(np.asarray(self.stored.array), rows, axis=0))


class Pile:
    """Pictures `(C, H, W)` uint8 of one height and width, one after another in a file that has no name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed when nobody maps it)
        self._channels: list[int] = []

    def add(self, picture: NDArray[np.uint8]) -> None:
        """Put one on top."""
        self._size = picture.shape[1:]
        self._file.write(np.ascontiguousarray(picture).data)
        self._channels.append(len(picture))

    def array(self) -> NDArray[np.uint8]:
        """All of them `(N, C, H, W)`, with three channels if any has them; mapped if they are many."""
        most = max(self._channels)
        if most != min(self._channels):
            return self._of_one_kind(most).array()
        self._file.flush()
        shape = (len(self._channels), most, *self._size)
        if int(np.prod(shape)) > MAPPED_BYTES:
            return np.memmap(self._file, np.uint8, "r", 0, shape)
        self._file.seek(0)
        return np.fromfile(self._file, np.uint8).reshape(shape)

    def _of_one_kind(self, channels: int) -> Pile:
        other, pixels = Pile(self._folder), int(np.prod(self._size))
        self._file.seek(0)
        for count in self._channels:
            picture = np.frombuffer(self._file.read(count * pixels), np.uint8).reshape(count, *self._size)
            other.add(np.broadcast_to(picture, (channels, *self._size)))
        return other

"""Data sets as whole arrays: split 60/20/20, fingerprinted, and kept on the training device as uint8 tensors.

A study's identity rests on the two fingerprints, so splits come from a random stream that NumPy promises never to
change (NEP 19). Names and fingerprints need no torch; only `load` imports it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import tempfile
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from numpy.typing import NDArray

    from recipes.config import DatasetConfig

log = logging.getLogger(__name__)

TRAIN_SHARE, VAL_SHARE = 0.6, 0.2


class UnknownDataError(ValueError):
    """No data set has this name; `names` are those that exist."""

    def __init__(self, name: str, names: list[str]) -> None:
        super().__init__(f"unknown data {name!r}; known: {', '.join(names)}")
        self.name, self.names = name, names


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What a model must know of its images; `mean` and `std` are a channel's, of the training split, from 0 to 1."""

    channels: int
    height: int
    width: int
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, for storage beside weights."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ImageInfo:
        """The inverse of `to_json`."""
        plain: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in values.items()}
        return cls(**plain)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images `(N, C, H, W)` uint8, or features `(N, ...)` float that need no more preparation; labels `(N,)` int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device | str) -> Split:
        """The same on `device`."""
        return Split(images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Three disjoint splits of one data set; training never looks at `test`."""

    info: ImageInfo
    train: Split
    val: Split
    test: Split
    data_fingerprint: str
    split_fingerprint: str

    def to(self, device: torch.device | str) -> Dataset:
        """The same on `device`."""
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))


@dataclass(frozen=True, kw_only=True)
class _Arrays:
    """A whole data set: images `(N, C, H, W)` uint8, labels `(N,)` int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def names() -> list[str]:
    """Names of the data sets."""
    return sorted(_SOURCES)


def cache_folder() -> Path:
    """Where prepared arrays are kept: `cache` in `$ORCH_HOME`, which is `mlruns` here if it is not set."""
    return Path(os.environ.get("ORCH_HOME", "mlruns")).resolve() / "cache"


def fingerprints(config: DatasetConfig) -> tuple[str, str]:
    """SHA-256 of the data (pixels, labels, class names) and of the split (which image is in which part).

    Raises:
        UnknownDataError: no data set of that name.
    """
    arrays = _arrays(config.data)
    return _data_fingerprint(arrays), _split_fingerprint(_split(arrays.labels, config.split_seed))


def load(config: DatasetConfig, device: torch.device | str = "cpu") -> Dataset:
    """The data set and its splits as tensors on `device`.

    Raises:
        UnknownDataError: no data set of that name.
    """
    import torch

    arrays = _arrays(config.data)
    indices = _split(arrays.labels, config.split_seed)
    train, val, test = (
        Split(images=torch.from_numpy(arrays.images[index]), labels=torch.from_numpy(arrays.labels[index]))
        for index in indices
    )
    return Dataset(
        info=_describe(arrays, indices[0]),
        train=train,
        val=val,
        test=test,
        data_fingerprint=_data_fingerprint(arrays),
        split_fingerprint=_split_fingerprint(indices),
    ).to(device)


def _describe(arrays: _Arrays, train: NDArray[np.int64]) -> ImageInfo:
    _, channels, height, width = arrays.images.shape
    pixels = arrays.images[train].astype(np.float64) / 255
    return ImageInfo(
        channels=channels,
        height=height,
        width=width,
        num_classes=len(arrays.class_names),
        class_names=arrays.class_names,
        mean=tuple(pixels.mean((0, 2, 3)).tolist()),
        # A channel of one value has no spread to divide by; one grey level does no harm.
        std=tuple(np.maximum(pixels.std((0, 2, 3)), 1 / 255).tolist()),
    )


def _split(labels: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], ...]:
    """Sorted indices of train, val and test; every class is shared out 60/20/20."""
    random = np.random.RandomState(seed)
    parts: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(np.array([TRAIN_SHARE, TRAIN_SHARE + VAL_SHARE]) * len(members)).astype(int)
        for part, chosen in zip(parts, np.split(members, cuts), strict=True):
            part.append(chosen)
    return tuple(np.sort(np.concatenate(part)) for part in parts)


def _data_fingerprint(arrays: _Arrays) -> str:
    header = repr((arrays.images.shape, arrays.class_names)).encode()
    return _sha256(header, arrays.images.tobytes(), arrays.labels.astype("<i8").tobytes())


def _split_fingerprint(indices: tuple[NDArray[np.int64], ...]) -> str:
    return _sha256(repr([len(index) for index in indices]).encode(), *(i.astype("<i8").tobytes() for i in indices))


def _sha256(*pieces: bytes) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _digits() -> _Arrays:
    """The 1,797 scanned digits of scikit-learn, 8 by 8, 17 grey levels (UCI, Optical Recognition of Digits)."""
    table = _digits_table()
    return _Arrays(
        images=np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8),
        labels=table[:, -1].astype(np.int64),
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _digits_table() -> NDArray[np.float64]:
    """A row an image: 64 grey levels from 0 to 16, then the label."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None, "it is required"
    file = Path(str(spec.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():  # read in 5 ms where it lies; to import scikit-learn takes more than a second
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


_SOURCES: dict[str, Callable[[], _Arrays]] = {"digits": _digits}


def _arrays(name: str) -> _Arrays:
    if name not in _SOURCES:
        raise UnknownDataError(name, names())
    return _cached(name, cache_folder() / f"{name}.npz")


@functools.lru_cache(maxsize=2)
def _cached(name: str, path: Path) -> _Arrays:
    """The arrays at `path`, made there first if need be: preparing takes a second, reading a millisecond."""
    found = _read(path)
    if found is None:
        from filelock import FileLock

        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            found = _read(path)
            if found is None:
                found = _SOURCES[name]()
                _write(path, found)
    return found


def _read(path: Path) -> _Arrays | None:
    try:
        with np.load(path) as file:
            return _Arrays(
                images=file["images"], labels=file["labels"], class_names=tuple(file["class_names"].tolist())
            )
    except FileNotFoundError:
        return None
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        log.warning("%s is broken (%s) and is made again", path, error)
        return None


def _write(path: Path, arrays: _Arrays) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        temporary = Path(file.name)
        try:
            np.savez(
                file, images=arrays.images, labels=arrays.labels, class_names=np.array(arrays.class_names, dtype=str)
            )
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

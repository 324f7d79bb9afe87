"""torchvision's data sets, in torchvision's own layout below `data_root`, and downloaded by torchvision if asked to.

The official test split is the test split; EuroSAT has none. Checksums are looked at when files are downloaded; those
that are there are read as they are, since a file need not be the official one to be the one that is wanted.
"""

from __future__ import annotations

import functools
import gzip
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.data import checked, folder, paths, pictures
from recipes.data.types import TEST, TRAIN, Arrays, DataError, Source
from recipes.data.unpickling import load_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from recipes.config import DatasetConfig

    Half = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (N, C, H, W) and labels (N,) of train or of test

MAX_UNPACKED_BYTES = 2**30
EUROSAT_FOLDER = Path("eurosat", "2750")
ADVICE = "download=true gets it, data_root= says where else it is"


@dataclass(frozen=True)
class _Kind:
    """A data set of torchvision: its class there, its files, and how the two halves and the class names are read."""

    class_name: str
    files: Callable[[Any], list[Path]]  # of torchvision's class, below the root
    read: Callable[[Any, Path], tuple[list[Half], list[str]]]

    @property
    def torchvision_class(self) -> Any:
        from torchvision import datasets  # type: ignore[import-untyped]

        return getattr(datasets, self.class_name)


def source(config: DatasetConfig) -> Source:
    """The files below `data_root`.

    Raises:
        DataError: some are missing, and were not to be downloaded or cannot be.
    """
    root = Path(config.data_root)
    if config.data == "eurosat":
        return _eurosat(config, root)
    kind = _KINDS[config.data]
    files = kind.files(kind.torchvision_class)
    if _missing(root, files):
        _get(config, kind.class_name, root)
    if missing := _missing(root, files):
        raise DataError(f"data {config.data!r} is not whole in {root}: {missing[0]} is missing; {ADVICE}")
    there = [file for name in files for file in (root / name, _zipped(root / name))]
    read = functools.partial(pictures.fitted, functools.partial(_read, config.data, root), config)
    return Source(key=paths.key_of(there), read=read)


def _eurosat(config: DatasetConfig, root: Path) -> Source:
    """A folder a class; there is no official split."""
    if not (root / EUROSAT_FOLDER).is_dir():
        _get(config, "EuroSAT", root)
    if not (root / EUROSAT_FOLDER).is_dir():
        raise DataError(f"data 'eurosat' is not in {root}: folder {EUROSAT_FOLDER} is missing; {ADVICE}")
    return folder.source(config, str(root / EUROSAT_FOLDER))


def _missing(root: Path, files: list[Path]) -> list[Path]:
    return [name for name in files if not (root / name).is_file() and not _zipped(root / name).is_file()]


def _zipped(file: Path) -> Path:
    return file.with_name(f"{file.name}.gz")


def _get(config: DatasetConfig, class_name: str, root: Path) -> None:
    """Let torchvision download a data set, if it may."""
    if not config.download:
        return
    from torchvision import datasets

    cls = getattr(datasets, class_name)
    try:
        if issubclass(cls, datasets.CIFAR10):  # whose own constructor would unpickle what came
            from torchvision.datasets.utils import download_and_extract_archive  # type: ignore[import-untyped]

            download_and_extract_archive(cls.url, str(root), filename=cls.filename, md5=cls.tgz_md5)
        else:
            splits = [{"split": "train"}, {"split": "test"}] if class_name == "SVHN" else [{}]
            for chosen in splits:
                cls(str(root), download=True, **chosen)
    except Exception as error:  # of the network, the archive, the disk
        raise DataError(f"data {config.data!r} cannot be downloaded to {root}: {_first_line(error)}") from error


def _read(name: str, root: Path) -> Arrays:
    kind = _KINDS[name]
    try:
        halves, class_names = kind.read(kind.torchvision_class, root)
        images, labels = (np.concatenate(pieces) for pieces in zip(*halves, strict=True))
    except Exception as error:  # broken files end in assertions, in NumPy, in SciPy and in zlib
        raise DataError(f"data {name!r} in {root} cannot be read: {_first_line(error)}") from error
    parts = np.repeat(np.array([TRAIN, TEST], np.int8), [len(half_labels) for _, half_labels in halves])
    return checked.arrays(name, images, labels, class_names, parts)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [f"{type(error).__name__} in a file that is broken"])[0]


# -- MNIST and its like: IDX files, plain or compressed


def _idx_files(cls: Any) -> list[Path]:
    return [Path(cls.__name__, "raw", Path(name).stem) for name, _ in cls.resources]


def _read_idx(cls: Any, root: Path) -> tuple[list[Half], list[str]]:
    with _unpacked(root, _idx_files(cls)) as folder_of_all:
        halves = [cls(folder_of_all, train=train) for train in (True, False)]
    return [(half.data.numpy()[:, None], half.targets.numpy()) for half in halves], cls.classes


@contextmanager
def _unpacked(root: Path, files: list[Path]) -> Iterator[Path]:
    """A folder with the plain files, which torchvision wants."""
    if all((root / name).is_file() for name in files):
        yield root
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in files:
            (Path(temporary) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(temporary) / name).write_bytes(_bytes_of(root / name))
        yield Path(temporary)


def _bytes_of(file: Path) -> bytes:
    if file.is_file():
        return file.read_bytes()
    with gzip.open(_zipped(file)) as unpacked:
        found = unpacked.read(MAX_UNPACKED_BYTES + 1)
    if len(found) > MAX_UNPACKED_BYTES:
        raise ValueError(f"{_zipped(file)} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
    return found


# -- CIFAR: pickles


def _batch_files(cls: Any) -> list[Path]:
    names = [name for name, _ in [*cls.train_list, *cls.test_list]]
    return [Path(cls.base_folder, name) for name in [*names, cls.meta["filename"]]]


def _read_batches(cls: Any, root: Path) -> tuple[list[Half], list[str]]:
    home = root / cls.base_folder
    halves = []
    for listed in (cls.train_list, cls.test_list):
        batches = [load_plain(home / name) for name, _ in listed]
        images = np.concatenate([np.asarray(batch["data"]).reshape(-1, 3, 32, 32) for batch in batches])
        labels = [label for batch in batches for label in batch.get("labels") or batch["fine_labels"]]
        halves.append((images, np.array(labels)))
    return halves, list(load_plain(home / cls.meta["filename"])[cls.meta["key"]])


# -- SVHN: MATLAB files


def _matlab_files(cls: Any) -> list[Path]:
    return [Path(cls.split_list[split][1]) for split in ("train", "test")]


def _read_matlab(cls: Any, root: Path) -> tuple[list[Half], list[str]]:
    class Unchecked(cls):  # type: ignore[misc]
        def _check_integrity(self) -> bool:
            return True

    halves = [Unchecked(str(root), split=split) for split in ("train", "test")]
    return [(half.data, half.labels) for half in halves], [str(digit) for digit in range(10)]


_KINDS = {
    "mnist": _Kind("MNIST", _idx_files, _read_idx),
    "fashion_mnist": _Kind("FashionMNIST", _idx_files, _read_idx),
    "cifar10": _Kind("CIFAR10", _batch_files, _read_batches),
    "cifar100": _Kind("CIFAR100", _batch_files, _read_batches),
    "svhn": _Kind("SVHN", _matlab_files, _read_matlab),
}

"""Data sets as whole arrays: split, fingerprinted, and kept on the training device as uint8 tensors.

A file a kind of source: each finds what is there and says what its arrays depend on (`Source`); `cache` keeps them.
Names and fingerprints need no torch, but for torchvision's sets when they are read for the first time.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

import numpy as np

from recipes.data import cache, describe, splits, stored
from recipes.data.cache import cache_folder
from recipes.data.types import (
    TEST,
    VAL,
    Arrays,
    DataError,
    Dataset,
    ImageInfo,
    Loaded,
    Names,
    Source,
    Split,
    UnknownDataError,
)

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from recipes.config import DatasetConfig
    from recipes.data.shards import Sharded

__all__ = [
    "SHARDS",
    "DataError",
    "Dataset",
    "ImageInfo",
    "Loaded",
    "Split",
    "UnknownDataError",
    "absolute",
    "cache_folder",
    "fingerprints",
    "load",
    "names",
]

FOLDER, CSV, SHARDS = "folder:", "csv:", "shards:"
TORCHVISION = ("cifar10", "cifar100", "eurosat", "fashion_mnist", "mnist", "svhn")


def names() -> list[str]:
    """Names of the data sets, and how those are called that lie at a path."""
    from recipes.data import installed

    return sorted(["digits", *TORCHVISION, f"{FOLDER}PATH", f"{CSV}PATH", f"{SHARDS}PATH", *installed.names()])


def absolute(config: DatasetConfig) -> DatasetConfig:
    """The same wherever it is read: paths that the data set is found by are absolute."""
    from recipes.data import paths

    for prefix in (FOLDER, CSV, SHARDS):
        if config.data.startswith(prefix):
            return config.model_copy(update={"data": prefix + paths.absolute(config.data.removeprefix(prefix))})
    if config.data in TORCHVISION:
        return config.model_copy(update={"data_root": paths.absolute(config.data_root)})
    return config


def fingerprints(config: DatasetConfig) -> tuple[str, str]:
    """SHA-256 of the data (pixels, labels, class names) and of the split (which image is in which part).

    Raises:
        UnknownDataError: no data set of that name.
        DataError: it is missing, or not what it must be; one line says what.
    """
    if config.data.startswith(SHARDS):
        sharded = _shards(config)
        return sharded.data_fingerprint, _split_fingerprint(sharded.indices)
    arrays = _arrays(config)
    return _print_of(arrays, config), _split_fingerprint(splits.split(arrays.about, config.split_seed))


def load(config: DatasetConfig, device: torch.device | str = "cpu") -> Dataset:
    """The data set and its splits as tensors on `device`.

    Raises:
        UnknownDataError: no data set of that name.
        DataError: it is missing, or not what it must be; one line says what.
    """
    import torch

    if config.data.startswith(SHARDS):
        return _load_shards(config)
    arrays = _arrays(config)
    indices = splits.split(arrays.about, config.split_seed)
    split_fingerprint = _split_fingerprint(indices)
    info = describe.info(arrays, indices[0], _levels(arrays, config, indices[0], split_fingerprint))
    labels = describe.standardised(arrays.about.labels, info)
    train, val, test = (_part(arrays, index, torch.from_numpy(labels[index]), config) for index in indices)
    dataset = Dataset(
        info=info,
        train=train,
        val=val,
        test=test,
        data_fingerprint=_print_of(arrays, config),
        split_fingerprint=split_fingerprint,
    )
    return dataset if str(device) == "cpu" else dataset.to(device)


def _load_shards(config: DatasetConfig) -> Dataset:
    """Val and test whole; training images are a stream."""
    import torch

    from recipes.data.stream import StreamSplit

    found = _shards(config)
    about = found.rest.about
    assert about.parts is not None, "they are of val or of test"
    val, test = (
        _part(found.rest, index, torch.from_numpy(about.labels[index]), config)
        for index in (np.flatnonzero(about.parts == part) for part in (VAL, TEST))
    )
    return Dataset(
        info=describe.of_images(found.rest, found.levels),
        train=StreamSplit(found.stream, torch.from_numpy(found.train_labels), config.data),
        val=val,
        test=test,
        data_fingerprint=found.data_fingerprint,
        split_fingerprint=_split_fingerprint(found.indices),
    )


def _shards(config: DatasetConfig) -> Sharded:
    from recipes.data import shards

    _check_task(config)
    config = absolute(config)
    return shards.prepared(config, config.data.removeprefix(SHARDS))


def _check_task(config: DatasetConfig) -> None:
    if config.task != "classification":
        raise DataError(f"data {config.data!r} has one class an image; task={config.task} is for {CSV}PATH")


def _part(arrays: Arrays, index: NDArray[np.int64], labels: torch.Tensor, config: DatasetConfig) -> Split:
    import torch

    names = Names(data=config.data, numbers=index, files=arrays.about.files)
    if arrays.mapped is not None:
        return stored.StoredSplit(arrays.mapped, index, labels, names)
    return Split(images=torch.from_numpy(arrays.images[index]), labels=labels, names=names)


def _print_of(arrays: Arrays, config: DatasetConfig) -> str:
    return cache.remembered(arrays, cache.path_of(absolute(config)), "sha256", lambda: _data_fingerprint(arrays))


def _arrays(config: DatasetConfig) -> Arrays:
    config = absolute(config)
    return cache.prepared(_source(config), cache.path_of(config))


def _source(config: DatasetConfig) -> Source:
    """What the data set is read from; each kind is imported when it is asked for."""
    from recipes.data import csv_file, digits, folder, installed, pictures, torchvision_sets

    if config.data.startswith(CSV):
        return csv_file.source(config, config.data.removeprefix(CSV))
    _check_task(config)
    if config.data.startswith(FOLDER):
        return folder.source(config, config.data.removeprefix(FOLDER))
    if config.data in TORCHVISION:
        return torchvision_sets.source(config)
    if config.data == "digits":
        return Source(key="", read=functools.partial(pictures.fitted, digits.read, config))
    if config.data in installed.names():
        return installed.source(config)
    raise UnknownDataError(config.data, names())


def _levels(
    arrays: Arrays, config: DatasetConfig, train: NDArray[np.int64], split_fingerprint: str
) -> list[list[int]] | None:
    """The levels of images' pixels; a table has none."""
    if arrays.about.columns:
        return None
    path, name = cache.path_of(absolute(config)), f"levels-{split_fingerprint[:12]}"
    return cache.remembered(arrays, path, name, lambda: describe.levels(arrays.images, train))


def _data_fingerprint(arrays: Arrays) -> str:
    about = arrays.about
    header: list[object] = [arrays.images.shape, about.class_names]
    if about.task != "classification" or about.columns:
        header += [about.task, tuple((column.name, column.categories) for column in about.columns)]
    kind = "<i8" if about.task == "classification" else "<f4"
    return _sha256(repr(tuple(header)).encode(), arrays.images, about.labels.astype(kind))


def _split_fingerprint(indices: tuple[NDArray[np.int64], ...]) -> str:
    return _sha256(repr([len(index) for index in indices]).encode(), *(index.astype("<i8") for index in indices))


def _sha256(header: bytes, *arrays: NDArray[np.generic]) -> str:
    digest = hashlib.sha256(header)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

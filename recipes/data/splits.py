"""Which images train, validate and test, and which are taken at all.

All from a random stream that NumPy promises never to change (NEP 19): a study's identity rests on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recipes.data.types import TEST, TRAIN, VAL, DataError, Labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from recipes.config import DatasetConfig
    from recipes.data.types import Arrays

    Indices = NDArray[np.int64]

TRAIN_SHARE, VAL_SHARE = 0.6, 0.2
LIMIT_SEED = 0  # not `split_seed`: another split is of the same data


def split(about: Labels, seed: int) -> tuple[Indices, Indices, Indices]:
    """Sorted indices of train, val and test, stratified by class where each image has one.

    60/20/20 of all, unless the data set comes with splits: those stay, and a missing val or test is a fifth of train.

    Raises:
        DataError: a split or a class is left without images.
    """
    strata = _strata(about)
    parts = np.zeros(len(strata), np.int8) if about.parts is None else about.parts
    train, val, test = (np.flatnonzero(parts == part) for part in (TRAIN, VAL, TEST))
    if not len(val) and not len(test):
        train, val, test = _shared_out(strata, train, (TRAIN_SHARE, VAL_SHARE), seed)
    elif not len(val):
        train, val = _shared_out(strata, train, (1 - VAL_SHARE,), seed)
    elif not len(test):
        train, test = _shared_out(strata, train, (1 - VAL_SHARE,), seed)
    _check(about, {"train": train, "val": val, "test": test})
    return train, val, test


def divisible(arrays: Arrays, config: DatasetConfig) -> Arrays:
    """The same, if they can be split: else they are told of before they are kept.

    Raises:
        DataError: a split or a class is left without images.
    """
    try:
        split(arrays.about, config.split_seed)
    except DataError as error:
        raise DataError(f"data {config.data!r}: {error}") from error
    return arrays


def limited(about: Labels, limit: int) -> Indices:
    """Sorted indices of at most `limit` images (0: all), of each class and split in proportion, and one at least."""
    count = len(about.labels)
    if not 0 < limit < count:
        return np.arange(count)
    strata = _strata(about)
    groups = strata if about.parts is None else strata * 3 + about.parts
    random, place = np.random.RandomState(LIMIT_SEED), np.empty(count)
    for group in np.unique(groups):
        members = random.permutation(np.flatnonzero(groups == group))
        place[members] = np.arange(len(members)) / len(members)  # the first of every group come first
    return np.sort(np.argsort(place, kind="stable")[:limit])


def _strata(about: Labels) -> NDArray[np.int64]:
    """The class of each image, by which images are shared out; where they have none all are of one."""
    if about.task == "classification":
        return about.labels.astype(np.int64, copy=False)
    return np.zeros(len(about.labels), np.int64)


def _shared_out(labels: NDArray[np.int64], chosen: Indices, shares: Sequence[float], seed: int) -> tuple[Indices, ...]:
    """Sorted parts of the chosen images, which get these shares of every class; the last one gets the rest."""
    random = np.random.RandomState(seed)
    parts: tuple[list[Indices], ...] = tuple([] for _ in range(len(shares) + 1))
    for label in np.unique(labels[chosen]):
        members = random.permutation(chosen[labels[chosen] == label])
        cuts = np.rint(np.cumsum(shares) * len(members)).astype(int)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return tuple(np.sort(np.concatenate(part)) if part else np.array([], int) for part in parts)


def _check(about: Labels, parts: dict[str, Indices]) -> None:
    noun = "row" if about.columns else "image"
    found = f"{len(about.labels)} {noun}s"
    if about.task == "classification":
        found += f" of {len(about.class_names)} classes"
        if len(about.class_names) < 2:
            raise DataError(f"{found}: at least two classes are needed")
        counts = np.bincount(_strata(about)[parts["train"]], minlength=len(about.class_names))
        if not counts.all():
            raise DataError(f"{found}: class {about.class_names[int(counts.argmin())]!r} has no {noun} to train on")
    for name, indices in parts.items():
        if not len(indices):
            raise DataError(f"{found} are too few: none is left for {name}")

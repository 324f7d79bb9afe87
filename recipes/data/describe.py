"""What training must know of arrays: mean and spread of what it sees and of what it is to answer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from recipes.data.types import ImageInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from recipes.data.types import Arrays, Column

CHUNK_BYTES = 1 << 22  # of pixels, which are counted as eight times as many


def info(arrays: Arrays, train: NDArray[np.int64], counts: Sequence[Sequence[int]] | None = None) -> ImageInfo:
    """What a model must know of them; all means and spreads are of these rows, the training split's.

    `counts` is what `levels` says of them, where that is known.
    """
    about = arrays.about
    found = _of_rows(arrays, train) if about.columns else of_images(arrays, counts or levels(arrays.images, train))
    if about.task != "regression":
        return found
    mean, std = _moments(about.labels[train])
    return replace(found, target_mean=mean, target_std=std)


def standardised(
    labels: NDArray[np.int64] | NDArray[np.float32], info: ImageInfo
) -> NDArray[np.int64] | NDArray[np.float32]:
    """Numbers `(N, K)` with the training split's mean and spread taken out; classes and labels as they are."""
    if info.task != "regression":
        return labels
    scaled: NDArray[np.float64] = (labels - np.array(info.target_mean)) / np.array(info.target_std)
    return scaled.astype(np.float32)


def levels(images: NDArray[np.generic], rows: NDArray[np.int64]) -> list[list[int]]:
    """How many pixels of each channel of images `(N, C, H, W)` uint8 have each of the 256 levels."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    at_once = max(1, CHUNK_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(rows), at_once):
        chunk = np.asarray(images[rows[start : start + at_once]])
        counts += [np.bincount(chunk[:, channel].ravel(), minlength=256) for channel in range(images.shape[1])]
    found: list[list[int]] = counts.tolist()
    return found


def of_images(arrays: Arrays, counts: Sequence[Sequence[int]]) -> ImageInfo:
    """What a model must know of images of whose training split `levels` found these counts."""
    _, channels, height, width = arrays.images.shape
    moments = [_mean_and_std(np.array(of_channel)) for of_channel in counts]
    return ImageInfo(
        channels=channels,
        height=height,
        width=width,
        num_classes=len(arrays.about.class_names),
        class_names=arrays.about.class_names,
        mean=tuple(mean for mean, _ in moments),
        std=tuple(std for _, std in moments),
        task=arrays.about.task,
    )


def _mean_and_std(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Of pixels of which so many `(256,)` have each level, from 0 to 1."""
    levels, total = np.arange(256) / 255, counts.sum()
    mean = float(counts @ levels / total)
    variance = float(counts @ (levels - mean) ** 2 / total)
    # A channel of one value has no spread to divide by; one grey level does no harm.
    return mean, max(variance**0.5, 1 / 255)


def _of_rows(arrays: Arrays, train: NDArray[np.int64]) -> ImageInfo:
    columns = tuple(_scaled(column, arrays.images[train, index]) for index, column in enumerate(arrays.about.columns))
    return ImageInfo(
        channels=1,
        height=1,
        width=len(columns),
        num_classes=len(arrays.about.class_names),
        class_names=arrays.about.class_names,
        mean=(0.0,),
        std=(1.0,),
        task=arrays.about.task,
        columns=columns,
    )


def _scaled(column: Column, values: NDArray[np.float32]) -> Column:
    """The column with the mean and spread of its numbers; a training split may lack them all."""
    known = values[~np.isnan(values)]
    if column.categories or not len(known):
        return column
    (mean,), (std,) = _moments(known[:, None])
    return replace(column, mean=mean, std=std)


def _moments(values: NDArray[np.generic]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and spread of each column of `(N, K)`; one of a single value has no spread to divide by, and gets 1."""
    exact = values.astype(np.float64)
    std = exact.std(0)
    return tuple(exact.mean(0).tolist()), tuple(np.where(std > 0, std, 1.0).tolist())

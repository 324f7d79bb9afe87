"""Whole arrays that come from elsewhere: are they a data set?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.data.types import Arrays, DataError, Labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def arrays(
    name: str, images: Any, labels: Any, class_names: Sequence[str], parts: NDArray[np.int8] | None = None
) -> Arrays:
    """Images `(N, C, H, W)` uint8 with one or three channels, and a label `(N,)` below the number of classes for each.

    Raises:
        DataError: they are not so.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    classes = tuple(str(each) for each in class_names)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
        wanted = "uint8 (N, C, H, W) with one or three channels"
        raise DataError(f"data {name!r}: images must be {wanted}; found {images.dtype} {images.shape}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        wanted = f"{len(images)} whole numbers, one an image"
        raise DataError(f"data {name!r}: labels must be {wanted}; found {labels.dtype} {labels.shape}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise DataError(f"data {name!r}: labels go from {low} to {high}, but there are {len(classes)} classes, from 0")
    about = Labels(labels=labels.astype(np.int64), class_names=classes, parts=parts)
    return Arrays(images=np.ascontiguousarray(images), about=about)

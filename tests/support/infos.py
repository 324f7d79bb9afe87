"""Descriptions of images, where a test needs one and no data set."""

from __future__ import annotations

from typing import Any

from recipes.data import ImageInfo


def info(names: Any, **changed: Any) -> ImageInfo:
    """Of one-channel 8 by 8 images with as many outputs as there are names, or as the number says."""
    class_names = tuple(map(str, range(names) if isinstance(names, int) else names))
    values: dict[str, Any] = {"channels": 1, "height": 8, "width": 8, "mean": (0.5,), "std": (0.5,)}
    return ImageInfo(num_classes=len(class_names), class_names=class_names, **{**values, **changed})

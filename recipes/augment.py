"""Batches made on the device that holds the images: random changes with a draw for each image, then normalisation.

Shapes: N images in a split, B in a batch, C channels, H by W pixels, P pixels of padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from recipes.config import AugmentConfig

if TYPE_CHECKING:
    from torch import Tensor

    from recipes.data import ImageInfo, Split


class Batches:
    """Rows of a split as a model takes them; features are handed on as they are.

    `augment` and `generator` are for training: every call with random changes advances the generator.
    """

    def __init__(
        self,
        split: Split,
        info: ImageInfo,
        *,
        memory_format: torch.memory_format,
        augment: AugmentConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self._split = split
        self._augment = augment or AugmentConfig()
        self._generator = generator
        self._memory_format = memory_format
        self._is_features = split.images.is_floating_point()
        if not self._is_features:
            self._windows = crop_windows(split.images, self._augment.crop)
            self._mean = torch.tensor(info.mean, device=split.images.device).view(-1, 1, 1) * 255
            self._scale = 1 / (torch.tensor(info.std, device=split.images.device).view(-1, 1, 1) * 255)

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images `(B, C, H, W)` float (or features) and labels `(B,)` of the rows."""
        labels = self._split.labels[rows]
        if self._is_features:
            return self._split.images[rows], labels
        images = random_crop(self._windows, rows, self._generator)
        if self._augment.flip:
            images = random_flip(images, self._augment.flip, self._generator)
        images = images.to(torch.float32, memory_format=self._memory_format)
        images = images.sub_(self._mean).mul_(self._scale)
        # After normalisation, so that the blank square is of the mean colour and not black.
        if self._augment.cutout:
            images = random_cutout(images, self._augment.cutout, self._generator)
        return images, labels


def crop_windows(images: Tensor, padding: int) -> Tensor:
    """All H by W windows of the images padded with black, `(N, C, 2P+1, 2P+1, H, W)`: a view of one padded copy."""
    height, width = images.shape[2:]
    padded = pad(images, (padding,) * 4) if padding else images
    return padded.unfold(2, height, 1).unfold(3, width, 1)


def random_crop(windows: Tensor, rows: Tensor, generator: torch.Generator | None) -> Tensor:
    """For each row one of its windows, `(B, C, H, W)`; without padding there is only the image itself."""
    num_offsets = windows.shape[2]
    if num_offsets == 1:
        return windows[rows, :, 0, 0]
    top, left = torch.randint(num_offsets, (2, len(rows)), generator=generator, device=windows.device)
    return windows[rows, :, top, left]


def random_flip(images: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Each image mirrored left to right with the probability."""
    draw = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    return torch.where(draw < probability, images.flip(3), images)


def random_cutout(images: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
    """Each image with one square of zeros whose centre is any pixel (DeVries and Taylor 2017, arXiv 1708.04552)."""
    batch, _, height, width = images.shape
    centre = torch.rand(2, batch, 1, generator=generator, device=images.device)
    top, left = ((centre[i] * size).floor() - side // 2 for i, size in enumerate((height, width)))
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= left) & (columns < left + side)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)

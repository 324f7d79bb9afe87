"""Batches made on the device that holds the images: random changes with a draw for each image, then normalisation.

In this order: what moves whole pixels (crop, flips), what moves them by parts (resized crop, rotation, TrivialAugment's
share: one resampling), colours, noise, normalisation, cutout, MixUp and CutMix.

Images a second of CPU time in batches of 256, one thread of an AMD EPYC, torch 2.15, on a machine that had other work;
median of 11 and in brackets lowest to highest in thousands. The crop is of 4 pixels, the resized crop of at least 0.25,
the jitter of brightness and contrast by 0.4 and, on colour, of saturation by 0.4 and hue by 0.1:

=============================== ======================= ======================
changed by                      28 by 28, grey          32 by 32, colour
=============================== ======================= ======================
crop, flip                      425,000 (385 to 450)    68,000 (65 to 71)
resized crop, flip, jitter      86,000 (85 to 87)       11,700 (10.5 to 14.1)
TrivialAugment                  45,900 (44.7 to 47.3)   12,000 (9.5 to 15.7)
=============================== ======================= ======================

Shapes: N images in a split, B in a batch, C channels, H by W pixels, P pixels of padding.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from recipes import trivial
from recipes.colour import check_channels, random_jitter, random_noise
from recipes.config import AugmentConfig
from recipes.data import Loaded
from recipes.geometry import compose, random_boxes, random_resized_crop, random_rotation, resample
from recipes.mixing import mix

if TYPE_CHECKING:
    from torch import Tensor

    from recipes.data import ImageInfo, Split


class Batches:
    """Rows of a split as a model takes them; features are handed on as they are.

    `augment` and `generator` are for training: every call with random changes advances the generator. With
    `loaded_on`, batches come as `Loaded` on that device, and the split's own images may lie anywhere: the same draws,
    the same bits.

    Raises:
        ValueError: `augment` changes colours, and the images have none.
    """

    def __init__(
        self,
        split: Split,
        info: ImageInfo,
        *,
        memory_format: torch.memory_format,
        augment: AugmentConfig | None = None,
        generator: torch.Generator | None = None,
        loaded_on: torch.device | None = None,
    ) -> None:
        self._split = split
        self._augment = augment or AugmentConfig()
        self._generator = generator
        self._memory_format = memory_format
        self._num_classes = info.num_classes
        self._is_features = split.is_features
        if not self._is_features:
            check_channels(self._augment, info)
            if loaded_on is None:
                self._windows = crop_windows(split.images, self._augment.crop)
            device = loaded_on or split.images.device
            self._mean = torch.tensor(info.mean, device=device).view(-1, 1, 1) * 255
            self._scale = 1 / (torch.tensor(info.std, device=device).view(-1, 1, 1) * 255)

    def __call__(self, batch: Tensor | Loaded) -> tuple[Tensor, Tensor]:
        """Images `(B, C, H, W)` float (or features) and labels `(B,)` of rows `(B,)`, or of a batch that was loaded.

        Where images are mixed, the labels are probabilities `(B, K)`.
        """
        images, labels = self._cropped(batch)
        if self._is_features:
            return images, labels
        config, generator = self._augment, self._generator
        if config.flip:
            images = random_flip(images, config.flip, generator)
        if config.vertical_flip:
            images = random_flip(images, config.vertical_flip, generator, axis=2)
        images = distort(images, config, generator)
        images = images.to(torch.float32, memory_format=self._memory_format)
        images = images.sub_(self._mean).mul_(self._scale)
        # After normalisation, so that the blank square is of the mean colour and not black.
        if config.cutout:
            images = random_cutout(images, config.cutout, generator)
        if config.mixup or config.cutmix:
            return mix(images, labels, self._num_classes, config, generator)
        return images, labels

    def _cropped(self, batch: Tensor | Loaded) -> tuple[Tensor, Tensor]:
        """Images as they are kept, but for where they are cut, and labels."""
        if not isinstance(batch, Loaded):
            labels = self._split.labels[batch]
            if self._is_features:
                return self._split.images[batch], labels
            return random_crop(self._windows, batch, self._generator), labels
        if self._is_features or not self._augment.crop:
            return batch.images, batch.labels
        rows = torch.arange(len(batch), device=batch.images.device)
        return random_crop(crop_windows(batch.images, self._augment.crop), rows, self._generator), batch.labels


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


def random_flip(images: Tensor, probability: float, generator: torch.Generator | None, *, axis: int = 3) -> Tensor:
    """Each image mirrored with the probability: left to right, or along another axis."""
    draw = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    return torch.where(draw < probability, images.flip(axis), images)


def distort(images: Tensor, config: AugmentConfig, generator: torch.Generator | None) -> Tensor:
    """Images `(B, C, H, W)` uint8, after all that makes them floats from 0 to 255; as they were if that is nothing."""
    maps = []
    if config.resized_crop:
        maps.append(random_resized_crop(images, config.resized_crop, generator))
    if config.rotation:
        maps.append(random_rotation(images, config.rotation, generator))
    drawn = trivial.draw(images, config.trivial_augment, generator) if config.trivial_augment else None
    if drawn is not None:
        maps.append(trivial.maps(images, drawn))
    if maps:
        images = resample(images.to(torch.float32), functools.reduce(compose, maps))
    if config.brightness or config.contrast or config.saturation or config.hue:
        images = random_jitter(images.to(torch.float32), config, generator)
    if drawn is not None:
        images = trivial.recolour(images, drawn)
    return random_noise(images, config.noise, generator) if config.noise else images


def random_cutout(images: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
    """Each image with one square of zeros whose centre is any pixel (DeVries and Taylor 2017, arXiv 1708.04552)."""
    return images.masked_fill(random_boxes(images, side, side, generator), 0.0)

"""MixUp and CutMix: each image with a part of the one before it in the batch, and its target with the same share.

Shapes: B images of C channels, H by W pixels, in K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from recipes.geometry import random_boxes

if TYPE_CHECKING:
    from torch import Tensor

    from recipes.config import AugmentConfig


def mix(
    images: Tensor, labels: Tensor, num_classes: int, config: AugmentConfig, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Float images `(B, C, H, W)`, changed in place, and probabilities `(B, K)` from classes `(B,)`, or `(B, K)` mixed.

    The partner is the image before, with the last before the first: batches come in random order already.
    """
    weights = partner_weights(images, config, generator)
    targets = labels
    if labels.ndim == 1:
        targets = (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(torch.float32)
    shares = weights.mean((2, 3)).view(-1, 1)
    return images.lerp_(images.roll(1, 0), weights), torch.lerp(targets, targets.roll(1, 0), shares)


def partner_weights(images: Tensor, config: AugmentConfig, generator: torch.Generator | None) -> Tensor:
    """How much of its partner each pixel of an image gets, `(B, 1, H, W)` or, the same for all, `(B, 1, 1, 1)`.

    With both on, half of the images get one and half the other.
    """
    blended = mixup_weights(images, config.mixup, generator) if config.mixup else None
    pasted = cutmix_weights(images, config.cutmix, generator) if config.cutmix else None
    if blended is None or pasted is None:
        chosen = blended if pasted is None else pasted
        assert chosen is not None, "one of the two is on"
        return chosen
    draw = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    return torch.where(draw < 0.5, blended, pasted)


def mixup_weights(images: Tensor, alpha: float, generator: torch.Generator | None) -> Tensor:
    """A share of the partner for the whole image, from Beta(alpha, alpha) (Zhang et al. 2018, arXiv 1710.09412)."""
    return symmetric_beta(alpha, len(images), generator, images.device).view(-1, 1, 1, 1)


def cutmix_weights(images: Tensor, alpha: float, generator: torch.Generator | None) -> Tensor:
    """One in a box of the partner, else zero (Yun et al. 2019, arXiv 1905.04899).

    The box has the image's proportions and a share of its area from Beta(alpha, alpha), before it is cut at the edges.
    """
    height, width = images.shape[2:]
    side = symmetric_beta(alpha, len(images), generator, images.device).sqrt().view(-1, 1)
    boxes = random_boxes(images, (side * height).round(), (side * width).round(), generator)
    return boxes.to(images.dtype)


def symmetric_beta(alpha: float, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Draws `(count,)` from Beta(alpha, alpha).

    torch's own takes no generator, and rejection waits for the device. With T of Student's distribution with 2 alpha
    degrees of freedom, (1 + T / sqrt(2 alpha + T^2)) / 2 is such a draw, and a T costs two uniform draws (Bailey 1994,
    Mathematics of Computation 62; Devroye 1996, "Random variate generation in one line of code"). It is exact but for
    the rounding of float32, and written so that no alpha above 0 gives anything but numbers from 0 to 1.
    """
    radius, angle = torch.rand(2, count, generator=generator, device=device)
    squared = torch.expm1(-radius.log() / alpha)
    cos = torch.cos(2 * math.pi * angle)
    return (cos / (squared.reciprocal() + cos.square()).sqrt() + 1) / 2

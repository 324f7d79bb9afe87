"""Changes of an image's colours, for whole batches: float images `(B, C, H, W)` from 0 to 255, before and after.

A factor `(B, 1, 1, 1)` of 1 leaves an image as it is. Definitions as in torchvision and Pillow; grey images, of one
channel, are their own grey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from recipes.config import AugmentConfig
    from recipes.data import ImageInfo

WHITE = 255.0
COLOUR_FIELDS = ("saturation", "hue")  # of AugmentConfig: those that only red, green and blue have


def check_channels(config: AugmentConfig, info: ImageInfo) -> None:
    """See that images have the colours that are to be changed.

    Raises:
        ValueError: the field, and how many channels there are.
    """
    for name in COLOUR_FIELDS:
        if getattr(config, name) and info.channels != 3:
            raise ValueError(
                f"{name}={getattr(config, name)} needs colour images of 3 channels; these have {info.channels}"
            )


def random_jitter(images: Tensor, config: AugmentConfig, generator: torch.Generator | None) -> Tensor:
    """Each image brighter, richer in contrast, more colourful, or less, and of another hue, in this order."""

    def draw(most: float) -> Tensor:
        return (2 * torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) - 1) * most

    if config.brightness:
        images = (images * (1 + draw(config.brightness))).clamp_(0, WHITE)
    if config.contrast:
        images = blend(grey(images).mean((2, 3), keepdim=True), images, 1 + draw(config.contrast))
    if config.saturation:
        images = blend(grey(images), images, 1 + draw(config.saturation))
    if config.hue:
        images = shift_hue(images, draw(config.hue))
    return images


def random_noise(images: Tensor, deviation: float, generator: torch.Generator | None) -> Tensor:
    """Each pixel with Gaussian noise whose standard deviation is this share of the range."""
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return noise.mul_(deviation * WHITE).add_(images).clamp_(0, WHITE)


def blend(plain: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """From `plain` at a factor of 0 over the image at 1 and beyond (Haeberli and Voorhies 1994), kept in range."""
    return torch.lerp(plain, images, factor).clamp_(0, WHITE)


def grey(images: Tensor) -> Tensor:
    """Luma `(B, 1, H, W)` of ITU-R BT.601; of other than three channels the mean."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.chunk(3, 1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Red, green and blue with their hue moved by a share of the circle `(B, 1, 1, 1)`: 1/3 makes red green.

    Hue in sixths of the circle from red, as in HSV (Smith 1978); largest and smallest channel stay as they are.
    """
    red, green, blue = images.chunk(3, 1)
    largest = images.amax(1, keepdim=True)
    chroma = largest - images.amin(1, keepdim=True)
    divisor = torch.where(chroma == 0, 1, chroma)
    hue = torch.where(
        largest == red,
        (green - blue) / divisor,
        torch.where(largest == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    channels = torch.arange(5, 0, -2, device=images.device).view(3, 1, 1)
    away = (hue + 6 * shift + channels).remainder(6)
    return largest - chroma * torch.minimum(away, 4 - away).clamp(0, 1)


def soften(images: Tensor) -> Tensor:
    """Each pixel as the mean of it, five times, and its eight neighbours; those at the edge stay."""
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    square = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    softened = images.clone()
    softened[:, :, 1:-1, 1:-1].mul_(4).add_(square).div_(13)
    return softened

"""TrivialAugment Wide (Müller and Hutter 2021, arXiv 2103.10158): each image gets one operation at one strength.

Both are uniform; operations are the paper's, which are Pillow's. Nothing is done image by image: five operations are
entries of the map that the batch is resampled by anyway; six are a table from old to new grey level for each image and
channel, looked up once; two are a blend. Shapes: B images of C channels, H by W pixels; L = 256 grey levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, auto
from typing import TYPE_CHECKING

import torch

from recipes.colour import WHITE, blend, grey, soften
from recipes.geometry import affine_maps

if TYPE_CHECKING:
    from torch import Tensor

NUM_STRENGTHS = 31
NUM_LEVELS = 256
MAX_DEGREES, MAX_SHEAR, MAX_SHIFT, MAX_FACTOR, MAX_BITS = 135, 0.99, 32, 0.99, 6


class Operation(IntEnum):
    """The fourteen of the paper."""

    IDENTITY = 0
    ROTATE = auto()
    SHEAR_X = auto()
    SHEAR_Y = auto()
    TRANSLATE_X = auto()
    TRANSLATE_Y = auto()
    BRIGHTNESS = auto()
    CONTRAST = auto()
    POSTERIZE = auto()
    SOLARIZE = auto()
    AUTO_CONTRAST = auto()
    EQUALIZE = auto()
    COLOR = auto()
    SHARPNESS = auto()


@dataclass(frozen=True, kw_only=True)
class Draw:
    """For each image `(B,)` the operation, its strength from 0 to 1, and its direction, -1 or 1."""

    operation: Tensor
    strength: Tensor
    sign: Tensor

    def __call__(self, operation: Operation) -> Tensor:
        """Strength and direction `(B,)` of this operation: 0 where another was drawn."""
        return torch.where(self.operation == operation, self.strength * self.sign, 0.0)


def draw(images: Tensor, strongest: float, generator: torch.Generator | None) -> Draw:
    """An operation an image at one of 31 strengths from 0 to `strongest`."""

    def whole(below: int) -> Tensor:
        return torch.randint(below, (len(images),), generator=generator, device=images.device)

    operation = whole(len(Operation))
    return Draw(
        operation=operation, strength=whole(NUM_STRENGTHS) * (strongest / (NUM_STRENGTHS - 1)), sign=whole(2) * 2 - 1
    )


def maps(images: Tensor, drawn: Draw) -> Tensor:
    """The maps `(B, 3, 3)` of the operations that move pixels; see `recipes.geometry`.

    Shears keep the upper left corner. Shifts are 32 pixels at most, and never more than the image has.
    """
    height, width = images.shape[2:]
    turn = (drawn(Operation.ROTATE) * MAX_DEGREES).deg2rad()
    across, down = drawn(Operation.SHEAR_X) * MAX_SHEAR, drawn(Operation.SHEAR_Y) * MAX_SHEAR
    right = drawn(Operation.TRANSLATE_X) * min(MAX_SHIFT, width)
    below = drawn(Operation.TRANSLATE_Y) * min(MAX_SHIFT, height)
    cos, sin = turn.cos(), turn.sin()
    # A sum is enough, since no image has two of them.
    return affine_maps(cos, across - sin, across * (height / 2) - right, down + sin, cos, down * (width / 2) - below)


def recolour(images: Tensor, drawn: Draw) -> Tensor:
    """Images `(B, C, H, W)` float from 0 to 255 after the operations that change colours; grey ones have no COLOR."""
    levels = images.round().long().flatten(2)
    table = level_table(levels, drawn)
    images = table.gather(2, levels).view(images.shape)
    factor = 1 + (drawn(Operation.COLOR) + drawn(Operation.SHARPNESS)) * MAX_FACTOR
    is_color = _column(drawn.operation == Operation.COLOR)
    return blend(torch.where(is_color, grey(images), soften(images)), images, _column(factor))


def level_table(levels: Tensor, drawn: Draw) -> Tensor:
    """For each image and channel the new value of each grey level, `(B, C, L)` float, from levels `(B, C, H * W)`."""
    counts = torch.zeros(*levels.shape[:2], NUM_LEVELS, dtype=torch.long, device=levels.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels[:1, :1, :1]).expand_as(levels))
    old = torch.arange(NUM_LEVELS, device=levels.device, dtype=torch.float32)
    mean = grey((counts * old).sum(2)[..., None, None]).flatten(1)[..., None] / levels.shape[2]
    factor = 1 + (drawn(Operation.BRIGHTNESS) + drawn(Operation.CONTRAST))[:, None, None] * MAX_FACTOR
    strength = drawn.strength[:, None, None]
    made = {
        Operation.BRIGHTNESS: old * factor,
        Operation.CONTRAST: torch.lerp(mean, old, factor),
        Operation.POSTERIZE: _posterized(old, (strength * MAX_BITS).round()),
        Operation.SOLARIZE: torch.where(old < NUM_LEVELS * (1 - strength), old, WHITE - old),
        Operation.AUTO_CONTRAST: _stretched(old, counts),
        Operation.EQUALIZE: _equalized(old, counts),
    }
    table = old.expand(counts.shape)
    for operation, new in made.items():
        table = torch.where((drawn.operation == operation)[:, None, None], new, table)
    return table.clamp(0, WHITE)


def _posterized(old: Tensor, bits: Tensor) -> Tensor:
    """Levels without their lowest bits."""
    # Shifted, since a power of two by floats need not be one on every device.
    whole = bits.long()
    return old.long() >> whole << whole


def _stretched(old: Tensor, counts: Tensor) -> Tensor:
    """Levels spread so that the darkest that there is becomes 0 and the brightest 255."""
    lowest, highest = _ends(counts)
    return torch.where(highest > lowest, (old - lowest) * (WHITE / (highest - lowest).clamp(min=1)), old)


def _equalized(old: Tensor, counts: Tensor) -> Tensor:
    """Levels spread so that all are about as frequent, in Pillow's whole numbers: few pixels stay as they are."""
    last = counts.gather(2, _ends(counts)[1])
    step = (counts.sum(2, keepdim=True) - last) // 255
    below = counts.cumsum(2) - counts
    return torch.where(step > 0, (below + step // 2) // step.clamp(min=1), old)


def _ends(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest level that there is, `(B, C, 1)`."""
    below = counts.cumsum(2)
    return (below == 0).sum(2, keepdim=True), (below < below[..., -1:]).sum(2, keepdim=True)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)

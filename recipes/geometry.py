"""Where the pixels of a batch come from: an affine map an image, however many operations are on, and one resampling.

Shapes: B images of C channels, H by W pixels. A map `(3, 3)` takes a place in the output to the place in the input that
is seen there; both are `(x, y, 1)` in pixels from the image's centre, x to the right and y down.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import grid_sample

if TYPE_CHECKING:
    from torch import Tensor

WIDEST = math.log(4 / 3)  # of a crop's aspect ratio, as the logarithm of what multiplies or divides the image's own


def affine_maps(xx: Tensor, xy: Tensor, x: Tensor, yx: Tensor, yy: Tensor, y: Tensor) -> Tensor:
    """Maps `(B, 3, 3)` of these entries `(B,)`, the first row's and the second's."""
    zero = torch.zeros_like(xx)
    return torch.stack([xx, xy, x, yx, yy, y, zero, zero, zero + 1], 1).view(-1, 3, 3)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The maps of one operation and then another, `(B, 3, 3)`; never a matrix product of TF32's ten bits."""
    return (first[:, :, :, None] * second[:, None, :, :]).sum(2)


def rotation_maps(degrees: Tensor) -> Tensor:
    """Maps `(B, 3, 3)` that turn images counterclockwise by degrees `(B,)`."""
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    zero = torch.zeros_like(cos)
    return affine_maps(cos, -sin, zero, sin, cos, zero)


def random_rotation(images: Tensor, degrees: float, generator: torch.Generator | None) -> Tensor:
    """Maps `(B, 3, 3)` that turn each image by up to so many degrees, either way."""
    draw = torch.rand(len(images), generator=generator, device=images.device)
    return rotation_maps((2 * draw - 1) * degrees)


def random_resized_crop(images: Tensor, smallest: float, generator: torch.Generator | None) -> Tensor:
    """Maps `(B, 3, 3)` that show of each image a part at full size (Szegedy et al. 2014, arXiv 1409.4842).

    Its share of the area is uniform from `smallest` to 1, its aspect ratio 3/4 to 4/3 of the image's own and uniform in
    the logarithm. Where the usual loop tries again until the part fits, here only ratios that fit are drawn.
    """
    height, width = images.shape[2:]
    share, ratio, x, y = torch.rand(4, len(images), generator=generator, device=images.device)
    share = smallest + (1 - smallest) * share
    ratio = ((2 * ratio - 1) * (-share.log()).clamp(max=WIDEST)).exp()
    across, down = (share * ratio).sqrt(), (share / ratio).sqrt()
    zero = torch.zeros_like(share)
    left, top = (x - 0.5) * (1 - across) * width, (y - 0.5) * (1 - down) * height
    return affine_maps(across, zero, left, zero, down, top)


def resample(images: Tensor, maps: Tensor) -> Tensor:
    """Float images `(B, C, H, W)` as the maps `(B, 3, 3)` show them, bilinear; what was outside is black."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    rows = torch.stack([maps[:, 0] * (2 / width), maps[:, 1] * (2 / height)], 2)
    of_x, of_y, start = rows.permute(1, 0, 2)[:, :, None, None]
    grid = torch.addcmul(start + of_y * y[..., None], of_x, x[:, None])
    # An edge pixel reaches to the image's edge: blended with black there, every enlarged crop had a dark rim.
    inside = torch.maximum(*grid.abs().unbind(3))[:, None] <= 1
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False) * inside


def random_boxes(images: Tensor, down: Tensor | int, across: Tensor | int, generator: torch.Generator | None) -> Tensor:
    """Where a box of so many pixels `(B, 1)` lies whose centre is any pixel, cut at the edges: `(B, 1, H, W)` bool."""
    batch, _, height, width = images.shape
    centre = torch.rand(2, batch, 1, generator=generator, device=images.device)
    top, left = (centre[0] * height).floor() - down // 2, (centre[1] * width).floor() - across // 2
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    in_rows = (rows >= top) & (rows < top + down)
    in_columns = (columns >= left) & (columns < left + across)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]

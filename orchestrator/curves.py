"""Learning curves drawn in letters, which a terminal without colours shows as well. Pure: values in, lines out."""

from __future__ import annotations

import math
import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LETTERS = string.ascii_uppercase
HEIGHT, MAX_WIDTH = 12, 60
BETWEEN, SEVERAL = "·", "*"  # on the way from one value to the next; where curves meet


def draw(curves: Sequence[Sequence[float]], title: str, height: int = HEIGHT) -> list[str]:
    """The curves over their places 1, 2, 3, …: the first in A, the next in B; nothing where there is no value."""
    values = [value for curve in curves for value in curve if math.isfinite(value)]
    longest = max(map(len, curves), default=0)
    if not values or longest < 2:
        return []
    low, high = min(values), max(values)
    width = min(MAX_WIDTH, max(20, 6 * (longest - 1) + 1))
    cells = [[" "] * width for _ in range(height)]
    for letter, curve in zip(LETTERS, curves, strict=False):
        _put(cells, _path(curve, width, longest), letter, low, high)
    labels = [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}"]
    margin = max(map(len, labels))
    lines = [f"{label:>{margin}} │{''.join(row).rstrip()}" for label, row in zip(labels, cells, strict=True)]
    last = str(longest)
    axis = [f"{'':>{margin}} └{'─' * width}", f"{'':>{margin}}  1{last:>{width - 1}}"]
    return [title, *lines, *axis]


def _path(curve: Sequence[float], width: int, longest: int) -> list[tuple[int, float, bool]]:
    """Column, value, and whether it is one of the curve's own or between two."""
    step = (width - 1) / (longest - 1)
    found = []
    for column in range(round((len(curve) - 1) * step) + 1):
        place = column / step
        before = min(round(place), len(curve) - 1)
        if round(before * step) == column:
            found.append((column, curve[before], True))
            continue
        left = min(int(place), len(curve) - 1)
        right = min(left + 1, len(curve) - 1)
        found.append((column, curve[left] + (curve[right] - curve[left]) * (place - left), False))
    return [each for each in found if math.isfinite(each[1])]


def _put(cells: list[list[str]], path: Sequence[tuple[int, float, bool]], letter: str, low: float, high: float) -> None:
    span, height = high - low or 1.0, len(cells)
    for column, value, is_own in path:
        row = cells[round((high - value) / span * (height - 1))]
        there = row[column]
        if is_own:
            row[column] = letter if there in {" ", BETWEEN, letter} else SEVERAL
        elif there == " ":
            row[column] = BETWEEN

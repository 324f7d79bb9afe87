"""Who is better where several things count: fronts of vectors that none beats in all. Pure; values are maximised."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Vector = tuple[float, ...]


def dominates(one: Vector, other: Vector) -> bool:
    """Whether one is at least as good in everything and better in something."""
    return one != other and all(mine >= its for mine, its in zip(one, other, strict=True))


def fronts(table: Mapping[int, Vector]) -> list[list[int]]:
    """Trials in fronts: the first are those that no other dominates, the next those that only the former do, and so on.

    By binary search for each trial's front, the best in the first value first (Zhang et al. 2015, ENS-BS,
    doi 10.1109/TEVC.2014.2308305). Within a front by number.
    """
    found: list[list[int]] = []
    for trial in sorted(table, key=lambda number: (*(-value for value in table[number]), number)):
        low, high = 0, len(found)
        while low < high:
            middle = (low + high) // 2
            if _is_dominated(table[trial], found[middle], table):
                low = middle + 1
            else:
                high = middle
        if low == len(found):
            found.append([])
        found[low].append(trial)
    return [sorted(front) for front in found]


def _is_dominated(vector: Vector, front: Sequence[int], table: Mapping[int, Vector]) -> bool:
    # Of two values, the latest of a front has the best second one.
    rivals = front[-1:] if len(vector) == 2 else reversed(front)
    return any(dominates(table[rival], vector) for rival in rivals)


def order(table: Mapping[int, Vector]) -> list[int]:
    """Trials, the best first: front by front, in a front the loneliest first, of equals the earlier.

    How lonely is the crowding distance of NSGA-II (Deb et al. 2002, doi 10.1109/4235.996017).
    """
    found: list[int] = []
    for front in fronts(table):
        lonely = _distances(front, table)
        found += sorted(front, key=lambda trial: (-lonely[trial], trial))
    return found


def _distances(front: Sequence[int], table: Mapping[int, Vector]) -> dict[int, float]:
    """How far apart a trial's neighbours in its front are, summed over all values; at the ends without limit."""
    found = dict.fromkeys(front, 0.0)
    for place in range(len(table[front[0]])):
        ordered = sorted(front, key=lambda trial: (table[trial][place], trial))
        values = [table[trial][place] for trial in ordered]
        spread = values[-1] - values[0]
        if not spread:
            continue
        found[ordered[0]] = found[ordered[-1]] = math.inf
        for at in range(1, len(ordered) - 1):
            found[ordered[at]] += (values[at + 1] - values[at - 1]) / spread
    return found

"""The values that a field may take: counted, fitted, and laid out from 0 to 1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from orchestrator.space import Choices, Range, Scalar, holds

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from orchestrator.space import Space

MAX_COUNTED = 1_000_000  # configurations that are put in order in memory
_TOLERANCE = 1e-8  # of a step


def num_values(searched: Range | Choices) -> float:
    """How many values there are; infinite for a range without steps."""
    if isinstance(searched, Choices):
        return len(searched.choices)
    return math.floor(_steps(searched, searched.high) + _TOLERANCE) + 1 if searched.step else math.inf


def value_at(searched: Range | Choices, index: int) -> Scalar:
    """The value of that index among those that can be counted."""
    if isinstance(searched, Choices):
        return searched.choices[index]
    return _number(searched, min(searched.low + index * searched.step, searched.high))  # 0.1 + 2 * 0.1 is above 0.3


def index_of(searched: Range | Choices, value: Scalar) -> int:
    """The inverse of `value_at`."""
    if isinstance(searched, Choices):
        return next(index for index, choice in enumerate(searched.choices) if _same(choice, value))
    return round(_steps(searched, value))


def fitting(searched: Range | Choices, value: object) -> Scalar | None:
    """The value as the space has it, or None where it lies outside."""
    if isinstance(searched, Choices):
        return next((choice for choice in searched.choices if _same(choice, value)), None)
    if isinstance(value, bool) or not isinstance(value, int if searched.integer else int | float):
        return None
    if not searched.low <= value <= searched.high:
        return None
    if not searched.step:
        return _number(searched, value)
    steps = _steps(searched, value)
    return value_at(searched, round(steps)) if abs(steps - round(steps)) < _TOLERANCE else None


def nearest(searched: Range | Choices, value: Scalar) -> Scalar:
    """The value of the space that is nearest; the first choice where there is no nearness."""
    if (fits := fitting(searched, value)) is not None:
        return fits
    if isinstance(searched, Choices):
        return _nearest_choice(searched.choices, value)
    if not _is_number(value):
        return searched.low
    clipped = min(max(value, searched.low), searched.high)
    if not searched.step:
        return _number(searched, clipped)
    return value_at(searched, min(round(_steps(searched, clipped)), int(num_values(searched)) - 1))


def to_unit(searched: Range, value: float) -> float:
    """Where a number lies from 0 to 1, on the log scale of a log range; a step is as wide as any other."""
    low, high = _edges(searched)
    return (_scaled(searched, value) - low) / (high - low)


def from_unit(searched: Range | Choices, place: float) -> Scalar:
    """The value at a place from 0 to 1, the inverse of `to_unit`; choices have equal parts."""
    if isinstance(searched, Choices):
        return searched.choices[min(int(place * len(searched.choices)), len(searched.choices) - 1)]
    low, high = _edges(searched)
    scaled = low + place * (high - low)
    return nearest(searched, math.exp(scaled) if searched.log else scaled)


def plain_ranges(space: Space) -> dict[str, Range]:
    """The ranges that are searched in every trial."""
    return {name: each for name, each in space.items() if isinstance(each, Range) and not each.when}


class Points:
    """The configurations of a space: which is which, and an order to go through them.

    Fields whose condition does not hold are no part of a configuration; the space names conditions' fields first.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed
        self._counts = {name: num_values(searched) for name, searched in space.items()}
        self._size = math.prod(self._counts.values())

    @property
    def countable(self) -> bool:
        """Whether they can be gone through in order."""
        return self._size <= MAX_COUNTED

    def key(self, params: Mapping[str, Scalar]) -> Hashable:
        """What tells two configurations apart, whatever the last digits of a stepped number."""
        return tuple(
            (name, value if math.isinf(self._counts[name]) else index_of(self._space[name], value))
            for name, value in sorted(params.items())
        )

    def listed(self) -> Iterator[dict[str, Scalar]]:
        """All of them in an order that the seed tells; what conditions leave of several may come several times."""
        assert self.countable, "only what can be counted has an order"
        for place in np.random.RandomState(self._seed).permutation(int(self._size)):
            yield self._at(int(place))

    def _at(self, place: int) -> dict[str, Scalar]:
        found: dict[str, Scalar] = {}
        for name, searched in self._space.items():
            place, index = divmod(place, int(self._counts[name]))
            if holds(searched.when, found):
                found[name] = value_at(searched, index)
        return found


def _steps(searched: Range, value: float | str) -> float:
    return (float(value) - searched.low) / searched.step


def _number(searched: Range, value: float) -> int | float:
    return int(value) if searched.integer else float(value)


def _nearest_choice(choices: tuple[Scalar, ...], value: Scalar) -> Scalar:
    numbers = [choice for choice in choices if _is_number(choice)]
    if not numbers or not _is_number(value):
        return choices[0]
    return min(numbers, key=lambda choice: abs(choice - value))


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(choice: Scalar, value: object) -> bool:
    """Whether two are one value: `True` is not 1, but 24 is 24.0."""
    return choice == value and isinstance(choice, bool) == isinstance(value, bool)


def _scaled(searched: Range, value: float) -> float:
    return math.log(value) if searched.log else value


def _edges(searched: Range) -> tuple[float, float]:
    """Ends of the range, half a step further where it has steps, so that its ends are as likely as the rest."""
    last = value_at(searched, int(num_values(searched)) - 1) if searched.step else searched.high
    half = searched.step / 2
    return _scaled(searched, searched.low - half), _scaled(searched, float(last) + half)

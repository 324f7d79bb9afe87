"""What a field is searched over: a range or choices, and under which conditions it is searched at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    model_validator,
)

from recipes.config import Part

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

Scalar = StrictBool | StrictInt | StrictFloat | StrictStr


def _check_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError(f"expected a finite number, found {value!r}")
    return value


def _check_choice(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"expected a number, a word, true or false, found {value!r}")
    return _check_number(value) if isinstance(value, float) else value


def _listed(value: Any) -> Any:
    """A single value is short for a list of one."""
    if value in ([], ()):
        raise ValueError("a condition has at least one value")
    return value if isinstance(value, list | tuple) else [value]


# One complaint, where a union of types would have one a type.
_Number = Annotated[StrictInt | StrictFloat, BeforeValidator(_check_number)]
_Choice = Annotated[Scalar, BeforeValidator(_check_choice)]
# Field -> values: searched only where each of these fields has one of its values.
When = dict[str, Annotated[tuple[_Choice, ...], BeforeValidator(_listed)]]


class Range(Part):
    """All numbers from `low` to `high`, both included; whole numbers if the field is."""

    low: _Number
    high: _Number
    log: bool = False
    step: _Number = 0  # 0 is no step
    integer: bool = False
    when: When = Field(default_factory=dict)

    @model_validator(mode="after")
    def _possible(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range cannot start from {self.low}")
        if self.log and self.step not in (0, 1):
            raise ValueError("a log range has no step")
        if self.step < 0:
            raise ValueError(f"step {self.step} is negative")
        return self

    def ends(self) -> tuple[Any, ...]:
        """Values that all must be possible for the range to be."""
        return (self.low, self.high)

    def takes(self, value: Scalar) -> bool:
        """Whether the value lies between the ends."""
        return isinstance(value, int | float) and self.low <= value <= self.high

    def draw(self, rng: random.Random) -> Scalar:
        """Any value, each as likely as the others, or each logarithm."""
        if self.log:
            half = 0.5 if self.integer else 0.0
            exponent = rng.uniform(math.log(self.low - half), math.log(self.high + half))
            value = min(max(math.exp(exponent), self.low), self.high)
        elif self.step:
            value = self.low + self.step * rng.randint(0, math.floor((self.high - self.low) / self.step + 1e-9))
        else:
            value = rng.uniform(self.low, self.high)
        return round(value) if self.integer else float(value)


class Choices(Part):
    """One of some values."""

    choices: tuple[_Choice, ...]
    when: When = Field(default_factory=dict)

    @model_validator(mode="after")
    def _distinct(self) -> Choices:
        if not self.choices:
            raise ValueError("there are no choices")
        if len({(type(choice), choice) for choice in self.choices}) < len(self.choices):
            raise ValueError(f"choices repeat: {', '.join(map(str, self.choices))}")
        return self

    def ends(self) -> tuple[Any, ...]:
        """Values that all must be possible for the choices to be."""
        return self.choices

    def takes(self, value: Scalar) -> bool:
        """Whether the value is among the choices."""
        return value in self.choices

    def draw(self, rng: random.Random) -> Scalar:
        """Any choice, each as likely as the others."""
        return rng.choice(self.choices)


def _kind(value: Any) -> str:
    """Which of the two is meant, so that complaints are about that one."""
    is_choices = "choices" in value if isinstance(value, dict) else isinstance(value, Choices)
    return (Choices if is_choices else Range).__name__


Space = dict[str, Annotated[Annotated[Range, Tag("Range")] | Annotated[Choices, Tag("Choices")], Discriminator(_kind)]]


def in_order(space: Space) -> list[str]:
    """The fields of a space, each after those that its condition is about, else as they stand.

    Raises:
        ValueError: conditions that wait for each other.
    """
    parents = {name: [parent for parent in searched.when if parent in space] for name, searched in space.items()}
    ordered: dict[str, None] = {}
    while waiting := [name for name in space if name not in ordered]:
        ready = [name for name in waiting if all(parent in ordered for parent in parents[name])]
        if not ready:
            raise ValueError(f"conditions go in a circle: {' -> '.join(_circle(parents, waiting))}")
        ordered |= dict.fromkeys(ready)
    return list(ordered)


def _circle(parents: Mapping[str, list[str]], waiting: list[str]) -> list[str]:
    """The first circle found by going from field to parent; all `waiting` have a parent that waits."""
    path = [waiting[0]]
    while path[-1] not in path[:-1]:
        path.append(next(parent for parent in parents[path[-1]] if parent in waiting))
    return path[path.index(path[-1]) :]


def holds(when: Mapping[str, tuple[Scalar, ...]], drawn: Mapping[str, Scalar]) -> bool:
    """Whether a condition holds; one about a field that was not drawn itself does not."""
    return all(parent in drawn and drawn[parent] in values for parent, values in when.items())


def settle(space: Space, values: Mapping[str, Scalar]) -> Space:
    """The space with all conditions decided that are about fields of fixed `values`.

    A field whose condition cannot hold falls out, and with it those whose conditions are about it.
    """
    kept: Space = {}
    for name in in_order(space):
        when = space[name].when
        searched = {parent: wanted for parent, wanted in when.items() if parent in space}
        given = {parent: wanted for parent, wanted in when.items() if parent not in space}
        possible = all(
            parent in kept and any(kept[parent].takes(value) for value in wanted) for parent, wanted in searched.items()
        )
        if possible and holds(given, values):
            kept[name] = space[name].model_copy(update={"when": searched})
    return {name: kept[name] for name in space if name in kept}


def draw(space: Space, rng: random.Random, pinned: Mapping[str, Scalar] | None = None) -> dict[str, Scalar]:
    """Any configuration of the space; `pinned` fields have their value wherever they are drawn."""
    drawn: dict[str, Scalar] = {}
    for name in in_order(space):
        if holds(space[name].when, drawn):
            drawn[name] = pinned[name] if pinned and name in pinned else space[name].draw(rng)
    return drawn


def plain(searched: Range | Choices) -> dict[str, Any]:
    """As JSON; without a condition it is what it was before there were conditions."""
    return searched.model_dump(mode="json", exclude=None if searched.when else {"when"})


def describe(searched: Mapping[str, Any]) -> str:
    """What is searched, as a person would say it; `searched` is plain data, as a record keeps it."""
    if "choices" in searched:
        words = [", ".join(map(str, searched["choices"]))]
    else:
        words = [f"{searched['low']} to {searched['high']}"]
        words += ["log"] if searched.get("log") else []
        words += [f"step {searched['step']}"] if searched.get("step") else []
    words += [f"when {describe_condition(searched['when'])}"] if searched.get("when") else []
    return " ".join(words)


def describe_condition(when: Mapping[str, Any]) -> str:
    """A condition as a person would say it: `optimizer=sgd, depth=2|3`."""
    return ", ".join(f"{parent}={'|'.join(map(str, values))}" for parent, values in when.items())

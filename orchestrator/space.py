"""What a field is searched over: a range or choices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Discriminator, StrictBool, StrictFloat, StrictInt, StrictStr, Tag, model_validator

from recipes.config import Part

if TYPE_CHECKING:
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


# One complaint, where a union of types would have one a type.
_Number = Annotated[StrictInt | StrictFloat, BeforeValidator(_check_number)]
_Choice = Annotated[Scalar, BeforeValidator(_check_choice)]


class Range(Part):
    """All numbers from `low` to `high`, both included; whole numbers if the field is."""

    low: _Number
    high: _Number
    log: bool = False
    step: _Number = 0  # 0 is no step
    integer: bool = False

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


class Choices(Part):
    """One of some values."""

    choices: tuple[_Choice, ...]

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


def _kind(value: Any) -> str:
    """Which of the two is meant, so that complaints are about that one."""
    is_choices = "choices" in value if isinstance(value, dict) else isinstance(value, Choices)
    return (Choices if is_choices else Range).__name__


Space = dict[str, Annotated[Annotated[Range, Tag("Range")] | Annotated[Choices, Tag("Choices")], Discriminator(_kind)]]


def describe(searched: Mapping[str, Any]) -> str:
    """What is searched, as a person would say it; `searched` is plain data, as a record keeps it."""
    if "choices" in searched:
        return ", ".join(map(str, searched["choices"]))
    words = [f"{searched['low']} to {searched['high']}"]
    words += ["log"] if searched.get("log") else []
    words += [f"step {searched['step']}"] if searched.get("step") else []
    return " ".join(words)

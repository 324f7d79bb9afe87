"""`field=value` of the command line in Hydra's override grammar, read by hydra-core's own parser.

Fixed values: `lr=1e-3`. Searched: `lr=tag(log,interval(1e-4,1e-1))`, `optimizer=sgd,adamw`, `depth=range(2,6)` (which
leaves 6 out), `width=int(interval(16,128))`. Nothing else of the grammar is taken.
https://hydra.cc/docs/advanced/override_grammar/extended/
"""

from __future__ import annotations

import math
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, OverrideType, QuotedString, RangeSweep
from hydra.errors import HydraException
from pydantic import ValidationError

from orchestrator.errors import UsageError
from orchestrator.space import Choices, Range, Scalar

_PARSER = OverridesParser.create()


def split(text: str) -> tuple[str, str]:
    """Split `key=value` at the first `=`.

    Raises:
        UsageError: there is no `=`, or nothing before it.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"{text!r} is not key=value")
    return key, value


def parse(text: str) -> tuple[str, Scalar | Range | Choices]:
    """Return the field's name, and its fixed value or what is searched for it.

    Raises:
        UsageError: not in the grammar, or in a part of it that is not taken.
    """
    try:
        override = _PARSER.parse_override(text)
        value: Any = override.value()
    except HydraException as error:  # its messages speak of the grammar's tokens
        raise _unreadable(text) from error
    if override.type is not OverrideType.CHANGE or override.package is not None:
        raise UsageError(f"cannot read {text!r}: expected field=value, with no +, ~ or @ in the field")
    try:
        return override.key_or_group, _meaning(text, value)
    except ValidationError as error:
        raise UsageError(f"{text}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _unreadable(text: str) -> UsageError:
    return UsageError(
        f"cannot read {text!r}: expected a value ('in quotes' if it is unusual text), a,b,c, range(a,b), "
        "interval(a,b), int(interval(a,b)) or tag(log,interval(a,b))"
    )


def _meaning(text: str, value: Any) -> Scalar | Range | Choices:
    match value:
        case bool() | int() | float() | str():
            return value
        case ChoiceSweep(list=items, shuffle=False, tags=tags) if not tags:
            return Choices(choices=tuple(_meaning_of_choice(text, item) for item in items))
        case RangeSweep(shuffle=False, start=int() | float(), stop=int() | float(), tags=tags) if not tags:
            _check_finite(text, value.start, value.stop, value.step)
            return Range(low=value.start, high=_last(value), step=value.step)
        case IntervalSweep(start=int() | float(), end=int() | float(), tags=tags) if tags <= {"log"}:
            _check_finite(text, value.start, value.end)
            return Range(low=value.start, high=value.end, log="log" in tags)
    raise _unreadable(text)


def _meaning_of_choice(text: str, item: Any) -> Scalar:
    if isinstance(item, QuotedString):
        return item.text
    if isinstance(item, bool | int | float | str):
        _check_finite(text, item)
        return item
    raise UsageError(f"cannot read {text!r}: a choice is a number, a word, true or false")


def _check_finite(text: str, *values: Any) -> None:
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise UsageError(f"{text}: every number must be finite")


def _last(sweep: RangeSweep) -> int | float:
    """Return the last value of a range that leaves its stop out."""
    assert sweep.start is not None
    assert sweep.stop is not None
    if sweep.step <= 0 or sweep.stop <= sweep.start:
        raise UsageError(f"range({sweep.start},{sweep.stop},{sweep.step}) is empty: it needs start < stop and step > 0")
    # (1.6 - 1) / 0.2 is a little more than 3: the tolerance keeps the stop out.
    steps = math.ceil((sweep.stop - sweep.start) / sweep.step - 1e-9) - 1
    return sweep.start + steps * sweep.step

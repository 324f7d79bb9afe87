"""As much of JSON Schema as the schemas of study files use; another keyword is an error, not passed over."""

from __future__ import annotations

import operator
from typing import Any

_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
_BOUNDS = {
    "minimum": operator.ge,
    "exclusiveMinimum": operator.gt,
    "maximum": operator.le,
    "exclusiveMaximum": operator.lt,
}
_WORDS = {"$schema", "$defs", "title", "description", "default"}  # say nothing about what fits


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value fits a schema, whose references are into `root`."""
    return all(_fits(word, meant, value, schema, root) for word, meant in schema.items() if word not in _WORDS)


def _fits(word: str, meant: Any, value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if word in _BOUNDS:
        return not is_number or _BOUNDS[word](value, meant)
    match word:
        case "$ref":
            found: Any = root
            for part in meant.removeprefix("#/").split("/"):
                found = found[part]
            return fits(value, found, root)
        case "type":
            return isinstance(value, _TYPES[meant]) and (meant == "boolean" or not isinstance(value, bool))
        case "enum":
            return value in meant
        case "anyOf":
            return any(fits(value, one, root) for one in meant)
        case "allOf":
            return all(fits(value, one, root) for one in meant)
        case "items":
            return not isinstance(value, list) or all(fits(item, meant, root) for item in value)
        case "minItems":
            return not isinstance(value, list) or len(value) >= meant
        case "required":
            return not isinstance(value, dict) or set(meant) <= set(value)
        case "properties":
            named = (
                [(value[name], one) for name, one in meant.items() if name in value] if isinstance(value, dict) else []
            )
            return all(fits(item, one, root) for item, one in named)
        case "additionalProperties" if meant is False:
            return not isinstance(value, dict) or set(value) <= set(schema["properties"])
    raise AssertionError(f"keyword {word}: {meant} is not known here")

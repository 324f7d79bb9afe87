"""Reads `studies/*.yaml`: YAML 1.2 with no tags, no aliases and no repeated keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.tokens import (
    AliasToken,
    AnchorToken,
    BlockEndToken,
    BlockMappingStartToken,
    BlockSequenceStartToken,
    FlowMappingEndToken,
    FlowMappingStartToken,
    FlowSequenceEndToken,
    FlowSequenceStartToken,
)

from orchestrator import constraints
from orchestrator.errors import UnknownNameError, UsageError
from orchestrator.space import Choices, Range, Space, in_order
from recipes.config import Part

if TYPE_CHECKING:
    from collections.abc import Iterable

SHIPPED = Path(__file__).parent.parent / "studies"
MAX_BYTES = 100_000
MAX_DEPTH = 8  # of nesting, which costs the parser its square
_STARTS = BlockMappingStartToken | BlockSequenceStartToken | FlowMappingStartToken | FlowSequenceStartToken
_ENDS = BlockEndToken | FlowMappingEndToken | FlowSequenceEndToken


class StudyFile(Part):
    """The contents of a study file: fields held fixed, what the others are searched over, and what must hold."""

    fixed: dict[str, Any] = Field(
        default_factory=dict,
        description="values of fields; of one that is searched under a condition, the value where it does not hold",
    )
    space: Space = Field(default_factory=dict, description="what each searched field is searched over")
    constraints: list[str] = Field(
        default_factory=list, description="comparisons that every configuration satisfies, such as width * depth <= 512"
    )

    @field_validator("space")
    @classmethod
    def _has_no_circle(cls, space: Space) -> Space:
        in_order(space)
        return space

    @field_validator("constraints")
    @classmethod
    def _are_read(cls, texts: list[str]) -> list[str]:
        return [constraints.parse(text).text for text in texts]


def find(recipe: str, data: str = "") -> Path | None:
    """The study file of a recipe, for a data set if there is one: `cnn-cifar10.yaml`, else `cnn.yaml`.

    Each is looked for in `studies/` of the current directory, then among those that are shipped.
    """
    names = [f"{recipe}-{data}.yaml", f"{recipe}.yaml"] if re.fullmatch(r"[\w.-]+", data) else [f"{recipe}.yaml"]
    for name in names:
        for folder in (Path("studies"), SHIPPED):
            if (path := folder / name).is_file():
                return path
    return None


def read(path: Path) -> StudyFile:
    """Read a study file.

    Raises:
        UsageError: not readable, not such YAML (the line is named), or not of this form.
    """
    tree = parse(path)
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: expected `fixed:` and `space:`, found {type(tree).__name__}")
    space = tree.get("space")
    if isinstance(space, dict):  # a list is short for choices
        tree["space"] = {key: {"choices": value} if isinstance(value, list) else value for key, value in space.items()}
    try:
        return StudyFile.model_validate(tree)
    except ValidationError as error:
        raise _complaint(path, error) from error


def _complaint(path: Path, error: ValidationError) -> UsageError:
    """The first complaint of pydantic in one line, with the place it is about."""
    first = error.errors()[0]
    parts = {kind.__name__: kind for kind in (Range, Choices)}
    *above, last = first["loc"]
    if first["type"] == "extra_forbidden":
        part = parts.get(str(above[-1]), StudyFile) if above else StudyFile
        return UnknownNameError(f"key in {path}", str(last), part.model_fields)
    place = ".".join(str(part) for part in first["loc"] if part not in parts)
    if first["type"] == "value_error":
        return UsageError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}")
    if first["type"] == "model_type":
        return UsageError(f"{path}: {place}: expected a list of choices, or low and high, found {first['input']!r}")
    found = "" if first["type"] == "missing" else f", found {first['input']!r}"
    return UsageError(f"{path}: {place}: {first['msg'].lower()}{found}")


def parse(path: Path) -> Any:
    """The plain data in a YAML (or JSON) file.

    Raises:
        UsageError: not readable, too large, or not such YAML; the line is named.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    if len(text) > MAX_BYTES:
        raise UsageError(f"{path}: {len(text)} bytes; a study file has at most {MAX_BYTES}")
    yaml = YAML(typ="safe", pure=True)
    try:
        _check_tokens(path, yaml.scan(text))
        return yaml.load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}, line {line}: {str(error.problem).splitlines()[0]}") from error
    except (YAMLError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as YAML: {type(error).__name__}") from error


def _check_tokens(path: Path, tokens: Iterable[Any]) -> None:
    """Refuse what can make a small file large or slow."""
    depth = 0
    for token in tokens:
        depth += isinstance(token, _STARTS) - isinstance(token, _ENDS)
        if isinstance(token, AliasToken | AnchorToken):
            raise UsageError(f"{path}, line {token.start_mark.line + 1}: anchors and aliases are not taken")
        if depth > MAX_DEPTH:
            raise UsageError(f"{path}, line {token.start_mark.line + 1}: nested more than {MAX_DEPTH} deep")

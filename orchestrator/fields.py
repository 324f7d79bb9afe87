"""The fields of a recipe as a study file and the command line set them: some fixed, some searched.

All that is said is held against the recipe's Config; the data themselves are not looked at.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from orchestrator import constraints, overrides, starts, study_files
from orchestrator.budget import BUDGET_KEYS
from orchestrator.errors import UnknownNameError, UsageError, refused
from orchestrator.feasible import Feasible
from orchestrator.space import Choices, Range, Scalar, Space, settle
from recipes.config import DatasetConfig, FieldPath, flatten, make
from recipes.config import fields as fields_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from recipes import Recipe

# What may differ between two runs of one study: where a trial runs, where its files lie and what is told beside, not
# what comes out of it.
PLACEMENT_FIELDS = frozenset(
    {"device", "data_root", "download", "profile", "pictures", "latency", "loading", "loader_workers"}
)
# Fields of a Config that are set by the study key of the same name, whose text is read by the field's own type.
STUDY_FIELDS = (*DatasetConfig.model_fields, "seed")


def settings(recipe: Recipe, typed: Mapping[str, str], *, single: bool) -> study_files.StudyFile:
    """What the study file and then the command line say of each field.

    Raises:
        UsageError: an unknown key, or a value that cannot be read.
    """
    known = fields_of(recipe.config_type)
    data = overrides.split(typed["data"])[1] if "data" in typed else ""
    file = None if single else study_files.find(recipe.name, data)
    told = _read(file, known) if file else study_files.StudyFile()
    fixed, space = dict(told.fixed), dict(told.space)
    for key, text in typed.items():
        _check_known(key, known)
        value = overrides.split(text)[1] if key in STUDY_FIELDS else overrides.parse(text)[1]
        if known[key].info.annotation is str and not isinstance(value, str | Range | Choices):
            value = overrides.split(text)[1]  # a word may look like a number
        fixed.pop(key, None)
        space.pop(key, None)
        if isinstance(value, Range | Choices):
            if key in PLACEMENT_FIELDS or single:
                raise UsageError(f"{key} cannot be searched {'by `orch train`' if single else ''}".rstrip())
            space[key] = value
        else:
            fixed[key] = value
    return told.model_copy(update={"fixed": fixed, "space": space})


def check_file(recipe: Recipe, path: Path) -> study_files.StudyFile:
    """Read a study file and hold it against its recipe, without any data.

    Raises:
        UsageError: it cannot be read, or some value, condition or constraint is impossible.
    """
    told = _read(path, fields_of(recipe.config_type))
    checked(recipe, told)
    return told


def _read(file: Path, known: Mapping[str, FieldPath]) -> study_files.StudyFile:
    """A study file whose names are all known."""
    told = study_files.read(file)
    where = f" in {file}"
    for key in [*told.fixed, *told.space]:
        _check_known(key, known, where)
        if key in {*STUDY_FIELDS, *PLACEMENT_FIELDS}:
            raise UsageError(f"{file}: {key} is given on the command line, not in a study file")
        if key in told.fixed and key in told.space and not told.space[key].when:
            raise UsageError(f"{file}: {key} is both fixed and searched")
    for key in [parent for searched in told.space.values() for parent in searched.when]:
        _check_known(key, known, where)
    try:
        for constraint in map(constraints.parse, told.constraints):
            for key in constraint.names:
                _check_known(key, known, where)
            constraint.check({key: _kind(known[key]) for key in constraint.names})
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from error
    for key, parent, wanted in [(k, p, w) for k, searched in told.space.items() for p, w in searched.when.items()]:
        if parent in told.space and not any(map(told.space[parent].takes, wanted)):
            raise UsageError(f"{file}: space.{key}.when: {parent} is never {' or '.join(map(str, wanted))}")
    return told


def _kind(field: FieldPath) -> constraints.Kind:
    annotation = field.info.annotation
    words = get_args(annotation)
    return constraints.kind_of(type(words[0]) if words else annotation if isinstance(annotation, type) else str)


def _check_known(key: str, known: Mapping[str, FieldPath], where: str = "") -> None:
    if key not in known:
        keys = [*known, *BUDGET_KEYS, *starts.KEYS, "objectives", "study", "recipe"]
        raise UnknownNameError(f"key{where}", key, keys)


def _typed(searched: Range | Choices, field: FieldPath) -> Range | Choices:
    """Make a range over a whole-number field a range of whole numbers; what is no number has no range."""
    if isinstance(searched, Choices) or field.info.annotation is float:
        return searched
    if field.info.annotation is not int:
        raise UsageError(f"{field.name} is not a number and has no range; give choices, as in {field.name}=a,b")
    if any(number != int(number) for number in (searched.low, searched.high, searched.step)):
        raise UsageError(f"{field.name}: a range of whole numbers cannot go from {searched.low} to {searched.high}")
    step = int(searched.step) or 1
    whole = {"low": int(searched.low), "high": int(searched.high), "step": step, "integer": True}
    return Range.model_validate({**searched.model_dump(), **whole})


def checked(recipe: Recipe, told: study_files.StudyFile) -> tuple[dict[str, Scalar], Space]:
    """What each field has that is not searched in every trial, and the space with its conditions on other fields.

    Each value must be one that its field takes, each choice possible with some draw of the others, and some draw of
    all. A range may hold values that the recipe refuses: they are drawn again.

    Raises:
        UsageError: a value or a choice is impossible.
    """
    known = fields_of(recipe.config_type)
    fixed = {key: _taken(recipe, key, value, known) for key, value in told.fixed.items()}
    space = {key: _typed(searched, known[key]) for key, searched in told.space.items()}
    for key, searched in space.items():
        if key == "devices":
            raise UsageError("devices cannot be searched: slots are laid out for all trials of a study alike")
        for end in searched.ends():
            _taken(recipe, key, end, known)
        when = {
            parent: tuple(_taken(recipe, parent, value, known) for value in wanted)
            for parent, wanted in searched.when.items()
        }
        space[key] = searched.model_copy(update={"when": when})
    values = {**defaults(recipe), **fixed}
    space = settle(space, values)
    possible = Feasible(recipe.config_type, values, space, told.constraints)
    config = _make(recipe, {**values, **(possible.find() or {})})
    for key, searched in space.items():
        for choice in searched.ends() if isinstance(searched, Choices) else ():
            possible.find({key: choice})
    flat = {key: value for key, value in config.items() if key not in space}
    otherwise = {key: values[key] for key, searched in space.items() if searched.when and key in values}
    return {**flat, **otherwise}, space


def defaults(recipe: Recipe) -> dict[str, Scalar]:
    """The default of each field; none of a recipe that leaves something to be given."""
    try:
        return flatten(make(recipe.config_type, {}))
    except ValueError:
        return {}


def _taken(recipe: Recipe, key: str, value: Any, known: Mapping[str, FieldPath]) -> Any:
    """A value as its field takes it, whatever the other fields say."""
    try:
        return flatten(make(recipe.config_type, {key: value}))[key]
    except ValidationError as error:
        path = known[key].path
        for found in error.errors():
            if found["loc"][: len(path)] == path:
                raise refused(key, value, found) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    return value


def _make(recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Scalar]:
    try:
        flat: dict[str, Scalar] = flatten(make(recipe.config_type, values))
    except ValidationError as error:
        first = error.errors()[0]
        raise refused(str((first["loc"] or (recipe.name,))[-1]), first["input"], first) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    for key, value in flat.items():
        if not isinstance(value, bool | int | float | str):
            raise UsageError(
                f"recipe {recipe.name}: {key} is {value!r}; only numbers, words, true and false can be set"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError("every number must be finite")
    return flat


def values_of(key: str, flat: Mapping[str, Scalar], space: Space) -> tuple[Scalar, ...]:
    """The ends of what a field may be."""
    return (*(space[key].ends() if key in space else ()), *((flat[key],) if key in flat else ()))

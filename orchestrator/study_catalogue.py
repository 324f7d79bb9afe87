"""What study files there are, what they say, whether they fit their recipes, and a schema for editors."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import create_model

import recipes
from orchestrator import catalogue, study_files
from orchestrator.errors import UnknownNameError, UsageError
from orchestrator.space import describe, describe_condition, plain
from recipes.config import fields

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path("studies")  # of the current directory; its files win


def rows() -> list[dict[str, Any]]:
    """A row a file: `study` (its name), `recipe`, `searched` (number of fields; None if not readable) and `file`."""
    return [
        {"study": name, "recipe": recipe_of(name), "searched": _num_searched(path), "file": str(path)}
        for name, path in sorted(_files().items())
    ]


def show(name: str) -> dict[str, Any]:
    """What a study file says: `study`, `recipe`, `file`, `fixed`, `space` and `constraints`.

    Raises:
        UsageError: there is none of that name, or it cannot be read.
    """
    path = find(name)
    told = study_files.read(path)
    return {
        "study": path.stem,
        "recipe": recipe_of(path.stem),
        "file": str(path),
        "fixed": {field: _scalar(value) for field, value in told.fixed.items()},
        "space": {field: plain(searched) for field, searched in told.space.items()},
        "constraints": told.constraints,
    }


def field_rows(shown: Mapping[str, Any]) -> list[list[str]]:
    """Lines of field, fixed value, what it is searched over, and when, of what `show` returned."""
    fixed, space = shown["fixed"], shown["space"]
    return [
        [
            field,
            str(fixed.get(field, "")),
            describe({**space[field], "when": {}}) if field in space else "",
            describe_condition(space[field].get("when", {})) if field in space else "",
        ]
        for field in dict.fromkeys([*fixed, *space])
    ]


def validate(reference: str, recipe: str = "") -> dict[str, Any]:
    """Hold a file (a name, or a path) against its recipe; return a row of it as of `rows`.

    Raises:
        UsageError: it cannot be read, or does not fit; the message names the file.
    """
    from orchestrator.fields import check_file  # half a second, which listing does without

    path = find(reference)
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    try:
        told = check_file(catalogue.load(recipe or _known_recipe(path)), path)
    except UsageError as error:
        text = str(error)
        raise UsageError(text if str(path) in text else f"{path}: {text}") from error
    return {
        "study": path.stem,
        "recipe": recipe or recipe_of(path.stem),
        "searched": len(told.space),
        "file": str(path),
    }


def copy(name: str, target: Path | None = None) -> Path:
    """Copy a study file to `target`, or to `studies/` here under its own name; return where it is.

    Raises:
        UsageError: there is none of that name, a file is there already, or none can be written there.
    """
    source = find(name)
    target = target or FOLDER / source.name
    if target.suffix != ".yaml":
        raise UsageError(f"{target} is no name for a study file; one like studies/{source.name} is")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as old, target.open("xb") as new:
            shutil.copyfileobj(old, new)
    except FileExistsError as error:
        raise UsageError(f"{error.filename or target} is there already") from error
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from error
    return target


def find(reference: str) -> Path:
    """The file of a name, here or else shipped; or the file at a path that ends in `.yaml`."""
    if reference.endswith(".yaml"):
        return Path(reference)
    files = _files()
    if reference not in files:
        raise UnknownNameError("study file", reference, files)
    return files[reference]


def recipe_of(name: str) -> str:
    """The recipe of a file called `RECIPE` or `RECIPE-DATA`: a known name, or a `.py` file here; else nothing."""
    parts = name.split("-")
    for number in range(len(parts), 0, -1):
        start = "-".join(parts[:number])
        if start in recipes.names():
            return start
        if Path(f"{start}.py").is_file():
            return f"{start}.py"
    return ""


def _known_recipe(path: Path) -> str:
    recipe = recipe_of(path.stem)
    if not recipe:
        raise UsageError(f"{path}: no recipe is called as this file begins; name it with --recipe")
    return recipe


def _files() -> dict[str, Path]:
    return {path.stem: path for folder in (study_files.SHIPPED, FOLDER) for path in sorted(folder.glob("*.yaml"))}


def _num_searched(path: Path) -> int | None:
    try:
        return len(study_files.read(path).space)
    except UsageError:
        return None


def _scalar(value: Any) -> Any:
    """A value that JSON has: YAML has dates and infinite numbers, which no field takes."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str) else str(value)


# -- the schema


def schema(recipe: recipes.Recipe) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the study files of a recipe, for editors.

    Fields of the recipe are the properties of `fixed`, `space` and each `when`; those that are given on the command
    line are left out of the first two.
    """
    from orchestrator.fields import PLACEMENT_FIELDS, STUDY_FIELDS

    known = fields(recipe.config_type)
    leaves = create_model("Leaves", **{name: (field.info.annotation, field.info) for name, field in known.items()})  # type: ignore[call-overload]
    described: dict[str, Any] = leaves.model_json_schema()["properties"]
    found = study_files.StudyFile.model_json_schema()
    settable = [name for name in known if name not in {*STUDY_FIELDS, *PLACEMENT_FIELDS}]
    searchable = [name for name in settable if name != "devices"]
    found["title"] = f"Study file of recipe {recipe.name}"
    found["$defs"] |= {
        "Fields": {"properties": described},  # never meant itself
        "When": _object({name: _one_or_more(_field(name)) for name in known}),
    }
    for part in ("Range", "Choices"):
        found["$defs"][part]["properties"]["when"] = {"$ref": "#/$defs/When"}
    properties = found["properties"]
    properties["fixed"] |= _object({name: _field(name) for name in settable})
    properties["space"] |= _object({name: _searched(name, described[name]) for name in searchable})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _field(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/Fields/properties/{name}"}


def _one_or_more(one: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


def _narrowed(part: str, properties: dict[str, Any]) -> dict[str, Any]:
    """A form of the whole schema for one field; editors of draft 7 look at nothing beside a `$ref`."""
    return {"allOf": [{"$ref": f"#/$defs/{part}"}, {"properties": properties}]}


def _searched(name: str, described: dict[str, Any]) -> dict[str, Any]:
    """Choices as a list or with a condition, and of a number also a range."""
    choices = {"type": "array", "items": _field(name), "minItems": 1}
    forms = [choices, _narrowed("Choices", {"choices": choices})]
    if described.get("type") in {"integer", "number"}:
        forms.append(_narrowed("Range", {end: _field(name) for end in ("low", "high")}))
    return {"description": described.get("description", ""), "anyOf": forms}

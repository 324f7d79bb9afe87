"""What recipes there are, what fields they have, and a copy of one to edit."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

import recipes
from orchestrator import study_files
from orchestrator.errors import UnknownNameError, UsageError
from orchestrator.space import describe
from recipes.config import fields, flatten, make

if TYPE_CHECKING:
    from recipes.config import FieldPath

BOUNDS = {Gt: ("gt", ">"), Ge: ("ge", "≥"), Lt: ("lt", "<"), Le: ("le", "≤")}  # attribute and sign of each


def load(reference: str) -> recipes.Recipe:
    """The recipe of that name or file.

    Raises:
        UsageError: there is none, or it is not a recipe.
    """
    try:
        return recipes.load(reference)
    except recipes.UnknownRecipeError as error:
        raise UnknownNameError("recipe", error.name, error.names) from error
    except recipes.RecipeFileError as error:
        raise UsageError(str(error)) from error


def rows() -> list[dict[str, Any]]:
    """A row a recipe that needs no path: `recipe`, `about` and `file`; none is imported, with torch, for that."""
    files = recipes.sources()
    return [{"recipe": name, "about": _about(file), "file": str(file)} for name, file in files.items()]


def field_rows(recipe: recipes.Recipe) -> list[dict[str, Any]]:
    """A row a field: `field`, `type`, `default`, `range`, `meaning`, and `searched` as its study file does."""
    defaults = flatten(make(recipe.config_type, {}))
    file = study_files.find(recipe.name)
    space = study_files.read(file).space if file is not None else {}
    return [
        {
            "field": name,
            "type": _type(field),
            "default": defaults[name],
            "range": _range(field),
            "searched": describe(space[name].model_dump()) if name in space else "",
            "meaning": field.info.description or "",
        }
        for name, field in fields(recipe.config_type).items()
    ]


def copy(recipe: recipes.Recipe, target: Path) -> list[Path]:
    """Write a recipe's file to `target`, and its study file to `studies/` here, under names of the copy's own.

    Raises:
        UsageError: `target` is no name for a recipe file, or one of the two is there already.
    """
    if target.suffix != ".py" or not target.stem.isidentifier():
        raise UsageError(f"{target} is no name for a recipe; one like my_{recipe.name}.py is")
    source = Path(str(recipe.module.__file__)).read_text()
    # A model names the recipe that it is restored with: that of a copy is the copy.
    text = source.replace(f'recipe="{recipe.name}"', "recipe=__file__")
    file = study_files.find(recipe.name)
    study = Path("studies") / f"{target.stem}.yaml"
    for path in [target, *([study] if file else [])]:
        if path.exists():
            raise UsageError(f"{path} is there already")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    if file is None:
        return [target]
    study.parent.mkdir(exist_ok=True)
    shutil.copyfile(file, study)
    return [target, study]


def _about(file: Path) -> str:
    """The first sentence of a file's docstring."""
    paragraph = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n\n")[0]
    return re.split(r"(?<=\.)\s", paragraph)[0].replace("\n", " ")


def _type(field: FieldPath) -> str:
    annotation: Any = field.info.annotation
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    return str(getattr(annotation, "__name__", annotation))


def _range(field: FieldPath) -> str:
    found = [(bound, *BOUNDS[type(bound)]) for bound in field.info.metadata if type(bound) in BOUNDS]
    return ", ".join(f"{sign} {getattr(bound, attribute)}" for bound, attribute, sign in found)

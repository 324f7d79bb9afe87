"""What is trained: one file a recipe, plain PyTorch, nothing of Optuna, MLflow or the orchestrator.

A recipe is a module with three names:

``Config``
    a frozen pydantic model composed of parts (see `recipes.config`); every leaf field can be searched.
``build_model(config, info)``
    the untrained `torch.nn.Module` for images described by a `recipes.data.ImageInfo`.
``train(config, attempt=None)``
    a generator of `recipes.loop.Epoch`, one a trained epoch.

and, where they are needed, more:

``TAKES_TABLES``
    True if `build_model` makes something of rows, where `info.columns` says what they hold.

``restore(config, info, tensors)``
    the trained model, if the weights that training saves are not all of it.
``check(config)``
    raises a ValueError of one line if something outside the configuration, such as a file, is missing to train it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from recipes.config import fields

if TYPE_CHECKING:
    from types import ModuleType

BUILT_IN = ("mlp", "cnn", "resnet", "vit", "transfer")
ENTRY_POINTS = "orch.recipes"


class UnknownRecipeError(ValueError):
    """No recipe has this name; `names` are those that exist."""

    def __init__(self, name: str, names: list[str]) -> None:
        super().__init__(f"unknown recipe {name!r}; known: {', '.join(names)}, or a path to a .py file")
        self.name, self.names = name, names


class RecipeFileError(ValueError):
    """A recipe's file is missing, does not import, or has no proper `Config` or no `train`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A loaded recipe: its short name, how it was asked for, and its module."""

    name: str
    reference: str
    module: ModuleType

    @property
    def config_type(self) -> Any:
        """The recipe's `Config`, a pydantic model class."""
        return self.module.Config

    @property
    def code_hash(self) -> str:
        """SHA-256 of the recipe's own file."""
        assert self.module.__file__ is not None
        return hashlib.sha256(Path(self.module.__file__).read_bytes()).hexdigest()


def names() -> list[str]:
    """Names of the built-in recipes and of those that installed packages offer."""
    return [*BUILT_IN, *sorted(entry.name for entry in entry_points(group=ENTRY_POINTS))]


def sources() -> dict[str, Path]:
    """The file of each of them by name, found without importing it."""
    modules = {name: f"recipes.{name}" for name in BUILT_IN}
    modules |= {entry.name: entry.module for entry in sorted(entry_points(group=ENTRY_POINTS))}
    specs = {name: importlib.util.find_spec(module) for name, module in modules.items()}
    return {name: Path(spec.origin) for name, spec in specs.items() if spec is not None and spec.origin is not None}


def load(reference: str) -> Recipe:
    """Import the recipe called `reference`: a built-in name, a path to a `.py` file or an entry point.

    Raises:
        UnknownRecipeError: nothing has that name.
        RecipeFileError: the file is missing, fails to import, or is not a recipe.
    """
    if reference.endswith(".py"):
        return _checked(Path(reference).stem, reference, _import_file(Path(reference).resolve()))
    if reference in BUILT_IN:
        return _checked(reference, reference, importlib.import_module(f"recipes.{reference}"))
    for entry in entry_points(group=ENTRY_POINTS, name=reference):
        return _checked(reference, reference, entry.load())
    raise UnknownRecipeError(reference, names())


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise RecipeFileError(f"recipe file {path} does not exist")
    # The hash keeps two files of one name apart in sys.modules.
    name = f"orch_recipe_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise RecipeFileError(f"recipe file {path} does not import: {type(error).__name__}: {error}") from error
    return module


def _checked(name: str, reference: str, module: ModuleType) -> Recipe:
    missing = [attribute for attribute in ("Config", "train") if not hasattr(module, attribute)]
    if missing:
        raise RecipeFileError(f"recipe {reference!r} has no {' and no '.join(missing)}")
    if not (isinstance(module.Config, type) and issubclass(module.Config, BaseModel)):
        raise RecipeFileError(f"recipe {reference!r}: Config is not a pydantic model")
    try:
        fields(module.Config)
    except ValueError as error:
        raise RecipeFileError(f"recipe {reference!r}: {error}") from error
    return Recipe(name=name, reference=reference, module=module)

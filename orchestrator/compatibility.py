"""Does a recipe suit the data, the loss and the device that a study may give it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError
from orchestrator.fields import values_of
from recipes.config import AugmentConfig, OptimConfig, dataset_of
from recipes.data import CSV, SHARDS
from recipes.data import load as load_data

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.feasible import Feasible
    from orchestrator.space import Scalar, Space
    from recipes import Recipe


def check_device(config: Mapping[str, Scalar]) -> None:
    """See that there are as many devices as are asked for.

    Raises:
        UsageError: there are not.
    """
    from recipes.device import check_devices  # torch, which the recipe has imported by now

    try:
        check_devices(str(config.get("device", "auto")), int(config.get("devices", 1)))
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_needs(recipe: Recipe, possible: Feasible, space: Space) -> None:
    """Ask the recipe whether it has all it needs, for each word that a field may be.

    Raises:
        UsageError: it has not.
    """
    if not hasattr(recipe.module, "check"):
        return
    words = [{key: end} for key, searched in space.items() for end in searched.ends() if isinstance(end, str)]
    try:
        for pinned in [{}, *words]:
            if (params := possible.find(pinned)) is not None:
                recipe.module.check(possible.config(params))
    except ValueError as error:
        raise UsageError(str(error)) from error


def useless_fields(recipe: Recipe, config: Mapping[str, Scalar], space: Space, typed: set[str]) -> list[str]:
    """Fields that say nothing about such data, whatever a study file searches: of a table, all changes of images.

    Raises:
        UsageError: the recipe takes no tables, or one of the fields was typed.
    """
    useless = ["label_smoothing"] if config.get("task") == "regression" else []
    if str(config.get("data", "")).startswith(CSV) and load_data(dataset_of(config)).info.columns:
        if not getattr(recipe.module, "TAKES_TABLES", False):
            raise UsageError(f"recipe {recipe.name} takes images; data={config['data']} is a table, for recipe=mlp")
        useless += AugmentConfig.model_fields
    found = [key for key in useless if key in config or key in space]
    for key in found:
        if key in typed:
            reason = "is for classes and labels" if key == "label_smoothing" else "changes images, and this is a table"
            raise UsageError(f"{key} {reason}")
    return found


def check(recipe: Recipe, flat: Mapping[str, Scalar], space: Space) -> None:
    """See that the loss, the changes of colours and the loading are for such data, whatever is drawn.

    Raises:
        UsageError: one of them is not.
    """
    _check_loss(recipe, flat, space)
    _check_colours(recipe, flat, space)
    _check_stream(flat, space)


def _check_loss(recipe: Recipe, flat: Mapping[str, Scalar], space: Space) -> None:
    """See that all losses that may be drawn are for what the data ask."""
    part = recipe.config_type.model_fields.get("optim")
    if part is None or part.annotation is not OptimConfig:
        return
    from recipes import losses  # torch, which the recipe has imported by now

    task = dataset_of(flat).task
    drawn = {key: values_of(key, flat, space) for key in ("loss", "balance")}
    try:
        for loss, balance in itertools.product(*drawn.values()):
            losses.check(OptimConfig.model_validate({"loss": loss, "balance": balance}), task)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_colours(recipe: Recipe, flat: Mapping[str, Scalar], space: Space) -> None:
    """See that the images have the colours that the strongest augmentation changes; they are only read if it does."""
    part = recipe.config_type.model_fields.get("augment")
    if part is None or part.annotation is not AugmentConfig or "data" not in flat:
        return
    from recipes.colour import COLOUR_FIELDS, check_channels  # torch, which the recipe has imported by now

    strongest = {key: max(values_of(key, flat, space)) for key in COLOUR_FIELDS}
    if not any(strongest.values()):
        return
    try:
        check_channels(AugmentConfig.model_validate(strongest), load_data(dataset_of(flat)).info)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_stream(flat: Mapping[str, Scalar], space: Space) -> None:
    """See that nothing is asked of a stream that needs its images in any order."""
    if not str(flat.get("data", "")).startswith(SHARDS):
        return
    for key, value in (("balance", "sampler"), ("loading", "resident")):
        if value in values_of(key, flat, space):
            raise UsageError(f"{key}={value} needs training images in any order; data {flat['data']!r} is a stream")

"""Trained weights in a `.safetensors` file, with all that is needed to build their model again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from recipes.config import TrainConfig, flatten, make
from recipes.data import ImageInfo
from recipes.speed import results

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import BaseModel
    from torch import Tensor, nn

    from recipes import Recipe

FORMAT_VERSION = 1
# One key for all: safetensors writes several in an order that changes, and equal models are to be equal files.
METADATA_KEY = "orch"


class ModelFileError(ValueError):
    """A file is not a model of ours, or not of the recipe that it is read for."""


def metadata(config: TrainConfig, info: ImageInfo, recipe: str, epoch: Mapping[str, Any]) -> dict[str, str]:
    """What `read_model` finds beside the weights of an epoch, which is a record of the training's history."""
    values = {
        "format_version": FORMAT_VERSION,
        "recipe": recipe,
        "config": flatten(cast("BaseModel", config)),
        "info": info.to_json(),
        "epoch": epoch["number"],
        "metrics": results(epoch["metrics"]),
    }
    return {METADATA_KEY: json.dumps(values)}


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a `best.safetensors`; no code of the file's author runs.

    The metadata are `format_version`, `recipe`, `config` (flat), `info`, `epoch` and `metrics`.

    Raises:
        ModelFileError: the file is missing, broken, of another kind or of a newer version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelFileError(f"{path} is not a model: {error}") from error
    found = header.get("format_version") if isinstance(header, dict) else None
    if found != FORMAT_VERSION:
        raise ModelFileError(f"{path} is not a model of format version {FORMAT_VERSION}: it says {found}")
    return header, tensors


def restore_model(recipe: Recipe, path: Path) -> tuple[nn.Module, ImageInfo, dict[str, Any]]:
    """The trained model in eval mode on the CPU, what it was trained on, and the file's metadata.

    Raises:
        ModelFileError: the file is no model, or one of another architecture.
    """
    metadata, tensors = read_model(path)
    try:
        info = ImageInfo.from_json(metadata["info"])
        config = make(recipe.config_type, metadata["config"])
        if hasattr(recipe.module, "restore"):
            model = recipe.module.restore(config, info, tensors)
        else:
            model = recipe.module.build_model(config, info)
            load_weights(model, tensors)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{path} does not fit the recipe {recipe.name}: {reason}") from error
    return model.eval(), info, metadata


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all weights of a model, each by its name.

    Raises:
        ValueError: the first name or shape in which the two differ.
    """
    own = model.state_dict()
    for name in [*own, *tensors]:
        wanted, given = (tuple(side[name].shape) if name in side else "missing" for side in (own, tensors))
        if wanted != given:
            raise ValueError(f"{name} is {given} in the file and {wanted} in the model")
    model.load_state_dict(tensors, strict=True)

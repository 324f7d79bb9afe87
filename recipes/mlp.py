"""A multilayer perceptron on the pixels of an image, or on the columns of a table.

Defaults on the digits, 20 epochs, one thread of an x86 server core with AVX-512, torch 2.15: val_accuracy 0.991
(mean of 12, split seeds 0 to 2 by seeds 0 to 3; 0.986 to 1), 25 ms an epoch. Once by `mlp.train` with
`activation=gelu` and both seeds 0: 0.997.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import nn

from recipes.config import AugmentConfig, DatasetConfig, FitConfig, OptimConfig, Part
from recipes.loop import fit
from recipes.modules import Columns, Init, initialise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recipes.data import ImageInfo
    from recipes.loop import Attempt, Epoch


TAKES_TABLES = True
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class ModelConfig(Part):
    """Shape of the network."""

    width: int = Field(256, ge=1, le=16384, description="units of a hidden layer")
    depth: int = Field(2, ge=1, le=24, description="hidden layers")
    batch_norm: bool = Field(True, description="batch normalisation after each hidden layer")
    activation: Literal["relu", "gelu", "silu", "tanh"] = Field("relu", description="of each hidden layer")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout after each hidden layer")
    init: Init = "default"


class Config(Part):
    """All of the recipe's fields."""

    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig(label_smoothing=0.1)
    fit: FitConfig = FitConfig()
    dataset: DatasetConfig = DatasetConfig()


def train(config: Config, attempt: Attempt | None = None) -> Iterator[Epoch]:
    """Train, one `Epoch` a step."""
    return fit(config, build_model, attempt, recipe="mlp")


def build_model(config: Config, info: ImageInfo) -> nn.Module:
    """The untrained network: images `(B, C, H, W)` or rows `(B, F)` float to logits or numbers `(B, K)`."""
    first = Columns(info.columns) if info.columns else nn.Flatten()
    layers: list[nn.Module] = [first]
    inputs = first.num_features if isinstance(first, Columns) else info.channels * info.height * info.width
    width = config.model.width
    activation = ACTIVATIONS[config.model.activation]
    for _ in range(config.model.depth):
        norm = [nn.BatchNorm1d(width)] if config.model.batch_norm else []
        layers += [nn.Linear(inputs, width, bias=not norm), *norm, activation(), nn.Dropout(config.model.dropout)]
        inputs = width
    model = nn.Sequential(*layers, nn.Linear(inputs, info.num_classes))
    initialise(model, config.model.init)
    return model

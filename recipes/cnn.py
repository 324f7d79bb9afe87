"""A plain convolutional network in the manner of VGG (Simonyan and Zisserman 2014, arXiv 1409.1556).

A stage is `depth` 3x3 convolutions; each stage halves the image and is `growth` times as wide as the one before, until
nothing is left to halve. Then a mean over the pixels and one linear layer. The halving comes before the first
normalisation of a stage, which then has a quarter of the work. The widths of VGG itself are `width=64 max_width=512`.

Defaults on the digits, 15 epochs, one thread of an x86 server core with AVX-512, torch 2.15: val_accuracy 0.992
(mean of 12, split seeds 0 to 2 by seeds 0 to 3; 0.989 to 0.997), 64 ms an epoch. Once each by `cnn.train` with
`seed` 0 and `split_seed` 0: `init=kaiming` 0.992, `init=xavier` 0.992, `init=normal` 0.994, `stages=1` 0.975.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from torch import nn

from recipes.config import AugmentConfig, DatasetConfig, FitConfig, OptimConfig, Part
from recipes.loop import fit
from recipes.modules import Init, initialise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recipes.data import ImageInfo
    from recipes.loop import Attempt, Epoch

SMALLEST = 4  # pixels a side below which an image is not halved


class ModelConfig(Part):
    """Shape of the network."""

    width: int = Field(24, ge=1, le=1024, description="channels of the first stage")
    depth: int = Field(2, ge=1, le=12, description="convolutions a stage")
    stages: int = Field(5, ge=1, le=8, description="most stages; fewer where an image can't be halved so often")
    growth: float = Field(2.0, ge=1, le=4, description="channels of a stage, as a multiple of those before it")
    max_width: int = Field(0, ge=0, le=16384, description="channels that no stage has more of; 0 sets no limit")
    batch_norm: bool = Field(True, description="batch normalisation after each convolution")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the last layer")
    init: Init = "default"


class Config(Part):
    """All of the recipe's fields."""

    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig(crop=1)
    optim: OptimConfig = OptimConfig(lr=1e-2, label_smoothing=0.1)
    fit: FitConfig = FitConfig(epochs=15)
    dataset: DatasetConfig = DatasetConfig()


def train(config: Config, attempt: Attempt | None = None) -> Iterator[Epoch]:
    """Train, one `Epoch` a step."""
    return fit(config, build_model, attempt, recipe="cnn")


def build_model(config: Config, info: ImageInfo) -> nn.Module:
    """The untrained network: images `(B, C, H, W)` float to logits `(B, K)`."""
    layers: list[nn.Module] = []
    channels, side = info.channels, min(info.height, info.width)
    for width in _widths(config.model, side):
        for position in range(config.model.depth):
            halves = position == 0 and side >= SMALLEST
            layers += _convolution(channels, width, batch_norm=config.model.batch_norm, halves=halves)
            channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.model.dropout)]
    model = nn.Sequential(*layers, *head, nn.Linear(channels, info.num_classes))
    initialise(model, config.model.init)
    return model


def _widths(model: ModelConfig, side: int) -> list[int]:
    """Channels of each stage; as many stages as the side can be halved without falling below two pixels."""
    num_stages = min(max(side.bit_length() - 2, 1), model.stages)
    widths = [round(model.width * model.growth**stage) for stage in range(num_stages)]
    return [min(width, model.max_width or width) for width in widths]


def _convolution(inputs: int, outputs: int, *, batch_norm: bool, halves: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm)]
    if halves:
        layers.append(nn.MaxPool2d(2))
    if batch_norm:
        layers.append(nn.BatchNorm2d(outputs))
    return [*layers, nn.ReLU(inplace=True)]

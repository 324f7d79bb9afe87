"""A head on the features of a pretrained network.

The network stays as it is (`freeze=true`): its features are computed once a data set, kept in the cache, and only the
head is trained on them, in milliseconds an epoch. Or everything is fine-tuned on the images (`freeze=false`).

On the digits the defaults reach a test accuracy of 0.994, 0.994 and 0.992 (`split_seed` 0, 1, 2) at 0.02 s an epoch,
after 3 s for the features (one thread of an AMD EPYC, torch 2.15).
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import safetensors.torch
import torch
from filelock import FileLock
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from recipes import data
from recipes.augment import Batches
from recipes.config import AugmentConfig, DatasetConfig, FitConfig, OptimConfig, Part
from recipes.device import choose_device
from recipes.files import write_whole
from recipes.loop import fit
from recipes.model_file import load_weights
from recipes.pretrained import INIT_PATTERN, Backbone, Features, identity, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from recipes.data import Dataset, ImageInfo, Split
    from recipes.loop import Attempt, Epoch

log = logging.getLogger(__name__)

FEATURES_FORMAT = 1
FEATURES_BATCH_SIZE = 64


class ModelConfig(Part):
    """Where the features come from, and the head on them."""

    init: str = Field("imagenet", description="imagenet, timm:NAME, torchvision:NAME or a model's .safetensors")
    features: Features = Field("middle", description="what the classifier saw (last), stages before it (middle), all")
    input_size: int = Field(
        64, ge=64, le=1024, description="pixels a side that images are resized to, where the network takes any size"
    )
    pretrained: bool = Field(True, description="false draws the network's weights anew, to see what they are worth")
    freeze: bool = Field(True, description="train the head alone; false trains the network as well")
    backbone_lr: float = Field(
        0.1, gt=0, le=1, description="learning rate of the network where freeze=false, as a share of lr"
    )
    unfreeze_epochs: int = Field(
        0,
        ge=0,
        description="epochs over which the network's blocks join the head, the last first; 0 trains all at once",
    )
    hidden: int = Field(0, ge=0, le=4096, description="units of a hidden layer in the head; 0 has none")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the features dropped before the last layer")

    @field_validator("init")
    @classmethod
    def _is_known(cls, init: str) -> str:
        if not INIT_PATTERN.fullmatch(init):
            raise ValueError(f"init={init!r} is none of imagenet, timm:NAME, torchvision:NAME, PATH.safetensors")
        return init


class Config(Part):
    """All fields of the recipe."""

    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    fit: FitConfig = FitConfig()
    dataset: DatasetConfig = DatasetConfig()

    @model_validator(mode="after")
    def _frozen_features_stay(self) -> Self:
        if self.model.freeze and not self.model.pretrained:
            raise ValueError("pretrained=false needs freeze=false: there is nothing to keep in random weights")
        changes = self.augment.model_dump(exclude_defaults=True)
        if self.model.freeze and changes:
            asked = ", ".join(f"{name}={value}" for name, value in changes.items())
            raise ValueError(f"{asked} needs freeze=false: frozen features are computed once, from images as they are")
        return self


class Head(nn.Module):
    """Features (B, F), brought to mean 0 and spread 1 by what is known of them, to logits (B, K)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: ModelConfig, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        layers: list[nn.Module] = []
        if model.hidden:
            layers += [nn.Linear(num_features, model.hidden), nn.ReLU()]
        layers += [nn.Dropout(model.dropout), nn.Linear(model.hidden or num_features, num_classes)]
        self.layers = nn.Sequential(*layers)

    def standardise(self, features: Tensor) -> Self:
        """Take mean and spread from these features (N, F)."""
        self.mean.copy_(features.mean(0))
        # A feature without spread says nothing; 1 keeps it from being blown up.
        spread = features.std(0, correction=0)
        self.std.copy_(torch.where(spread > 1e-6, spread, 1.0))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, F) to logits (B, K)."""
        return self.layers((x - self.mean) / self.std)  # type: ignore[no-any-return]


class Transfer(nn.Module):
    """Backbone and head: normalised images (B, C, H, W) to logits (B, K).

    In training the head comes first: blocks of the network join it from the last to the first, over the first
    `unfreeze_epochs` epochs, and learn more slowly (Howard and Ruder 2018, arXiv 1801.06146).
    """

    def __init__(self, backbone: Backbone, head: Head, model: ModelConfig) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.lr_shares = {"backbone.": model.backbone_lr}
        self._unfreeze_epochs = model.unfreeze_epochs

    def begin_epoch(self, number: int) -> None:
        """Let as many blocks of the network learn as an epoch counted from 1 is for."""
        blocks = _blocks(self.backbone.network)
        num_frozen = 0
        if self._unfreeze_epochs:
            share = min(1.0, (number - 1) / self._unfreeze_epochs)
            num_frozen = len(blocks) - int(share * len(blocks))
        for index, block in enumerate(blocks):
            block.requires_grad_(index >= num_frozen)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to logits (B, K)."""
        return self.head(self.backbone(x))  # type: ignore[no-any-return]


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The parts of a network in order, those of its sequences one by one, as far as they have weights."""
    found: list[nn.Module] = []
    for child in network.children():
        found += child.children() if isinstance(child, nn.Sequential | nn.ModuleList) else [child]
    return [block for block in found if any(True for _ in block.parameters())]


def check(config: Config) -> None:
    """See that the pretrained weights are here, or bring them, before anything trains.

    Raises:
        InitError: no such network, or no weights for it here; the message says which file to put where.
        ValueError: the data are a stream.
    """
    if config.dataset.data.startswith(data.SHARDS):
        raise ValueError(
            f"recipe=transfer needs training images in any order; data {config.dataset.data!r} is a stream"
        )
    if config.model.init != "imagenet":  # whose weights came with the installation
        load(config.model.init, config.model.input_size, trained=config.model.pretrained)


def build_model(config: Config, info: ImageInfo) -> Transfer:
    """The pretrained network with an untrained head, for images as `info` describes them.

    Raises:
        recipes.pretrained.InitError: no such network or features, or no weights for it here.
        recipes.model_file.ModelFileError: `init` is a path to something that is not a model of ours.
    """
    backbone = _backbone(config.model, info)
    return Transfer(backbone, Head(config.model, backbone.num_features, info.num_classes), config.model)


def train(config: Config, attempt: Attempt | None = None) -> Iterator[Epoch]:
    """Train as `config` says; yields after each epoch. What is saved of a frozen training is the head alone."""
    if not config.model.pretrained:  # what random weights make of images says nothing of their mean and spread
        yield from fit(config, build_model, attempt, recipe="transfer")
        return
    dataset = with_features(config)
    features = dataset.train.images

    if config.model.freeze:

        def build_head(config: Config, info: ImageInfo) -> nn.Module:
            return Head(config.model, features.shape[1], info.num_classes).standardise(features)

        yield from fit(config, build_head, attempt, recipe="transfer", dataset=dataset)
    else:

        def build_whole(config: Config, info: ImageInfo) -> nn.Module:
            model = build_model(config, info)
            model.head.standardise(features)
            return model

        yield from fit(config, build_whole, attempt, recipe="transfer")


def restore(config: Config, info: ImageInfo, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The whole model, images to logits, from what its training saved.

    Raises:
        ValueError: the first name or shape that does not fit.
    """
    model = build_model(config, info)
    load_weights(model.head if config.model.freeze else model, tensors)
    return model


def with_features(config: Config) -> Dataset:
    """The data set with features (N, F) float32 in place of the images of train and val, from the cache.

    Who finds them missing computes them while all others wait; the test images are left as they are.
    """
    dataset = data.load(config.dataset)
    dataset.train.check_random_access("recipe=transfer")
    path = data.cache_folder() / f"features-{_features_key(config.model, dataset)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            log.info("computing features of %s for %s", config.model.init, config.dataset.data)
            write_whole(path, safetensors.torch.save(_compute_features(config, dataset)))
        found = safetensors.torch.load_file(path)
    return replace(
        dataset,
        train=replace(dataset.train, images=found["train"]),
        val=replace(dataset.val, images=found["val"]),
    )


def _features_key(model: ModelConfig, dataset: Dataset) -> str:
    parts = [
        FEATURES_FORMAT,
        dataset.data_fingerprint,
        dataset.split_fingerprint,
        identity(model.init),
        model.features,
        model.input_size,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@torch.inference_mode()
def _compute_features(config: Config, dataset: Dataset) -> dict[str, Tensor]:
    device = choose_device(config.fit.device)
    backbone = _backbone(config.model, dataset.info).to(device)
    dataset = dataset.to(device)
    return {
        name: torch.cat([backbone(images) for images in _batches(split, dataset.info)]).cpu()
        for name, split in (("train", dataset.train), ("val", dataset.val))
    }


def _batches(split: Split, info: ImageInfo) -> Iterator[Tensor]:
    """The images of a split as a model takes them, in order."""
    prepare = Batches(split, info, memory_format=torch.contiguous_format)
    num_images, device = len(split.labels), split.labels.device
    for start in range(0, num_images, FEATURES_BATCH_SIZE):
        yield prepare(torch.arange(start, min(start + FEATURES_BATCH_SIZE, num_images), device=device))[0]


def _backbone(model: ModelConfig, info: ImageInfo) -> Backbone:
    with torch.inference_mode(mode=False):
        network = load(model.init, model.input_size, trained=model.pretrained)
        backbone = Backbone(network, model.features, info, trained=model.pretrained)
        return backbone.requires_grad_(not model.freeze)

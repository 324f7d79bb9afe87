"""The typed parts that recipes compose their `Config` from, and the flat names by which their fields are known.

A `Config` is a tree of parts (`config.optim.lr`); a command line, a study file and a table know a field by its leaf
name alone (`lr`). Leaf names are therefore unique within a `Config`; `fields` refuses one that repeats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo


MAX_SEED = 2**32 - 1  # the largest that NumPy takes


class Part(BaseModel):
    """A group of fields: frozen, keyword-only, closed to unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DatasetConfig(Part):
    """Which images, and how they are split; both belong to a study's identity."""

    data: str = Field("digits", description="data set")
    split_seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of the stratified 60/20/20 split")


class OptimConfig(Part):
    """Optimiser, its schedule, and the loss it minimises."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="optimiser; sgd is with Nesterov momentum")
    lr: float = Field(3e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(1e-2, ge=0, description="decay of weights; norms and biases are spared")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="learning rate after the warm-up")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    clip_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip")


class AugmentConfig(Part):
    """Random changes to training images, drawn for each image, applied to whole batches on the device."""

    crop: int = Field(0, ge=0, description="pixels of padding to crop from at random")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    cutout: int = Field(0, ge=0, description="side in pixels of a square blanked at random")


class FitConfig(Part):
    """How long, on what, and from which seed."""

    epochs: int = Field(20, gt=0, description="passes over the training images")
    batch_size: int = Field(64, gt=0, description="images a step")
    patience: int = Field(0, ge=0, description="epochs without a better val_accuracy before stopping; 0 never stops")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of weights, order, augmentation and dropout")
    device: str = Field("auto", description="auto, cpu, mps, cuda or cuda:N")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="arithmetic on CUDA; elsewhere fp32")


class TrainConfig(Protocol):
    """What the training loop reads of a recipe's `Config`; the model's own part is between the recipe and its model."""

    @property
    def dataset(self) -> DatasetConfig: ...  # noqa: D102
    @property
    def optim(self) -> OptimConfig: ...  # noqa: D102
    @property
    def augment(self) -> AugmentConfig: ...  # noqa: D102
    @property
    def fit(self) -> FitConfig: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class FieldPath:
    """Where the field with a flat name lives in a `Config`, and what pydantic knows of it."""

    name: str
    path: tuple[str, ...]
    info: FieldInfo


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def fields(config_type: type[BaseModel]) -> dict[str, FieldPath]:
    """All leaf fields of a `Config` by flat name, in order of definition.

    Raises:
        ValueError: two fields have one name.
    """
    found: dict[str, FieldPath] = {}

    def walk(part: type[BaseModel], prefix: tuple[str, ...]) -> None:
        for name, info in part.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                walk(info.annotation, (*prefix, name))
            else:
                if name in found:
                    raise ValueError(f"Config names the field {name!r} twice")
                found[name] = FieldPath(name=name, path=(*prefix, name), info=info)

    walk(config_type, ())
    return found


def make(config_type: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Build a `Config` from flat values; what is not given keeps its default.

    Raises:
        KeyError: a name that the `Config` does not have.
        pydantic.ValidationError: a value of the wrong type or out of range.
    """
    known = fields(config_type)
    # A recipe's own defaults live in the instances of its parts: a part given in pieces must not lose the rest of them.
    tree: dict[str, Any] = {
        name: info.default.model_dump()
        for name, info in config_type.model_fields.items()
        if isinstance(info.default, BaseModel)
    }
    for name, value in values.items():
        *parents, leaf = known[name].path
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return config_type.model_validate(tree)


def flatten(config: BaseModel) -> dict[str, Any]:
    """The inverse of `make`: every leaf by flat name, in order of definition."""
    flat: dict[str, Any] = {}
    for name, path in fields(type(config)).items():
        node: Any = config
        for part in path.path:
            node = getattr(node, part)
        flat[name] = node
    return flat

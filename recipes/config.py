"""The typed parts that recipes compose their `Config` from, and the flat names by which their fields are known.

A `Config` is a tree of parts (`config.optim.lr`); a command line, a study file and a table know a field by its leaf
name alone (`lr`). Leaf names are therefore unique within a `Config`; `fields` refuses one that repeats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo


MAX_SEED = 2**32 - 1  # the largest that NumPy takes
# What a model's outputs are for -> the metric by which epochs and trials are ranked, the higher the better.
OBJECTIVES = {"classification": "val_accuracy", "multilabel": "val_f1", "regression": "val_r2"}
# What the training loop tells of a task's epochs, but for their speed.
METRICS = {
    task: ("train_loss", "val_loss", *told, "lr", "num_parameters", "flops")
    for task, told in {
        "classification": ("val_accuracy",),
        "multilabel": ("val_accuracy", "val_f1"),
        "regression": ("val_r2", "val_mae", "val_rmse"),
    }.items()
}


class Part(BaseModel):
    """A group of fields: frozen, keyword-only, closed to unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DatasetConfig(Part):
    """Which images, and how they are split; both belong to a study's identity."""

    data: str = Field("digits", description="data set: a name, folder:PATH, csv:PATH or shards:PATH")
    split_seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of the stratified 60/20/20 split")
    image_size: int = Field(
        0, ge=0, le=8192, description="pixels a side that pictures are squashed to once; 0 leaves them as they are"
    )
    limit: int = Field(0, ge=0, description="most images to take, stratified; 0 takes all")
    on_bad_image: Literal["fail", "skip"] = Field("fail", description="what to do about a file that is no image")
    task: Literal["classification", "multilabel", "regression"] = Field(
        "classification", description="one class an image, any number of labels, or numbers; the last two are a CSV's"
    )
    target: str = Field(
        "",
        description="column of a CSV's labels; several, with commas, of labels 0 and 1 or of numbers; "
        "empty is label, or else the last one",
    )
    data_root: str = Field("data", description="folder of torchvision's data sets")
    download: bool = Field(False, description="let torchvision download what is missing there")


class OptimConfig(Part):
    """Optimiser, its schedule, and the loss it minimises."""

    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "muon"] = Field(
        "adamw", description="optimiser; muon takes the matrices and leaves the rest to adamw"
    )
    lr: float = Field(3e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(1e-2, ge=0, description="decay of weights; norms and biases are spared")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd, rmsprop and muon")
    nesterov: bool = Field(True, description="Nesterov's momentum in sgd and muon")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean gradient in adam and adamw")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the mean squared gradient in adam and adamw")
    schedule: Literal["cosine", "constant", "linear", "exponential", "step", "multistep", "onecycle", "plateau"] = (
        Field("cosine", description="learning rate after the warm-up")
    )
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up, before any schedule")
    final_lr: float = Field(
        0.0, ge=0, le=1, description="where cosine, linear and exponential end, as a share of lr; exponential needs > 0"
    )
    gamma: float = Field(0.1, gt=0, lt=1, description="factor of each drop of step, multistep and plateau")
    step_epochs: int = Field(10, gt=0, description="epochs between two drops of step")
    milestones: str = Field("0.5 0.75", description="when multistep drops, as shares of all epochs")
    plateau_epochs: int = Field(5, gt=0, description="epochs without a lower val_loss before plateau drops")
    loss: Literal["auto", "cross_entropy", "focal", "bce", "mse", "l1", "smooth_l1"] = Field(
        "auto", description="what is minimised; auto is cross_entropy for a class, bce for labels, mse for numbers"
    )
    focal_gamma: float = Field(
        2.0, ge=0, le=10, description="how much focal leaves easy images aside; 0 is cross_entropy"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    balance: Literal["none", "loss", "sampler"] = Field(
        "none", description="rare classes count for more in the loss, or are drawn more often by the sampler"
    )
    clip_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip")
    clip_value: float = Field(0.0, ge=0, description="largest gradient of a weight; 0 does not clip")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay a step of averaged weights, which are then validated and kept; 0 has none"
    )

    @field_validator("milestones", mode="before")
    @classmethod
    def _are_shares(cls, value: str | float) -> str:
        milestones = str(value)  # a command line's single share is a number
        try:
            shares = [float(word) for word in milestones.split()]
        except ValueError:
            shares = []
        if not shares or not all(0 < share < 1 for share in shares):
            raise ValueError(f"milestones={milestones!r} must be numbers between 0 and 1 with spaces between them")
        return milestones

    @model_validator(mode="after")
    def _exponential_ends_above_zero(self) -> Self:
        if self.schedule == "exponential" and not self.final_lr:
            raise ValueError("schedule=exponential needs final_lr above 0, such as 0.01")
        return self


class AugmentConfig(Part):
    """Random changes to training images, drawn for each image, applied to whole batches on the device."""

    crop: int = Field(0, ge=0, description="pixels of padding to crop from at random")
    resized_crop: float = Field(
        0.0, ge=0, le=1, description="smallest share of the area of a crop brought back to full size; 0 does not crop"
    )
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    vertical_flip: float = Field(0.0, ge=0, le=1, description="probability of a vertical flip")
    rotation: float = Field(0.0, ge=0, le=180, description="most degrees turned, either way")
    brightness: float = Field(0.0, ge=0, le=1, description="most by which a factor on all pixels differs from 1")
    contrast: float = Field(0.0, ge=0, le=1, description="most by which a factor on the contrast differs from 1")
    saturation: float = Field(0.0, ge=0, le=1, description="most by which a factor on colourfulness differs from 1")
    hue: float = Field(0.0, ge=0, le=0.5, description="most that colours move, as a share of the colour circle")
    trivial_augment: float = Field(
        0.0, ge=0, le=1, description="TrivialAugment, strongest as this share of its wide ranges; 0 is off"
    )
    noise: float = Field(
        0.0, ge=0, le=1, description="standard deviation of Gaussian noise, as a share of the pixels' range"
    )
    cutout: int = Field(0, ge=0, description="side in pixels of a square blanked at random")
    mixup: float = Field(0.0, ge=0, description="alpha of MixUp, which blends pairs of images; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix, which pastes a box of another image; 0 is off")


class FitConfig(Part):
    """How long, on what, and from which seed."""

    epochs: int = Field(20, gt=0, description="passes over the training images")
    batch_size: int = Field(64, gt=0, description="images a step")
    accumulate: int = Field(1, gt=0, description="parts that a batch is computed in, one after another, to save memory")
    patience: int = Field(0, ge=0, description="epochs without a better val_accuracy before stopping; 0 never stops")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of weights, order, augmentation and dropout")
    device: str = Field("auto", description="auto, cpu, mps, cuda or cuda:N")
    devices: int = Field(1, ge=1, le=64, description="GPUs, or processes on the CPU, that share every batch")
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field("fp32", description="arithmetic on CUDA; elsewhere fp32")
    compile: bool = Field(
        False, description="compile the model by torch.compile: a slow first epoch, and other rounding than without"
    )
    activation_checkpointing: bool = Field(
        False,
        description="keep less of the forward pass and compute it again: less memory, more time, same numbers",
    )
    loading: Literal["auto", "resident", "workers"] = Field(
        "auto", description="images on the device (resident) or brought batch by batch; auto: resident where they fit"
    )
    loader_workers: int = Field(
        2, ge=0, le=64, description="processes that bring batches; 0 loads in the training process"
    )
    shuffle_buffer: int = Field(
        2048, gt=0, description="images of a stream (shards:PATH) that the next one is drawn from"
    )
    latency: bool = Field(False, description="measure how long the model takes for one image, as latency_ms")
    profile: bool = Field(False, description="leave a Chrome trace and a table of operators beside the checkpoints")
    pictures: bool = Field(
        False, description="leave TensorBoard events, curves, a batch and the mistakes beside the checkpoints"
    )

    @model_validator(mode="after")
    def _is_compiled_or_computed_again(self) -> Self:
        if self.compile and self.activation_checkpointing:
            raise ValueError("compile=true decides itself what to compute again; leave activation_checkpointing out")
        return self

    @model_validator(mode="after")
    def _each_device_has_an_image(self) -> Self:
        if self.batch_size < self.devices:
            raise ValueError(f"batch_size={self.batch_size} is less than an image for each of devices={self.devices}")
        return self


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


def objective_of(values: Mapping[str, Any]) -> str:
    """The metric by which the trainings of a flat configuration are ranked."""
    return OBJECTIVES[values.get("task", "classification")]


def dataset_of(values: Mapping[str, Any]) -> DatasetConfig:
    """The data set of a flat configuration; other fields are passed over."""
    return DatasetConfig.model_validate({name: values[name] for name in DatasetConfig.model_fields if name in values})


def flatten(config: BaseModel) -> dict[str, Any]:
    """The inverse of `make`: every leaf by flat name, in order of definition."""
    flat: dict[str, Any] = {}
    for name, path in fields(type(config)).items():
        node: Any = config
        for part in path.path:
            node = getattr(node, part)
        flat[name] = node
    return flat

"""The one training loop: a generator that yields an `Epoch` after each epoch.

Nothing in a training step waits for the device: batches are made there, losses are summed there, and the sums are
fetched once an epoch. On the CPU a run that was stopped and taken up again ends with the bits of one that was not,
given the same torch, instruction set and thread count.
"""

from __future__ import annotations

import json
import math
import random
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from recipes import checkpoint, data, losses, optim
from recipes.augment import Batches
from recipes.config import TrainConfig, flatten, make
from recipes.data import ImageInfo
from recipes.flops import size
from recipes.profiling import Profiler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from pydantic import BaseModel
    from torch import Tensor

    from recipes import Recipe
    from recipes.data import Dataset

FORMAT_VERSION = 1
# One key for all: safetensors writes several in an order that changes, and equal models are to be equal files.
METADATA_KEY = "orch"
# Validation keeps nothing for a backward pass, so that several times as many images fit.
VAL_BATCH_FACTOR = 4

ConfigT = TypeVar("ConfigT", bound=TrainConfig)


class DivergedError(RuntimeError):
    """The loss of an epoch is not finite."""


class ModelFileError(ValueError):
    """A file is not a model of ours, or not of the recipe that it is read for."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One finished epoch: its number counts from 1; `saved` is done when its checkpoint is durable."""

    number: int
    metrics: dict[str, float]
    seconds: float
    is_best: bool
    saved: Future[None] | None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Where a training keeps its files, and the folder of an earlier attempt to go on from."""

    folder: Path
    resume_from: Path | None = None


def fit(
    config: ConfigT,
    build_model: Callable[[ConfigT, ImageInfo], nn.Module],
    attempt: Attempt | None = None,
    *,
    recipe: str,
    dataset: Dataset | None = None,
) -> Iterator[Epoch]:
    """Train; with an attempt, keep checkpoints and go on from those of an earlier one.

    `recipe` is the reference by which `recipes.load` finds the recipe again. `dataset` takes the place of the
    configured one; float images in it are features, neither augmented nor normalised. A model may have `lr_shares`
    (see `optim.build`) and `begin_epoch(number)`, called before each epoch, counted from 1.

    Raises:
        ValueError: a device that is not there, or a folder that already holds another training.
        DivergedError: a loss is not finite; that epoch has no checkpoint.
        OSError: a checkpoint could not be written, and nobody looked at `Epoch.saved`.
    """
    device = choose_device(config.fit.device)
    dataset = (dataset or data.load(config.dataset)).to(device)
    _seed(config.fit.seed)
    training = _Training(config, build_model(config, dataset.info), dataset, device)
    if attempt is None:
        for record in _train_on(config, training, []):
            yield _epoch(record, saved=None)
        return
    generation = checkpoint.take_up(attempt.folder, attempt.resume_from)
    history = list(generation.record["history"]) if generation else []
    if generation:
        training.load_state(generation.state())
    with ExitStack() as stack:
        writer = stack.enter_context(checkpoint.Writer(attempt.folder, generation))
        if config.fit.profile:
            training.profiler = stack.enter_context(Profiler(attempt.folder, device))
        for record in _train_on(config, training, history):
            metadata = _metadata(config, dataset.info, recipe, record) if record["is_best"] else None
            yield _epoch(record, saved=writer.save(training.state(), history, best_metadata=metadata))


def _train_on(config: TrainConfig, training: _Training, history: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Train epoch after epoch, each appended to `history`, until all are done or they no longer get better."""
    while len(history) < config.fit.epochs and not _is_stale(history, config.fit.patience):
        started = time.perf_counter()
        metrics = training.epoch(history)
        seconds = time.perf_counter() - started
        if not history:
            metrics |= training.size()
        is_best = all(_rank(metrics) > _rank(earlier["metrics"]) for earlier in history)
        history.append({"number": len(history) + 1, "metrics": metrics, "seconds": seconds, "is_best": is_best})
        yield history[-1]


def _epoch(record: dict[str, Any], saved: Future[None] | None) -> Epoch:
    # A copy: the history goes into checkpoints, whatever the receiver does with its metrics.
    return Epoch(**{**record, "metrics": dict(record["metrics"])}, saved=saved)


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` takes the best there is.

    Raises:
        ValueError: a device that is not there.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    there = [*(["cuda"] if gpus else []), *gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    if name == "auto":
        return torch.device(there[0])
    if name not in there:
        raise ValueError(f"device {name!r} is not there; this machine has: {', '.join(there)}")
    return torch.device(name)


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


class _Training:
    """A model in training: everything that changes from step to step."""

    def __init__(self, config: TrainConfig, model: nn.Module, dataset: Dataset, device: torch.device) -> None:
        self._config = config
        self._device = device
        # oneDNN and cuDNN convolve fastest where the channels of a pixel lie together.
        convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
        layout = torch.channels_last if convolves and device.type in ("cpu", "cuda") else torch.contiguous_format
        self._model = model.to(device).to(memory_format=layout)
        self._optimizer = optim.build(config.optim, model)
        self._average = optim.WeightAverage(model, config.optim.ema) if config.optim.ema else None
        precision = config.fit.precision if device.type == "cuda" else "fp32"
        if device.type == "cuda":
            _allow_tf32(precision == "tf32")
        self._autocast_type = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self._scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
        shuffle_seed, augment_seed = np.random.SeedSequence(config.fit.seed).generate_state(2).tolist()
        self._shuffle = torch.Generator().manual_seed(shuffle_seed)
        self._augment = torch.Generator(device).manual_seed(augment_seed)
        self._train_batches = Batches(
            dataset.train, dataset.info, memory_format=layout, augment=config.augment, generator=self._augment
        )
        self._val_batches = Batches(dataset.val, dataset.info, memory_format=layout)
        self._loss = losses.Loss(config.optim, dataset.train.labels, dataset.info.num_classes)
        self._chances = None  # of each image to be drawn; None draws each once
        if config.optim.balance == "sampler":
            labels = dataset.train.labels
            self._chances = losses.class_weights(labels, dataset.info.num_classes)[labels].cpu()
        self._num_train, self._num_val = len(dataset.train.labels), len(dataset.val.labels)
        self.profiler: Profiler | None = None
        self._steps_per_epoch = math.ceil(self._num_train / config.fit.batch_size)
        self._step = 0

    def epoch(self, history: list[dict[str, Any]]) -> dict[str, float]:
        """One pass over the training images and one over the validation images, after those of `history`.

        Raises:
            DivergedError: a loss is not finite.
        """
        begin_epoch = getattr(self._model, "begin_epoch", None)
        if begin_epoch is not None:
            begin_epoch(len(history) + 1)
        train_loss, lr = self._train([earlier["metrics"]["val_loss"] for earlier in history])
        sums = torch.stack([train_loss, *self._evaluate()]).tolist()
        metrics = {
            "train_loss": sums[0] / self._num_train,
            "val_loss": sums[1] / self._num_val,
            "val_accuracy": sums[2] / self._num_val,
            "lr": lr,
        }
        for name in ("train_loss", "val_loss"):
            if not math.isfinite(metrics[name]):
                raise DivergedError(f"{name} is {metrics[name]} after {self._step} steps")
        return metrics

    def size(self) -> dict[str, float]:
        """`num_parameters`, and `flops` of one image; what is the same in each epoch is told once."""
        return size(self._model, self._val_batches(torch.arange(1, device=self._device))[0])

    def _train(self, val_losses: list[float]) -> tuple[Tensor, float]:
        """The sum of the losses, on the device, and the last learning rate."""
        self._model.train()
        total = torch.zeros((), device=self._device)
        num_drops = optim.num_plateau_drops(self._config.optim, val_losses)
        # Equal parts: a short last batch would be a noisy step, and one image has no variance for a batch norm.
        for rows in self._order().tensor_split(self._steps_per_epoch):
            lr = optim.learning_rate(
                self._config.optim,
                step=self._step,
                steps_per_epoch=self._steps_per_epoch,
                num_epochs=self._config.fit.epochs,
                num_drops=num_drops,
            )
            optim.set_learning_rate(self._optimizer, lr)
            total += self._train_step(rows) * len(rows)
        return total, lr

    def _order(self) -> Tensor:
        """The rows of an epoch: each once, or drawn so that classes are about equally frequent."""
        if self._chances is None:
            order = torch.randperm(self._num_train, generator=self._shuffle)
        else:
            order = torch.multinomial(self._chances, self._num_train, replacement=True, generator=self._shuffle)
        return order.to(self._device)

    def _train_step(self, rows: Tensor) -> Tensor:
        """One step on a batch; its mean loss."""
        config, optimizer, scaler = self._config.optim, self._optimizer, self._scaler
        num_parts = min(self._config.fit.accumulate, len(rows))
        if num_parts == 1:
            loss = self._backward(rows, 1.0)
        else:
            parts = rows.tensor_split(num_parts)
            loss = torch.stack([self._backward(part, len(part) / len(rows)) for part in parts]).sum()
        if config.clip_norm or config.clip_value:
            scaler.unscale_(optimizer)  # type: ignore[arg-type]
        if config.clip_value:
            nn.utils.clip_grad_value_(self._model.parameters(), config.clip_value)
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self._model.parameters(), config.clip_norm)
        scaler.step(optimizer)  # type: ignore[arg-type]
        scaler.update()
        optimizer.zero_grad()
        if self._average is not None:
            self._average.update(self._step)
        self._step += 1
        if self.profiler is not None:
            self.profiler.step()
        return loss

    def _backward(self, rows: Tensor, share: float) -> Tensor:
        """Add the gradients of rows that are this share of a batch; the same share of their mean loss."""
        images, targets = self._train_batches(rows)
        loss = self._loss(self._forward(self._model, images), targets)
        if share < 1:
            loss = loss * share
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @torch.inference_mode()
    def _evaluate(self) -> tuple[Tensor, Tensor]:
        """Sum of the losses and number of right answers on the validation images, on the device."""
        model = self._model if self._average is None else self._average.model
        model.eval()
        total, correct = torch.zeros(2, device=self._device)
        rows = torch.arange(self._num_val, device=self._device)
        for part in torch.split(rows, self._config.fit.batch_size * VAL_BATCH_FACTOR):
            images, labels = self._val_batches(part)
            logits = self._forward(model, images)
            total += cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
        return total, correct

    def _forward(self, model: nn.Module, images: Tensor) -> Tensor:
        if self._autocast_type is None:
            return cast("Tensor", model(images))
        with torch.autocast(self._device.type, self._autocast_type):
            return cast("Tensor", model(images)).float()

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on."""
        average = {} if self._average is None else {"average": dict(self._average.model.state_dict())}
        return {
            "model": dict(self._model.state_dict()),
            **average,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "step": self._step,
            "shuffle": self._shuffle.get_state(),
            "augment": self._augment.get_state(),
            "random": _random_states(self._device),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._model.load_state_dict(state["model"])
        if self._average is not None:
            self._average.model.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self._step = state["step"]
        self._shuffle.set_state(state["shuffle"])
        self._augment.set_state(state["augment"])
        _set_random_states(state["random"], self._device)


def _rank(metrics: Mapping[str, float]) -> tuple[float, float]:
    """Higher accuracy first, then lower loss; of equals the earlier stays the best."""
    return metrics["val_accuracy"], -metrics["val_loss"]


def _is_stale(history: list[dict[str, Any]], patience: int) -> bool:
    best = max((epoch["number"] for epoch in history if epoch["is_best"]), default=0)
    return 0 < patience <= len(history) - best


def _metadata(config: TrainConfig, info: ImageInfo, recipe: str, epoch: Mapping[str, Any]) -> dict[str, str]:
    values = {
        "format_version": FORMAT_VERSION,
        "recipe": recipe,
        "config": flatten(cast("BaseModel", config)),
        "info": info.to_json(),
        "epoch": epoch["number"],
        "metrics": epoch["metrics"],
    }
    return {METADATA_KEY: json.dumps(values)}


def _allow_tf32(allowed: bool) -> None:
    """Whether products of fp32 may be rounded to TF32; torch by itself allows it in convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _random_states(device: torch.device) -> dict[str, Any]:
    """The states of the global generators, in plain Python and tensors, as `torch.load` is to read them safely.

    Their 1,249 numbers go into tensors: as a list, saving them took as long as saving the weights of a small model.
    """
    version, internal, gauss = random.getstate()
    kind, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())
    states = {
        "python": (version, torch.tensor(internal), gauss),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps":
        torch.mps.set_rng_state(states["mps"])

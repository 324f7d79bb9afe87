"""The one training loop: a generator that yields an `Epoch` after each epoch.

On the CPU a run that was stopped and taken up again ends with the bits of one that was not, given the same torch,
instruction set and thread count.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from recipes import checkpoint, data, distributed, ranks
from recipes.config import TrainConfig
from recipes.device import choose_device, seed_all
from recipes.model_file import metadata
from recipes.profiling import Profiler
from recipes.speed import PeakMemory
from recipes.training import Training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import nn

    from recipes.data import Dataset, ImageInfo
    from recipes.pictures import Pictures

ConfigT = TypeVar("ConfigT", bound=TrainConfig)


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

    With several devices each has a process that calls the recipe's own `train`, whose call of `fit` is the one that
    counts: `build_model` and `dataset` must be the same there.

    Raises:
        ValueError: a device that is not there, or a folder that already holds another training.
        DivergedError: a loss is not finite; that epoch has no checkpoint.
        OSError: a checkpoint could not be written, and nobody looked at `Epoch.saved`.
        RuntimeError: of several devices, anything else that happened in one of their processes.
    """
    if config.fit.devices == 1:
        yield from _fit(config, build_model, attempt, recipe, dataset)
    elif distributed.is_rank():
        yield from distributed.reported(_fit(config, build_model, attempt, recipe, dataset))
    else:
        for record in distributed.epochs(config, attempt, recipe):
            yield _epoch(record, saved=_durable() if attempt else None)


def _fit(
    config: ConfigT,
    build_model: Callable[[ConfigT, ImageInfo], nn.Module],
    attempt: Attempt | None,
    recipe: str,
    dataset: Dataset | None,
) -> Iterator[Epoch]:
    """Train in this process: the whole, or a rank's share, of which the first rank keeps the checkpoints."""
    group = ranks.current(config.fit.devices)
    device = choose_device(config.fit.device)
    dataset = dataset or data.load(config.dataset)
    memory = PeakMemory(device)
    seed_all(config.fit.seed)
    training = Training(config, build_model(config, dataset.info), dataset, device, group)
    if attempt is None:
        for record in _train_on(config, training, [], memory):
            yield _epoch(record, saved=None)
        return
    generation = checkpoint.take_up(attempt.folder, attempt.resume_from) if group.number == 0 else None
    found = {"history": generation.record["history"], "state": generation.state()} if generation else {}
    found = group.agree(found)
    history = list(found.get("history", []))
    if found:
        training.load_state(found["state"])
    if group.number:
        for record in _train_on(config, training, history, memory):
            yield _epoch(record, saved=None)
        return
    with ExitStack() as stack:
        pictures = stack.enter_context(_pictures(attempt, config, training, dataset, history))
        writer = stack.enter_context(checkpoint.Writer(attempt.folder, generation))
        if config.fit.profile:
            training.profiler = stack.enter_context(Profiler(attempt.folder, device))
        for record in _train_on(config, training, history, memory):
            if pictures is not None:
                pictures.epoch(record)
            about = metadata(config, dataset.info, recipe, record) if record["is_best"] else None
            yield _epoch(record, saved=writer.save(training.state(), history, best_metadata=about))


def _pictures(
    attempt: Attempt, config: TrainConfig, training: Training, dataset: Dataset, history: list[dict[str, Any]]
) -> AbstractContextManager[Pictures | None]:
    """Around the checkpoints' writer, so that the best weights are in place when it is left."""
    if not config.fit.pictures:
        return nullcontext()
    from recipes.pictures import Pictures  # matplotlib and TensorBoard, which take a second

    return Pictures(attempt, config, training, dataset, history)


def _train_on(
    config: TrainConfig, training: Training, history: list[dict[str, Any]], memory: PeakMemory
) -> Iterator[dict[str, Any]]:
    """Train epoch after epoch, each appended to `history`, until all are done or they no longer get better."""
    while len(history) < config.fit.epochs and not _is_stale(history, config.fit.patience):
        started = time.perf_counter()
        metrics = training.epoch(history) | memory.metrics()
        seconds = time.perf_counter() - started
        if not history:
            metrics |= training.size() | (training.latency() if config.fit.latency else {})
        rank = _rank(metrics, training.objective)
        is_best = all(rank > _rank(earlier["metrics"], training.objective) for earlier in history)
        history.append({"number": len(history) + 1, "metrics": metrics, "seconds": seconds, "is_best": is_best})
        yield history[-1]


def _epoch(record: dict[str, Any], saved: Future[None] | None) -> Epoch:
    # A copy: the history goes into checkpoints, whatever the receiver does with its metrics.
    return Epoch(**{**record, "metrics": dict(record["metrics"])}, saved=saved)


def _durable() -> Future[None]:
    saved: Future[None] = Future()
    saved.set_result(None)
    return saved


def _rank(metrics: Mapping[str, float], objective: str) -> tuple[float, float]:
    """Higher accuracy (or what the task has in its place) first, then lower loss; of equals the earlier is the best."""
    return metrics[objective], -metrics["val_loss"]


def _is_stale(history: list[dict[str, Any]], patience: int) -> bool:
    best = max((epoch["number"] for epoch in history if epoch["is_best"]), default=0)
    return 0 < patience <= len(history) - best

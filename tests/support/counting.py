"""A recipe for tests: a tiny model on the digits that writes down every epoch it starts, and fails on request."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from pydantic import Field
from torch import nn

from recipes.checkpoint import read_history
from recipes.config import AugmentConfig, DatasetConfig, FitConfig, OptimConfig, Part
from recipes.loop import fit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from recipes.data import ImageInfo
    from recipes.loop import Attempt, Epoch


class ModelConfig(Part):
    hidden: int = Field(8, gt=0)
    journal: str = Field("", description="file that gets a line `folder epoch` for each epoch begun")
    fault: str = Field("", description="raise, exit, oom, diverge, kill, disk, metric (is missing), nan or crowd")
    fault_epoch: int = Field(2, description="the epoch in which it happens")
    pause_seconds: float = Field(0.0, ge=0, description="how long each epoch takes at least")
    hold_epoch: int = Field(0, description="the epoch that begins, and then waits for the file `<journal>.go`")
    hold_trial: int = Field(0, description="the first trial that waits so")


class Config(Part):
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    fit: FitConfig = FitConfig(epochs=3, batch_size=256)
    dataset: DatasetConfig = DatasetConfig()


def build_model(config: Config, info: ImageInfo) -> nn.Module:
    pixels = info.channels * info.height * info.width
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, config.model.hidden), nn.Linear(config.model.hidden, 10))


def train(config: Config, attempt: Attempt | None = None) -> Iterator[Epoch]:
    number = len(read_history(attempt.resume_from)) if attempt and attempt.resume_from else 0
    training = contextlib.closing(fit(config, build_model, attempt, recipe=__file__))
    with training as epochs, _crowd(config.model) as check_crowd:
        while number < config.fit.epochs:
            number += 1
            if config.model.journal:
                _append(config.model.journal, f"{attempt.folder.parent.name} {number}")
            time.sleep(config.model.pause_seconds)
            if number == config.model.hold_epoch and int(attempt.folder.parent.name) >= config.model.hold_trial:
                _hold(Path(f"{config.model.journal}.go"))
            check_crowd()
            if number == config.model.fault_epoch:
                _fail(config.model.fault)
            epoch = next(epochs)
            if config.model.fault == "metric" and number == config.model.fault_epoch:
                epoch.metrics.pop("val_loss")
            if config.model.fault == "nan" and number == config.model.fault_epoch:
                epoch.metrics["val_loss"] = float("nan")
            yield epoch


@contextlib.contextmanager
def _crowd(config: ModelConfig) -> Iterator[Callable[[], None]]:
    """For `crowd`: what raises out of memory while another such training runs beside this one."""
    folder = Path(f"{config.journal}.crowd")
    if config.fault != "crowd":
        yield lambda: None
        return

    def check() -> None:
        if others := [path.name for path in folder.iterdir() if path != mine and _lives(int(path.name))]:
            raise torch.OutOfMemoryError(f"beside {len(others)}")

    folder.mkdir(exist_ok=True)
    mine = folder / str(os.getpid())
    mine.touch()
    try:
        yield check
    finally:
        mine.unlink()


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # one that was killed fills no memory
    return False


def _hold(until: Path) -> None:
    while not until.exists():
        time.sleep(0.02)


def _append(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


def _fail(fault: str) -> None:
    match fault:
        case "raise":
            raise RuntimeError("as the test asked\nwith a second line")
        case "exit":
            sys.exit(3)
        case "oom":
            raise torch.OutOfMemoryError("as the test asked")
        case "diverge":
            from recipes.training import DivergedError

            raise DivergedError("as the test asked")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "disk":
            raise OSError(28, "No space left on device")

"""One slot in a process of its own: jobs in, events out. `python -m orchestrator.worker NAME FD`.

It knows neither Optuna nor MLflow nor the record. Its environment (devices, threads) is set by who starts it, before
torch is imported; its output goes to a log file.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import json
import logging
import math
import queue
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import recipes
from orchestrator.executors import (
    Decision,
    EpochEnded,
    Event,
    Exported,
    ExportSpec,
    Job,
    SystemSampled,
    TrialEnded,
    TrialFailed,
    TrialPaused,
    TrialSpec,
    begins,
    decode,
    encode,
)
from orchestrator.processes import Channel, serve_parent
from orchestrator.system_metrics import sampling
from orchestrator.tables import Reason
from recipes import data
from recipes.checkpoint import BEST, finish, is_checkpoint, keep_newest, read_history, write_file
from recipes.config import dataset_of, make, objective_of
from recipes.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from recipes.loop import Epoch

MANIFEST_FILE = "manifest.json"
ONNX_FILE = "model.onnx"
NUM_PARITY_IMAGES = 64
NO_MEMORY = "CUDA error: out of memory"  # of the driver, as when a full GPU takes no further process

log = logging.getLogger(__name__)


class Port(Protocol):
    """A job's way to who sent it."""

    def send(self, event: Event) -> None:
        """Report an event; may be called from any thread."""

    def decision(self) -> Decision:
        """Wait for the answer at a decision epoch."""


def run(job: Job, port: Port) -> None:
    """Do a job and report all that happens, its failure too; on a GPU its memory is given back for other workers."""
    import torch

    log.info("%s%s", "training" if isinstance(job, TrialSpec) else "export", begins(job.study, job.trial, job.attempt))
    try:
        if isinstance(job, ExportSpec):
            last: Event = _export(job)
        else:
            with sampling(job.system_seconds, functools.partial(_send_sample, job, port)):
                last = _train(job, port)
    except BaseException as error:  # sys.exit() in a recipe ends its trial, not the worker
        log.warning("a job of trial %d failed", job.trial, exc_info=True)
        last = failure(job, error)
    torch.cuda.empty_cache()  # before the slot counts as free; where CUDA was not used this does nothing
    port.send(last)


def _send_sample(spec: TrialSpec, port: Port, metrics: dict[str, float]) -> None:
    port.send(SystemSampled(trial=spec.trial, attempt=spec.attempt, metrics=metrics, at=time.time()))


def _train(spec: TrialSpec, port: Port) -> TrialEnded | TrialPaused:
    import torch

    from recipes.loop import Attempt

    torch.set_num_threads(spec.threads)
    recipe = recipes.load(spec.recipe)
    config = make(recipe.config_type, spec.config)
    folder = Path(spec.folder)
    folder.mkdir(parents=True, exist_ok=True)
    resume_from, trained = _resume_point(spec)
    for epoch in _untold(spec, trained):
        event = _ended(spec, **epoch)
        port.send(event)
        if event.number in spec.decision_epochs and (decision := port.decision()) != "go":
            _take_over(folder, resume_from)
            return _left(spec, decision)
    with contextlib.closing(recipe.module.train(config, Attempt(folder=folder, resume_from=resume_from))) as training:
        unsent: list[BaseException] = []
        decision = _follow(spec, training, port, unsent)
    if unsent:
        raise unsent[0]
    return _left(spec, decision)


def _left(spec: TrialSpec, decision: Decision) -> TrialEnded | TrialPaused:
    """How an attempt ended whose files are in place; `go` is that it came to its end."""
    folder = Path(spec.folder)
    manifest = _write_manifest(folder)
    if decision == "pause":
        keep_newest(folder)  # many trials may stand paused at once
        return TrialPaused(trial=spec.trial, attempt=spec.attempt, manifest=manifest)
    return TrialEnded(trial=spec.trial, attempt=spec.attempt, stopped=decision == "stop", manifest=manifest)


def _resume_point(spec: TrialSpec) -> tuple[Path | None, list[dict[str, Any]]]:
    """The newest earlier attempt that left a whole checkpoint, and the epochs that it holds."""
    for folder in map(Path, spec.earlier_folders):
        if history := read_history(folder):
            return folder, history
    return None, []


def _take_over(folder: Path, earlier: Path | None) -> None:
    """Make an attempt that trained nothing what the earlier one was, checkpoint, pictures and all."""
    assert earlier is not None, "its epochs come from somewhere"
    finish(folder, earlier)
    there = shutil.ignore_patterns("epoch-*", "best*", MANIFEST_FILE)
    shutil.copytree(earlier, folder, ignore=there, dirs_exist_ok=True)


def _untold(spec: TrialSpec, trained: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trained epochs that the coordinator died before it recorded, or before it decided upon."""
    last = spec.num_recorded_epochs
    return trained[last - 1 if last in spec.decision_epochs else last :]


def _follow(spec: TrialSpec, training: Iterator[Epoch], port: Port, unsent: list[BaseException]) -> Decision:
    """Report epochs as their checkpoints become durable; return the decision that ended the attempt, if any, or go.

    `unsent` is why an epoch could not be reported, which ends the training at the next.
    """
    for epoch in training:
        if unsent:
            break
        event = _ended(spec, epoch.number, epoch.metrics, epoch.seconds)
        decides = epoch.number in spec.decision_epochs
        if epoch.saved is None:
            port.send(event)
        elif decides:
            epoch.saved.result()
            port.send(event)
        else:  # the next epoch trains while this one is written
            epoch.saved.add_done_callback(functools.partial(_send_saved, port.send, event, unsent))
        if decides and (decision := port.decision()) != "go":
            return decision
    return "go"


def _send_saved(send: Callable[[Event], None], event: Event, unsent: list[BaseException], saved: Future[None]) -> None:
    if saved.exception() is not None or unsent:  # which the training loop raises, or this worker
        return
    try:
        send(event)
    except BaseException as error:
        unsent.append(error)


def _ended(spec: TrialSpec, number: int, metrics: dict[str, float], seconds: float, **_: object) -> EpochEnded:
    from recipes.training import DivergedError

    # By these trials and epochs are ranked; what is the same in each epoch is told once.
    required = (objective_of(spec.config), "val_loss", *(spec.objectives if number == 1 else ()))
    if missing := [name for name in required if name not in metrics]:
        raise ValueError(f"epoch {number} has no {' and no '.join(missing)}; a recipe's epochs must have them")
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise DivergedError(f"{name} is {value} in epoch {number}")
    return EpochEnded(trial=spec.trial, attempt=spec.attempt, number=number, metrics=metrics, seconds=seconds)


def _write_manifest(folder: Path) -> dict[str, str]:
    """Write names and SHA-256 of all files but checkpoints, which go once the coordinator has the result."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not is_checkpoint(path))
    manifest = {str(path.relative_to(folder)): sha256_of(path) for path in files}
    write_file(folder / MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
    return manifest


def failure(job: Job, error: BaseException) -> TrialFailed | Exported:
    """How a job ended that raised; of an export that is only a note, and the trial's result stands."""
    first = (str(error).strip().splitlines() or ["no message"])[0]
    message = f"{type(error).__name__}: {first}"
    if isinstance(job, ExportSpec):
        return Exported(trial=job.trial, attempt=job.attempt, error=message)
    return TrialFailed(
        trial=job.trial,
        attempt=job.attempt,
        reason=_reason(error),
        message=message,
        traceback=traceback.format_exc(),
        disk_full=isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT},
    )


def _reason(error: BaseException) -> Reason:
    import torch

    from recipes.training import DivergedError

    if isinstance(error, DivergedError):
        return Reason.DIVERGED
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or NO_MEMORY in str(error):
        return Reason.OOM
    return Reason.ERROR


def _export(spec: ExportSpec) -> Exported:
    """Write the ONNX file of an attempt's best weights and compare it with PyTorch on validation images."""
    from recipes.export import export_onnx, inputs_of, parity
    from recipes.model_file import restore_model

    folder = Path(spec.folder)
    model, info, metadata = restore_model(recipes.load(spec.recipe), folder / BEST)
    path = folder / ONNX_FILE
    about = {"study": spec.study, "trial": str(spec.trial), "recipe": spec.recipe, "epoch": str(metadata["epoch"])}
    export_onnx(model, info, path, about)
    images = data.load(dataset_of(spec.config)).val.first(NUM_PARITY_IMAGES)
    return Exported(
        trial=spec.trial,
        attempt=spec.attempt,
        file=ONNX_FILE,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        max_difference=parity(model, info, path, inputs_of(images)),
    )


class MessagePort:
    """A port of messages: jobs and decisions come in through `receive`, events go out through `send_message`."""

    def __init__(self, send_message: Callable[[dict[str, Any]], None]) -> None:
        self._send_message = send_message
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._decisions: queue.SimpleQueue[Decision] = queue.SimpleQueue()

    def receive(self, message: dict[str, Any]) -> None:
        """Sort a message of the parent."""
        if "decision" in message:
            self._decisions.put(message["decision"])
        else:
            self._jobs.put(decode(message))

    def send(self, event: Event) -> None:
        """Report an event."""
        self._send_message(encode(event))

    def decision(self) -> Decision:
        """Wait for the parent's answer."""
        return self._decisions.get()

    def work(self, do: Callable[[Job, Port], None] = run) -> NoReturn:
        """Do jobs as they come, for ever."""
        while True:
            do(self._jobs.get(), self)


def prepare(name: str) -> None:
    """Get a process ready for jobs; `name` is shown by `ps` and `top`, where the system can."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
    importlib.import_module("recipes.loop")  # torch, before the first job asks for it


def serve(channel: Channel, name: str) -> None:
    """Do jobs until the parent ends."""
    port = MessagePort(channel.send)
    serve_parent(channel, port.receive)
    prepare(name)
    port.work()


if __name__ == "__main__":
    serve(Channel.inherited(int(sys.argv[-1])), sys.argv[1])

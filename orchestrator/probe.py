"""How large some configurations are, how long an epoch takes and how much memory: tried for seconds, nothing is kept.

Each is tried in a process of its own, with the threads and the device that a worker would have: one that hangs or takes
all memory ends with its process, and none finds memory that an earlier one left. `python -m orchestrator.probe FD`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import queue
import random
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import recipes
from orchestrator.executors.local import environment
from orchestrator.processes import Channel, Pinger, serve_parent, spawn
from orchestrator.space import draw
from orchestrator.study import feasible
from recipes import data
from recipes.config import dataset_of, make

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from orchestrator.executors import Slot
    from orchestrator.forkserver import ForkServer
    from orchestrator.space import Scalar
    from orchestrator.study import Study
    from recipes.config import DatasetConfig
    from recipes.data import Dataset

START_SECONDS = 60.0  # to import torch, which is not counted
NUM_EPOCHS = 3  # the first is slower than the others
MAX_STEPS = 20  # an epoch of more steps is tried on a part of the images
LOAD_SECONDS = 2.0  # that trainings run at once, at least, so that many short epochs are counted
MANY_EPOCHS = 10_000  # so that a training does not end while others are measured beside it


@dataclass(frozen=True, kw_only=True)
class Part:
    """The images that epochs are tried on: all of them (`limit` 0), or so many; `factor` makes of theirs all."""

    limit: int = 0
    factor: float = 1.0
    missing_bytes: int = 0  # of images that a training would hold in memory besides


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What was measured of one configuration; what could not be is None, and `complaint` says why."""

    num_epochs: int = 0
    epoch_seconds: float | None = None
    memory_bytes: float | None = None
    num_parameters: float | None = None
    flops: float | None = None
    complaint: str = ""


def drawn_of(study: Study, count: int) -> list[dict[str, Scalar]]:
    """Possible configurations from anywhere in the space, at most so many."""
    rng, possible = random.Random(study.seed), feasible(study)
    draws = (draw(study.space, rng) for _ in range(10 * count))
    return [params for params in draws if not possible.complaint(params)][:count]


def part_of(study: Study, configs: Sequence[Mapping[str, Any]]) -> Part:
    """How many of the images make `MAX_STEPS` steps of the largest batch; all, where they are no more."""
    largest = max((int(config.get("batch_size", 0)) for config in configs), default=0)
    if "data" not in study.fixed or "limit" not in study.fixed or not largest:
        return Part()
    whole = data.load(dataset_of(study.fixed))
    share = MAX_STEPS * largest / len(whole.train.labels)
    if share >= 1:
        return Part()
    limit = math.ceil(share * sum(len(split.labels) for split in (whole.train, whole.val, whole.test)))
    try:
        part = data.load(dataset_of({**study.fixed, "limit": limit}))
    except data.DataError:  # too few for all classes
        return Part()
    missing = _held_bytes(whole, study) - _held_bytes(part, study)
    return Part(limit=limit, factor=len(whole.train.labels) / len(part.train.labels), missing_bytes=missing)


def _held_bytes(dataset: Dataset, study: Study) -> int:
    """What images take up where they stay in memory; of a stream, and where workers bring them, next to nothing."""
    from recipes.data.stream import StreamSplit

    if isinstance(dataset.train, StreamSplit) or study.fixed.get("loading") == "workers":
        return 0
    return dataset.train.num_bytes + dataset.val.num_bytes


def sizes(
    recipe: str, configs: Sequence[Mapping[str, Any]], slot: Slot, server: ForkServer | None, seconds: float
) -> list[dict[str, float]]:
    """`num_parameters` and `flops` of these models, or of the first of them that can be built in so many seconds.

    Nothing of a recipe that has no `build_model` or brings its own data.
    """
    job = {"do": "sizes", "recipe": recipe, "configs": [_placed(config, slot) for config in configs]}
    return [answer for answer in _answers(job, slot, server, seconds) if "complaint" not in answer]


def epochs(recipe: str, config: Mapping[str, Any], slot: Slot, server: ForkServer | None, seconds: float) -> Tried:
    """Train a configuration for up to three epochs or so many seconds; the time is that of those after the first."""
    found, taken = Tried(), list[float]()
    job = {"do": "epochs", "recipe": recipe, "configs": [_placed(config, slot)]}
    with contextlib.closing(_answers(job, slot, server, seconds)) as answers:
        for answer in answers:
            if "complaint" in answer:
                return replace(found, complaint=answer["complaint"])
            taken.append(answer["seconds"])
            found = _with(found, taken, answer["metrics"])
            if len(taken) == NUM_EPOCHS:
                break
    return found if taken else replace(found, complaint=f"no epoch ended in {seconds:.2g} s")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What `count` trainings of one configuration did at once on one device; `complaint` says why it is not known."""

    count: int
    epochs_per_second: float = 0.0  # of all together
    free_bytes: float = math.inf  # the least that the device had left
    complaint: str = ""


def load(
    recipe: str, config: Mapping[str, Any], slot: Slot, count: int, server: ForkServer | None, seconds: float
) -> Load:
    """Train a configuration `count` times at once on the slot's device, for some epochs or so many seconds."""
    config = {**config, "epochs": MANY_EPOCHS} if "epochs" in config else config
    job = {"do": "epochs", "recipe": recipe, "configs": [_placed(config, slot)]}
    runs = [_Run() for _ in range(count)]
    enough = threading.Event()

    def train(run: _Run) -> None:
        with contextlib.closing(_answers(job, slot, server, seconds)) as answers:
            for answer in answers:
                run.take(answer)
                if run.complaint or _is_enough(runs):
                    enough.set()
                if enough.is_set():
                    return

    threads = [threading.Thread(target=train, args=(run,), name="load") for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _loaded(runs, seconds)


class _Run:
    """The epochs of one of several trainings, each as when it ended, how long it took and what memory was free."""

    def __init__(self) -> None:
        self.epochs: list[tuple[float, float, float]] = []
        self.complaint = ""

    def take(self, answer: Mapping[str, Any]) -> None:
        self.complaint = answer.get("complaint", "")
        if not self.complaint:
            self.epochs.append((time.monotonic(), answer["seconds"], answer["free_bytes"]))

    def since(self, begin: float) -> list[tuple[float, float, float]]:
        """Its epochs that lay wholly behind this time."""
        return [epoch for epoch in self.epochs if epoch[0] - epoch[1] >= begin]


def _begin(runs: Sequence[_Run]) -> float:
    """When all were under way: each has ended its first epoch, which is slower than the others."""
    return max(run.epochs[0][0] if run.epochs else math.inf for run in runs)


def _is_enough(runs: Sequence[_Run]) -> bool:
    begin = _begin(runs)
    return time.monotonic() >= begin + LOAD_SECONDS and all(len(run.since(begin)) >= NUM_EPOCHS - 1 for run in runs)


def _loaded(runs: Sequence[_Run], seconds: float) -> Load:
    if complaint := next((run.complaint for run in runs if run.complaint), ""):
        return Load(count=len(runs), complaint=complaint)
    begin = _begin(runs)
    counted = [run.since(begin) for run in runs]
    if not all(counted):
        return Load(count=len(runs), complaint=f"no epoch of all at once ended in {seconds:.2g} s")
    return Load(
        count=len(runs),
        epochs_per_second=sum(len(epochs) / sum(took for _, took, _ in epochs) for epochs in counted),
        free_bytes=min(free for epochs in counted for _, _, free in epochs),
    )


def _with(found: Tried, taken: Sequence[float], metrics: Mapping[str, float]) -> Tried:
    later = taken[1:] or taken
    return replace(
        found,
        num_epochs=len(taken),
        epoch_seconds=sum(later) / len(later),
        memory_bytes=metrics.get("peak_memory_bytes", found.memory_bytes),
        num_parameters=metrics.get("num_parameters", found.num_parameters),  # told in the first epoch
        flops=metrics.get("flops", found.flops),
    )


def _placed(config: Mapping[str, Any], slot: Slot) -> dict[str, Any]:
    return {**config, "device": "cuda"} if slot.devices and "device" in config else {**config}


def _answers(
    job: Mapping[str, Any], slot: Slot, server: ForkServer | None, seconds: float
) -> Generator[dict[str, Any]]:
    """What a child says within so many seconds of its start; it ends with this generator."""
    log, chosen = Path(os.devnull), environment(slot)
    if server is not None:
        child: Any = server.fork(__name__, log=log, environment=chosen)
    else:
        child = spawn(__name__, [], log=log, environment=chosen)
    pinger = Pinger()
    pinger.add(child.channel)
    try:
        child.channel.send({**job, "threads": slot.threads})
        deadline = time.monotonic() + START_SECONDS
        while child.channel.wait(max(0.0, deadline - time.monotonic())):
            messages = child.channel.receive()
            if messages is None:
                yield {"complaint": "its process died"}
                return
            for message in messages:
                if "done" in message:
                    return
                if "started" in message:
                    deadline = time.monotonic() + seconds
                else:
                    yield message
    finally:
        pinger.stop()
        child.kill()


# -- in the child


def serve(channel: Channel) -> None:
    """Do one job and end."""
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    serve_parent(channel, jobs.put)
    importlib.import_module("recipes.loop")  # torch
    job = jobs.get()
    channel.send({"started": True})
    for message in _messages(job):
        channel.send(message)
    channel.send({"done": True})


def _messages(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    import torch

    torch.set_num_threads(job["threads"])
    recipe = recipes.load(job["recipe"])
    if job["do"] == "sizes":
        load = functools.cache(data.load)
        yield from (_size(recipe, config, load) for config in job["configs"])
        return
    try:
        for epoch in recipe.module.train(make(recipe.config_type, job["configs"][0])):
            yield {"seconds": epoch.seconds, "metrics": epoch.metrics, "free_bytes": _free_bytes()}
    except BaseException as error:  # whatever a recipe does, a plan says so
        first = (str(error).strip().splitlines() or ["no message"])[0]
        yield {"complaint": f"{type(error).__name__}: {first}"}


def _free_bytes() -> int:
    """What the device in use has left, whoever takes the rest."""
    import torch

    from recipes.memory import free_bytes

    uses_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return free_bytes(torch.device("cuda" if uses_gpu else "cpu"))


def _size(
    recipe: recipes.Recipe, flat: Mapping[str, Any], load: Callable[[DatasetConfig], Dataset]
) -> dict[str, float]:
    import torch

    from recipes.flops import size

    if "data" not in flat or not hasattr(recipe.module, "build_model"):
        return {}
    info = load(dataset_of(flat)).info
    try:
        model = recipe.module.build_model(make(recipe.config_type, flat), info)
    except Exception:  # its training will say why
        return {}
    return size(model, torch.zeros(1, info.channels, info.height, info.width))


if __name__ == "__main__":
    serve(Channel.inherited(int(sys.argv[-1])))

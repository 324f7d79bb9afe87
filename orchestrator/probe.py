"""How large some configurations are, how long an epoch takes and how much memory: tried for seconds, nothing is kept.

Each is tried in a process of its own, with the threads and the device that a worker would have: one that hangs or takes
all memory ends with its process, and none finds memory that an earlier one left. `python -m orchestrator.probe FD`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import queue
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import recipes
from orchestrator.executors.local import environment
from orchestrator.processes import Channel, Pinger, serve_parent, spawn
from recipes import data
from recipes.config import dataset_of, make

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from orchestrator.executors import Slot
    from orchestrator.forkserver import ForkServer
    from recipes.config import DatasetConfig
    from recipes.data import Dataset

START_SECONDS = 60.0  # to import torch, which is not counted
NUM_EPOCHS = 3  # the first is slower than the others


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What was measured of one configuration; what could not be is None, and `complaint` says why."""

    num_epochs: int = 0
    epoch_seconds: float | None = None
    memory_bytes: float | None = None
    num_parameters: float | None = None
    flops: float | None = None
    complaint: str = ""


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
            yield {"seconds": epoch.seconds, "metrics": epoch.metrics}
    except BaseException as error:  # whatever a recipe does, a plan says so
        first = (str(error).strip().splitlines() or ["no message"])[0]
        yield {"complaint": f"{type(error).__name__}: {first}"}


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

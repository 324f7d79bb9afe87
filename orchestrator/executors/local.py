"""Jobs in kept worker processes on this machine: one or several a GPU, else one a core, or as a trial takes devices."""

from __future__ import annotations

import itertools
import logging
import os
import selectors
import signal
import sys
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UnavailableError
from orchestrator.executors import UNDER_WAY, Event, ExportSpec, Slot, TrialFailed, TrialSpec, decode, encode
from orchestrator.forkserver import Forked, ForkServer
from orchestrator.processes import Child, Pinger, spawn
from orchestrator.tables import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from orchestrator.executors import Decision, Job

logger = logging.getLogger(__name__)

MAX_IDLE_DEATHS = 3  # a worker that dies this often with no job on it will never start
WORKER = "orchestrator.worker"
FOR_EXPORTS = "recipes.export:warm_up"


def num_cores() -> int:
    """The cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def plan_slots(
    num_workers: int, gpus: Sequence[str], *, num_useful: int, num_devices: int = 1, per_gpu: int = 1
) -> list[Slot]:
    """Lay out slots: as many as asked for, else (0) `per_gpu` times the GPUs, or as there are cores, for `num_devices`
    in each.

    There are no more than are useful. Cores are shared out in threads, GPUs in turn.
    """
    count = min(num_workers or max(1, (len(gpus) * per_gpu or num_cores()) // num_devices), num_useful)
    threads = max(1, num_cores() // count)
    turn = itertools.cycle(gpus)
    return [
        Slot(name=f"worker-{index}", threads=threads, devices=tuple(itertools.islice(turn, num_devices)))
        for index in range(count)
    ]


def visible_gpus(device: str) -> list[str]:
    """The GPUs that `device` (auto, cpu, mps, cuda or cuda:N) allows, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    if device not in {"auto", "cuda"} and not device.startswith("cuda:"):
        return []
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
    return [gpus[int(device.removeprefix("cuda:"))]] if ":" in device else gpus


class LocalExecutor:
    """Worker processes, one a slot, kept over trials and started again when they die.

    With a `server` they are forked from it. `exports` says that trained models will be exported: a second server is
    then made ready for it, since the first export of a process takes five times as long as the next.
    """

    def __init__(
        self, slots: Sequence[Slot], logs: Path, server: ForkServer | None = None, *, exports: bool = False
    ) -> None:
        self.slots = slots
        self._logs = logs
        self._server = server
        self._pinger = Pinger()
        self._selector = selectors.DefaultSelector()
        self._children: dict[str, Child | Forked] = {}
        self._exporters: set[str] = set()  # slots whose worker is as quick to export as can be
        self._jobs: dict[str, Job] = {}
        self._idle_deaths = 0
        for slot in slots:
            self._start(slot, server)
        self._export_server = ForkServer(FOR_EXPORTS, source=server) if server and exports else None

    def free_slots(self) -> list[Slot]:
        """The slots with no job on them."""
        return [slot for slot in self.slots if slot.name not in self._jobs]

    def submit(self, job: Job, slot: Slot) -> None:
        """Send `job` to the slot's worker; one that still starts takes it up as soon as it can."""
        assert slot.name not in self._jobs, f"slot {slot.name} is busy"
        if isinstance(job, ExportSpec) and self._export_server is not None and slot.name not in self._exporters:
            self._change_to_exporter(slot, self._export_server)
        if isinstance(job, TrialSpec) and job.alone:
            self._renew_idle(slot)
        self._jobs[slot.name] = job
        self._children[slot.name].channel.send(encode(job))

    def events(self, timeout_seconds: float) -> list[Event]:
        """What workers reported, and which were lost; a lost worker is started again."""
        found: list[Event] = []
        for key, _ in self._selector.select(timeout_seconds):
            slot: Slot = key.data
            messages = self._children[slot.name].channel.receive()
            if messages is None:
                found += self._lost(slot)
            else:
                found += [self._received(slot, message) for message in messages]
        return found

    def decide(self, trial: int, decision: Decision) -> None:
        """Answer the worker that trains `trial`; if it was lost meanwhile, nobody waits."""
        for name, job in self._jobs.items():
            if job.trial == trial:
                self._children[name].channel.send({"decision": decision})

    def close(self) -> None:
        """End all workers and their descendants at once."""
        self._pinger.stop()
        for child in self._children.values():
            child.kill()
        if self._export_server is not None:
            self._export_server.close()
        self._selector.close()

    def _start(self, slot: Slot, server: ForkServer | None) -> None:
        self._take(slot, self._made(slot, server))

    def _made(self, slot: Slot, server: ForkServer | None) -> Child | Forked:
        log, chosen = self._logs / f"{slot.name}.log", environment(slot)
        if server is not None:
            return server.fork(WORKER, [slot.name], log=log, environment=chosen)
        return spawn(WORKER, [slot.name], log=log, environment=chosen)

    def _take(self, slot: Slot, child: Child | Forked) -> None:
        self._children[slot.name] = child
        self._selector.register(child.channel, selectors.EVENT_READ, slot)
        self._pinger.add(child.channel)

    def _change_to_exporter(self, slot: Slot, server: ForkServer) -> None:
        """Give the slot a worker whose exports are quick; where there is none, its own will do."""
        try:
            exporter = self._made(slot, server)
        except UnavailableError as error:
            logger.warning("exports start slowly: %s", error)
        else:
            self._end(slot)
            self._take(slot, exporter)
        self._exporters.add(slot.name)

    def _renew_idle(self, slot: Slot) -> None:
        """Begin the slot's worker and others on its device anew, so that nothing of earlier jobs takes up memory."""
        for other in self.free_slots():
            if not set(other.memories).isdisjoint(slot.memories):
                self._end(other)
                self._start(other, self._server)

    def _end(self, slot: Slot) -> int | None:
        """End a slot's worker, if it has not ended yet, and say how it did."""
        child = self._children[slot.name]
        self._selector.unregister(child.channel)
        child.kill()
        self._exporters.discard(slot.name)
        return child.exit_code()

    def _received(self, slot: Slot, message: dict[str, Any]) -> Event:
        event: Event = decode(message)
        if not isinstance(event, UNDER_WAY):
            del self._jobs[slot.name]
        return event

    def _lost(self, slot: Slot) -> list[Event]:
        how = _how_it_ended(self._end(slot))
        job = self._jobs.pop(slot.name, None)
        if job is None:
            self._idle_deaths += 1
            if self._idle_deaths >= MAX_IDLE_DEATHS:
                raise UnavailableError(f"{slot.name} {how} at its start; see {self._logs / slot.name}.log")
        self._start(slot, self._server)
        if job is None:
            return []
        return [TrialFailed(trial=job.trial, attempt=job.attempt, reason=Reason.LOST, message=f"{slot.name} {how}")]


def environment(slot: Slot) -> dict[str, str]:
    """What must be set before torch is imported."""
    threads = str(slot.threads)
    chosen = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return {**chosen, "CUDA_VISIBLE_DEVICES": ",".join(slot.devices)} if slot.devices else chosen


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "was lost"
    if code == -signal.SIGKILL:
        return "was killed (signal 9), by hand or because memory ran out"
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"

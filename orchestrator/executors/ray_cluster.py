"""Jobs on a Ray cluster: each worker is an actor on one of its nodes, which may come and go.

The nodes are looked at again every few seconds: a new one gets workers, those of a lost one are lost with it, and a
worker that died is started again where there is room. Ray restarts nothing by itself.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UnavailableError, UsageError
from orchestrator.executors import (
    UNDER_WAY,
    Event,
    Exported,
    Slot,
    TrialEnded,
    TrialFailed,
    TrialPaused,
    decode,
    encode,
)
from orchestrator.executors.local import MAX_IDLE_DEATHS, environment
from orchestrator.executors.ray_worker import NUM_THREADS, Proof, RayWorker
from orchestrator.processes import PING_SECONDS
from orchestrator.tables import Reason

os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = os.environ.get("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")  # prints nothing of its own

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from orchestrator.depot import Depot
    from orchestrator.executors import Decision, Job

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 8.0
LOOK_SECONDS = 5.0  # between two looks at the nodes
CLOSE_SECONDS = 1.5
PATIENCE_SECONDS = 60.0  # without a worker, before a user is told
CONNECT = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.shutdown()"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster, and what Ray may use of it."""

    host: str
    cpus: int
    gpus: int

    def room(self, threads: int, gpus: int) -> int:
        """For how many workers of so many threads and GPUs there is room."""
        return min(self.cpus // threads, self.gpus // gpus) if gpus else self.cpus // threads


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each worker has, and how many there are at most."""

    threads: int
    gpus: int
    limit: int


def plan(nodes: Iterable[Node], num_workers: int, *, num_useful: int, device: str, num_devices: int) -> Plan:
    """Lay out workers: as many as asked for, else (0) as there are GPUs, or CPUs, for `num_devices` in each.

    There are no more than are useful, nor than there is room for. CPUs are shared out in threads: as many as leave
    room for that number.

    Raises:
        UsageError: `device` is one of a single machine.
        UnavailableError: no node has room for a worker.
    """
    nodes = list(nodes)
    if device.startswith("cuda:"):
        raise UsageError(f"device={device} is a GPU of one machine; with executor=ray say device=cuda")
    uses_gpus = device == "cuda" or (device == "auto" and any(node.gpus for node in nodes))
    gpus = num_devices if uses_gpus else 0
    most = sum(node.room(1 if uses_gpus else num_devices, gpus) for node in nodes)
    if not most:
        raise UnavailableError(f"no node of the Ray cluster has {num_devices} {'GPU' if uses_gpus else 'CPU'}(s)")
    limit = min(num_workers or sys.maxsize, num_useful)
    threads = (t for t in range(max(node.cpus for node in nodes), 0, -1) if _room(nodes, t, gpus) >= min(limit, most))
    return Plan(threads=next(threads, 1), gpus=gpus, limit=limit)


def additions(room: Mapping[str, int], taken: Mapping[str, int], limit: int) -> list[str]:
    """The nodes to start further workers on, one each, until there are `limit`: always the one with the fewest."""
    count = Counter(taken)
    found: list[str] = []
    while count.total() < limit and (free := [node for node in room if count[node] < room[node]]):
        node = min(free, key=lambda node: count[node])
        count[node] += 1
        found.append(node)
    return found


def _room(nodes: Sequence[Node], threads: int, gpus: int) -> int:
    return sum(node.room(threads, gpus) for node in nodes)


@dataclass(kw_only=True)
class _Worker:
    slot: Slot
    node: str  # its id
    actor: Any
    answer: Any  # to the call it is at: `ready`, then `events` over and over
    ready: bool = False
    job: Job | None = None


class RayExecutor:
    """Workers on all nodes of the cluster at `address` (host:port, or auto), with one folder `home` or a `depot`.

    With a depot `home` is a folder of each node, for prepared data and logs; what ended is fetched into the driver's.

    Raises:
        UsageError: this device cannot be had on a cluster.
        UnavailableError: no cluster answers there, it has no room for a worker at all, or nothing goes into the depot.
    """

    def __init__(
        self,
        address: str,
        num_workers: int,
        *,
        home: Path,
        logs: Path,
        num_useful: int,
        device: str = "auto",
        num_devices: int = 1,
        depot: Depot | None = None,
    ) -> None:
        self._workers: dict[str, _Worker] = {}
        self._home, self._logs, self._depot = home, logs, depot
        self._left_out: set[str] = set()  # nodes that cannot run a worker
        self._idle_deaths = 0
        self._idle_since = time.monotonic()
        self._connected = _connect(address)
        nodes = _nodes()
        self._first_nodes = set(nodes)
        self._plan = plan(nodes.values(), num_workers, num_useful=num_useful, device=device, num_devices=num_devices)
        self._proof = _prove(home, depot)
        logs.mkdir(parents=True, exist_ok=True)
        self._closed = threading.Event()
        threading.Thread(target=self._ping, name="pinger", daemon=True).start()
        self._look()

    @property
    def slots(self) -> list[Slot]:
        """All slots; of one whose worker still starts, the GPUs are not known yet."""
        return [worker.slot for worker in self._workers.values()]

    def free_slots(self) -> list[Slot]:
        """The slots whose worker has started and has no job."""
        return [worker.slot for worker in self._workers.values() if worker.ready and worker.job is None]

    def submit(self, job: Job, slot: Slot) -> None:
        """Send `job` to the slot's worker; if that died meanwhile, the job is lost."""
        worker = self._workers[slot.name]
        assert worker.job is None, f"slot {slot.name} is busy"
        worker.job = job
        worker.actor.receive.remote(encode(job))

    def events(self, timeout_seconds: float) -> list[Event]:
        """What workers reported, and which were lost with their jobs."""
        found = self._look() if time.monotonic() >= self._next_look else []
        answers = {worker.answer: worker for worker in self._workers.values()}
        if not answers:
            time.sleep(timeout_seconds)
            return found
        done, _ = ray.wait(list(answers), timeout=0 if found else timeout_seconds)
        if done:
            done, _ = ray.wait(list(answers), num_returns=len(answers), timeout=0)
        for answer in done:
            found += self._answered(answers[answer])
        return found

    def decide(self, trial: int, decision: Decision) -> None:
        """Answer the worker that trains `trial`; if it was lost meanwhile, nobody waits."""
        for worker in self._workers.values():
            if worker.job is not None and worker.job.trial == trial:
                worker.actor.receive.remote({"decision": decision})

    def close(self) -> None:
        """End all workers at once, and leave the cluster."""
        self._closed.set()
        for worker in self._workers.values():
            ray.kill(worker.actor)
        if answers := [worker.answer for worker in self._workers.values()]:  # which come, as errors, when they are dead
            ray.wait(answers, num_returns=len(answers), timeout=CLOSE_SECONDS)
        self._workers.clear()
        if self._depot is None:
            Path(self._proof.path).unlink(missing_ok=True)
        if self._connected:
            ray.shutdown()

    # -- nodes

    def _look(self) -> list[Event]:
        """Give up the workers of nodes that are gone, and start those for which there is room."""
        self._next_look = time.monotonic() + LOOK_SECONDS
        nodes = {name: node for name, node in _nodes().items() if name not in self._left_out}
        gone = [worker for worker in self._workers.values() if worker.node not in nodes]
        found = [event for worker in gone for event in self._given_up(worker, "was lost with its node")]
        room = {name: node.room(self._plan.threads, self._plan.gpus) for name, node in nodes.items()}
        taken = Counter(worker.node for worker in self._workers.values())
        for name in additions(room, taken, self._plan.limit):
            self._start(name, nodes[name])
        self._tell_if_idle()
        return found

    def _tell_if_idle(self) -> None:
        """Say so, once each time, when there has been no worker for long."""
        if any(worker.ready for worker in self._workers.values()):
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > PATIENCE_SECONDS:
            self._idle_since = math.inf
            logger.warning("no worker can start, all nodes are taken or gone (see `ray status`); this waits for one")

    def _start(self, node: str, of: Node) -> None:
        free = (f"worker-{number}" for number in itertools.count())
        name = next(name for name in free if name not in self._workers)
        slot = Slot(name=name, threads=self._plan.threads, host=of.host)
        remote: Any = ray.remote(RayWorker)
        actor = remote.options(
            num_cpus=slot.threads,
            num_gpus=self._plan.gpus,
            max_restarts=0,
            max_concurrency=NUM_THREADS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            runtime_env={"env_vars": self._environment(slot)},
        ).remote()
        answer = actor.ready.remote(name, str(self._log(slot)), self._proof, self._depot)
        self._workers[name] = _Worker(slot=slot, node=node, actor=actor, answer=answer)

    def _environment(self, slot: Slot) -> dict[str, str]:
        """What must be set before torch is imported. Ray itself says which GPUs, but hides none where it gives none."""
        hidden = {} if self._plan.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        return {**environment(slot), **hidden, "ORCH_HOME": str(self._home)}

    def _log(self, slot: Slot) -> Path:
        return self._logs / f"{slot.name}.log"

    # -- workers

    def _answered(self, worker: _Worker) -> list[Event]:
        try:
            answer = ray.get(worker.answer)
        except RayTaskError as error:
            return self._refused(worker, error)
        except RayError as error:
            return self._lost(worker, error)
        worker.answer = worker.actor.events.remote(PING_SECONDS)
        if worker.ready:
            return [self._received(worker, message) for message in answer]
        worker.ready = True
        worker.slot = replace(worker.slot, devices=answer)
        return []

    def _received(self, worker: _Worker, message: dict[str, Any]) -> Event:
        event: Event = decode(message)
        if not isinstance(event, UNDER_WAY):
            job, worker.job = worker.job, None
            if self._depot is not None and job is not None:
                return _fetched(event, job, self._depot)
        return event

    def _refused(self, worker: _Worker, error: RayTaskError) -> list[Event]:
        """A node on which workers do not start is left out, unless it was there from the start."""
        cause = f"{type(error.cause).__name__}: {error.cause}".splitlines()[0]
        where = f"with {self._depot.url}" if self._depot else f"in {self._home}"
        needed = "to reach it" if self._depot else "the same ORCH_HOME on one shared file system"
        complaint = f"node {worker.slot.host} cannot work {where} ({cause}); all nodes need {needed}"
        if worker.node in self._first_nodes:
            raise UnavailableError(complaint)
        logger.warning("%s; it is left out", complaint)
        self._left_out.add(worker.node)
        return self._given_up(worker, "did not start")

    def _lost(self, worker: _Worker, error: RayError) -> list[Event]:
        has_node = worker.node in _nodes()
        how = _how_it_ended(error) if has_node else "was lost with its node"
        if has_node and worker.job is None and not isinstance(error, ActorUnavailableError):
            self._idle_deaths += 1
            if self._idle_deaths >= MAX_IDLE_DEATHS:
                where = f"{worker.slot.name} on {worker.slot.host}"
                raise UnavailableError(f"{where} {how} with no job on it; see {self._log(worker.slot)}")
        self._next_look = time.monotonic()
        return self._given_up(worker, how)

    def _given_up(self, worker: _Worker, how: str) -> list[Event]:
        ray.kill(worker.actor)
        del self._workers[worker.slot.name]
        job, where = worker.job, f"{worker.slot.name} on {worker.slot.host}"
        if job is None:
            return []
        return [TrialFailed(trial=job.trial, attempt=job.attempt, reason=Reason.LOST, message=f"{where} {how}")]

    def _ping(self) -> None:
        """Let workers know that their driver is awake, also while it waits for a database."""
        while not self._closed.wait(PING_SECONDS):
            for worker in list(self._workers.values()):  # which changes meanwhile
                if worker.ready:
                    with contextlib.suppress(RayError):
                        worker.actor.receive.remote({"ping": 1})


def _connect(address: str) -> bool:
    """Connect to the cluster; False if this process is connected already.

    Ray tries for minutes, and ends the process when it gives up: so another process tries first.
    """
    if ray.is_initialized():
        return False
    _try(address)
    former = signal.getsignal(signal.SIGTERM)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, former)  # Ray has put one of its own there, by which nothing is saved
    return True


def _try(address: str) -> None:
    command = [sys.executable, "-c", CONNECT, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CONNECT_SECONDS)
    except subprocess.TimeoutExpired as error:
        said = (error.stderr or b"").decode(errors="replace")
        reason = "the token is not its own" if "InvalidAuthToken" in said else f"no answer in {CONNECT_SECONDS:.0f} s"
    else:
        if done.returncode == 0:
            return
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    start = "start one with `ray start --head`, and run this on one of its nodes"
    raise UnavailableError(f"no Ray cluster can be used at address={address} ({reason}); {start}")


def _nodes() -> dict[str, Node]:
    """The nodes that are alive, by Ray's ids."""
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {
        node["NodeID"]: Node(
            host=node["NodeManagerHostname"],
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
        )
        for node in known
        if node["Alive"]
    }


def _fetched(event: Event, job: Job, depot: Depot) -> Event:
    """The event, with the files that it stands for in the driver's folder; that they do not come is a failure."""
    match event:
        case TrialEnded() | TrialPaused():
            hashes = event.manifest
        case Exported(error=""):
            hashes = {event.file: event.sha256}
        case _:
            return event
    try:
        Path(job.folder).mkdir(parents=True, exist_ok=True)
        depot.fetch_files(job.folder, Path(job.folder), hashes)
    except OSError as error:
        message = f"its files did not come: {error}".splitlines()[0]
        if isinstance(event, Exported):
            return replace(event, error=message)
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        trial, attempt = event.trial, event.attempt
        return TrialFailed(trial=trial, attempt=attempt, reason=Reason.LOST, message=message, disk_full=full)
    return event


def _prove(home: Path, depot: Depot | None) -> Proof:
    if depot is not None:
        proof = Proof(path="shared", text=uuid.uuid4().hex)
        try:
            depot.write(proof.path, proof.text)
        except OSError as error:
            raise UnavailableError(f"nothing can be written to {depot.url} ({error})") from error
        return proof
    proof = Proof(path=str(home / f".ray-{uuid.uuid4().hex}"), text=uuid.uuid4().hex)
    Path(proof.path).write_text(proof.text)
    return proof


def _how_it_ended(error: RayError) -> str:
    if isinstance(error, ActorUnavailableError):
        return "cannot be reached any more"
    last = str(error).strip().splitlines()[-1]
    # All that Ray knows of a process that is gone is that its connection closed.
    return "was killed or crashed" if "connection error code" in last else f"ended: {last[:200]}"

"""One trial on several devices: `fit` starts a process for each, tells them what to train, and passes on their epochs.

The ranks are started by torch's elastic launcher, which never starts one again here. Each loads the recipe and calls
its `train`; in there `fit` finds itself in a process group and trains its share (see `recipes.ranks`). A rank has a
Unix socket to whoever called `fit` first, and speaks JSON lines on it, one message at a time each way. The first rank
reports an epoch when its checkpoint is durable; then all wait for the word to go on, so that the generator is as lazy
as it is with one device. A rank ends when its socket closes, however its parent ended.

On the CPU this is for trying it out: two processes exchange at every step, and at every batch norm twice. Seconds of
the fastest epoch on the digits, 2 cores of an AMD EPYC that had other work, torch 2.15, 1 to 4 runs of 6 to 12 epochs:

=================== =================== ==================== ==========================
recipe              1 process, 1 thread 1 process, 2 threads 2 processes, 1 thread each
=================== =================== ==================== ==========================
mlp, batch_size=64  0.024               0.024                0.18
cnn, batch_size=64  0.067               0.069                0.32
vit, batch_size=64  0.40                0.44                 0.70
vit, batch_size=256 0.37                0.31                 0.27
vit, batch_size=512 0.38                0.22                 0.30
=================== =================== ==================== ==========================

Before its first epoch a trial waits 4 s for its ranks, up to 12 where others want the cores as well; half of it is two
imports of torch one after another, another second is `torch._dynamo`, which DistributedDataParallel imports.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self, cast

from recipes.config import TrainConfig, flatten, make

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

    from recipes.loop import Attempt, Epoch

POLL_SECONDS = 0.1
SETTLE_SECONDS = 0.3  # a rank whose peer died complains before the death is seen
END_SECONDS = 5.0


class Link:
    """One end of a socket that JSON lines are spoken on, one at a time each way."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lines = connection.makefile("rb")

    def fileno(self) -> int:
        """The socket's descriptor, to wait for."""
        return self._socket.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; that a peer is gone is noticed when its answer is waited for."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message, or None if the peer is gone."""
        try:
            line = self._lines.readline()
        except OSError:
            return None
        return dict(json.loads(line)) if line.endswith(b"\n") else None

    def close(self) -> None:
        """Close it; the peer notices."""
        self._lines.close()
        self._socket.close()


# -- in the process that `fit` was called in


def epochs(config: TrainConfig, attempt: Attempt | None, recipe: str) -> Iterator[dict[str, Any]]:
    """Train on `devices` devices; yields number, metrics, seconds and is_best of each epoch once it is durable.

    Raises:
        ValueError: devices that are not there, or a folder that already holds another training.
        DivergedError, torch.OutOfMemoryError, MemoryError, OSError: as with one device.
        RuntimeError: anything else in a rank, or one that was lost.
    """
    from recipes import checkpoint
    from recipes.device import check_devices

    check_devices(config.fit.device, config.fit.devices)
    folder = None if attempt is None else str(attempt.folder.resolve())
    if attempt is not None:
        checkpoint.take_up(attempt.folder, attempt.resume_from)
        if config.fit.pictures:
            _bring_events(attempt)
    reference = str(Path(recipe).resolve()) if recipe.endswith(".py") else recipe
    try:
        with _Group(config.fit.devices) as group:
            group.tell(
                {
                    "recipe": reference,
                    "config": flatten(cast("BaseModel", config)),
                    "folder": folder,
                    "threads": group.threads,
                }
            )
            while (epoch := group.next_epoch()) is not None:
                yield epoch
                group.tell({})
    finally:
        if attempt is not None and attempt.folder.exists():
            checkpoint.finish(attempt.folder, attempt.folder)  # a rank that was ended did not come to it


def _bring_events(attempt: Attempt) -> None:
    """Copy an earlier attempt's TensorBoard events to where the first rank goes on with them."""
    from recipes.event_files import FOLDER  # which only `pictures=true` brings in

    if attempt.resume_from is not None and attempt.resume_from.resolve() != attempt.folder.resolve():
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(attempt.resume_from / FOLDER, attempt.folder / FOLDER, dirs_exist_ok=True)


class _Group:
    """The rank processes, from their start to their end."""

    def __init__(self, count: int) -> None:
        import torch

        self.threads = max(1, torch.get_num_threads() // count)
        self._count = count
        self._links: dict[int, Link] = {}
        self._pids: dict[int, int] = {}
        self._num_ended = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            with tempfile.TemporaryDirectory(prefix="orch-") as folder, socket.socket(socket.AF_UNIX) as listener:
                address = str(Path(folder) / "ranks")
                listener.bind(address)
                listener.listen(self._count)
                listener.settimeout(POLL_SECONDS)
                self._launcher = subprocess.Popen(
                    _command(self._count, address), stdin=subprocess.DEVNULL, env=_environment(self.threads)
                )
                while len(self._links) < self._count:
                    self._accept(listener)
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _accept(self, listener: socket.socket) -> None:
        self._check_launcher()
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            connection.settimeout(None)
            link = Link(connection)
            if hello := link.receive():
                self._links[hello["rank"]], self._pids[hello["rank"]] = link, hello["pid"]

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message to all ranks."""
        for link in self._links.values():
            link.send(message)

    def next_epoch(self) -> dict[str, Any] | None:
        """Wait for the next epoch, or None if all ranks have ended.

        Raises:
            Exception: what a rank raised, or that one was lost.
        """
        while self._num_ended < self._count:
            messages = self._receive(POLL_SECONDS)
            if any("error" in message for message in messages.values()):
                self._receive(SETTLE_SECONDS)
            for rank, message in messages.items():
                if "error" in message:
                    raise _raised(message["error"], rank)
            self._num_ended += sum("ended" in message for message in messages.values())
            for message in messages.values():
                if "epoch" in message:
                    return dict(message["epoch"])
            if not messages:
                self._check_launcher()
        return None

    def _receive(self, seconds: float) -> dict[int, dict[str, Any]]:
        """Rank -> its message, of those that have one by then."""
        ready: list[object] = list(wait(list(self._links.values()), seconds))  # type: ignore[arg-type]
        found = {rank: link.receive() for rank, link in self._links.items() if link in ready}
        if lost := [rank for rank, message in found.items() if message is None]:
            raise RuntimeError(
                f"rank {lost[0]} of {self._count} (process {self._pids[lost[0]]}) was lost: killed, or out of memory"
            )
        return {rank: message for rank, message in found.items() if message is not None}

    def _check_launcher(self) -> None:
        code = self._launcher.poll()
        if code is not None:
            raise RuntimeError(f"the launcher of {self._count} ranks ended with code {code}; its output says why")

    def _end(self) -> None:
        """End the launcher, all ranks and their descendants at once, and wait until they are gone."""
        if hasattr(self, "_launcher"):
            self._launcher.kill()
            self._launcher.wait()
        for pid in self._pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # the launcher gave it a session of its own
        deadline = time.monotonic() + END_SECONDS
        for link in self._links.values():
            while wait([link], max(0.0, deadline - time.monotonic())) and link.receive():  # type: ignore[list-item]
                pass
            link.close()


def _command(count: int, address: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return [*launcher, "--nproc-per-node", str(count), "--max-restarts", "0", "-m", __name__, address]


def _environment(threads: int) -> dict[str, str]:
    """What must be set before torch is imported; gloo's ranks are on this machine and need no other network."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    chosen = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**({"GLOO_SOCKET_IFNAME": loopback} if loopback else {}), **os.environ, **chosen}


def _raised(told: dict[str, Any], rank: int) -> Exception:
    """The exception that a rank told of, of the kind that it would be with one device."""
    import torch

    from recipes.training import DivergedError

    kinds = {kind.__name__: kind for kind in (DivergedError, torch.OutOfMemoryError, MemoryError, ValueError)}
    error: Exception
    if told["errno"]:
        error = OSError(told["errno"], told["message"])
    elif told["kind"] in kinds:
        error = kinds[told["kind"]](told["message"])
    else:
        error = RuntimeError(f"rank {rank}: {told['name']}: {told['message']}")
    error.add_note(f"In rank {rank}:\n{told['traceback']}")
    return error


# -- in a rank

_parent: Link | None = None
_answers: SimpleQueue[dict[str, Any]] = SimpleQueue()


def is_rank() -> bool:
    """Whether this process is one of those that train a trial together."""
    return _parent is not None


def reported(found: Iterator[Epoch]) -> Iterator[Epoch]:
    """Tell the parent of each epoch, and go on when it does."""
    assert _parent is not None, "only ranks have one"
    for epoch in found:
        if epoch.saved is not None:
            epoch.saved.result()
        if os.environ["RANK"] == "0":
            about = {"number": epoch.number, "metrics": epoch.metrics, "seconds": epoch.seconds}
            _parent.send({"epoch": {**about, "is_best": epoch.is_best}})
        _answers.get()
        yield epoch


def serve(address: str) -> None:
    """Be a rank: connect before torch is imported, so that this process ends with its parent from the start."""
    global _parent
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        sys.exit("the process that wanted this rank is gone")
    _parent = Link(connection)
    # The launcher would end the others when one dies, and nobody could tell which was the first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_listen, args=(_parent,), name="parent", daemon=True).start()
    _parent.send({"rank": int(os.environ["RANK"]), "pid": os.getpid()})
    try:
        _train(_answers.get())
    except BaseException as error:  # sys.exit() in a recipe too
        traceback.print_exc()
        _parent.send({"error": _described(error)})
    else:
        _parent.send({"ended": True})
    threading.Event().wait()  # peers would fail if this one left first; the parent ends all


def _listen(parent: Link) -> None:
    while (message := parent.receive()) is not None:
        _answers.put(message)
    os.killpg(0, signal.SIGKILL)  # not sys.exit: nothing may hold up the end, and descendants go too


def _train(job: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    import recipes
    from recipes.device import choose_device
    from recipes.loop import Attempt

    torch.set_num_threads(job["threads"])
    recipe = recipes.load(job["recipe"])
    config = make(recipe.config_type, job["config"])
    if choose_device(config.fit.device).type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl")  # gloo for what is on the CPU, such as checkpoints
    else:
        dist.init_process_group("gloo")
    folder = Path(job["folder"]) if job["folder"] else None
    attempt = Attempt(folder=folder, resume_from=folder) if folder else None  # the parent brought it there
    for _ in recipe.module.train(config, attempt):
        pass


def _described(error: BaseException) -> dict[str, Any]:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    named = [name for name in ("DivergedError", "OutOfMemoryError", "MemoryError", "ValueError") if name in kinds]
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return {
        "name": type(error).__name__,
        "kind": named[0] if named else "",
        "errno": error.errno if isinstance(error, OSError) else None,
        "message": (message.strip().splitlines() or ["no message"])[0],
        "traceback": "".join(traceback.format_exception(error)),
    }


if __name__ == "__main__":
    # The loop imports this module by its name, and must find the same parent there.
    from recipes import distributed

    distributed.serve(sys.argv[1])

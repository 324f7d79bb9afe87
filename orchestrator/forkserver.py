"""Children that are forked from a process which has imported what they need: torch is imported once, not once a worker.

`python -m orchestrator.forkserver NAME… FD` resolves the names (`module` is imported, `module:function` called), then
forks on request. It has one thread and touches no device, which makes forking safe: neither a lock of another thread
nor a CUDA context is copied. It collects its dead only when it is asked to, so that no other process can get their
number meanwhile.

macOS's own libraries do not get over a fork without an exec, so that `ForkServer` is for Linux only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pkgutil
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UnavailableError
from orchestrator.processes import KILL_SECONDS, LEASE_SECONDS, Channel, Pinger, connected, spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from orchestrator.processes import Child

# The pools of OpenMP and BLAS would be threads; a child sets its own number of them.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
ANSWER_SECONDS = 60.0  # from a slow disk, torch takes long to import
# What every worker would import for itself by the end of its first epoch.
FOR_WORKERS = ("orchestrator.worker", "recipes.loop", "recipes.data", "torch.utils.flop_counter")


class Forked:
    """A child that a server forked: its process id, and the channel to it."""

    def __init__(self, pid: int, channel: Channel, server: ForkServer) -> None:
        self.pid = pid
        self.channel = channel
        self._server = server

    def kill(self) -> None:
        """End the child and all its descendants at once."""
        if self.channel.fileno() < 0:
            return
        for end in (os.killpg, os.kill):  # it may not have got as far as its own session
            with contextlib.suppress(ProcessLookupError):
                end(self.pid, signal.SIGKILL)
        self.channel.finish(KILL_SECONDS)
        self.channel.close()

    def exit_code(self) -> int | None:
        """How it ended, minus the signal's number if by one; None if the server is gone that knew."""
        return self._server.collect(self.pid)


class ForkServer:
    """The parent's end of a server; one that died is started again when it is needed."""

    def __init__(self, *names: str, source: ForkServer | None = None) -> None:
        """Start a server that resolves `names`, itself forked from `source` if there is one."""
        self._names, self._source = names, source
        self._lock = threading.Lock()
        self._pinger = Pinger()
        self._has_children = False
        self._server = self._start()

    def fork(self, module: str, arguments: Sequence[str] = (), *, log: Path, environment: Mapping[str, str]) -> Forked:
        """Fork a child that runs `module.serve(channel, *arguments)` in a session of its own, its output in `log`.

        Raises:
            UnavailableError: no server starts.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        request = {"fork": module, "arguments": [*arguments], "log": str(log), "environment": {**environment}}
        ours, theirs = connected()
        with theirs:
            answer = self._ask(request, theirs.fileno())
            if answer is None:
                self._server.kill()
                self._server = self._start()
                answer = self._ask(request, theirs.fileno())
        if answer is None:
            ours.close()
            raise UnavailableError(f"the process that workers are forked from does not start ({' '.join(self._names)})")
        self._has_children = True
        return Forked(int(answer["pid"]), ours, self)

    def collect(self, pid: int) -> int | None:
        """The exit code of a child that is dead or about to be."""
        answer = self._ask({"collect": pid})
        return None if answer is None else answer["code"]

    def close(self) -> None:
        """End the server, which first collects those of its children that are dead; the others live on."""
        self._pinger.stop()
        if self._has_children:  # else it may still import, which nobody wants to wait for
            self._server.channel.finish(KILL_SECONDS)
        self._server.kill()

    def _start(self) -> Child | Forked:
        log = Path(os.devnull)
        if self._source is not None:
            server: Child | Forked = self._source.fork(__name__, self._names, log=log, environment={})
        else:
            server = spawn(__name__, self._names, log=log, environment=ENVIRONMENT)
        self._pinger.add(server.channel)
        return server

    def _ask(self, request: Mapping[str, Any], *descriptors: int) -> dict[str, Any] | None:
        """The answer to a request, or None from a server that is dead or hangs."""
        channel = self._server.channel
        with self._lock:
            if channel.fileno() < 0:
                return None
            channel.send(request, descriptors)
            if not channel.wait(ANSWER_SECONDS):
                self._server.kill()  # its answer would be taken for that to the next request
                return None
            answers = channel.receive()
        return answers[0] if answers else None


@contextlib.contextmanager
def worker_server() -> Iterator[ForkServer | None]:
    """A server that workers can be forked from; None where a fork is not safe."""
    if sys.platform != "linux":
        yield None
        return
    server = ForkServer(*FOR_WORKERS)
    try:
        yield server
    finally:
        server.close()


# -- in the server


def serve(channel: Channel, *names: str) -> None:
    """Resolve the names, then fork and collect until the parent ends."""
    gc.disable()  # what is imported stays, and looking through it again and again takes a tenth of the time
    for name in names:
        found = pkgutil.resolve_name(name)
        if callable(found):
            found()
    gc.freeze()  # nor need children look through it, which would also copy its pages
    answers: dict[str, Callable[[Any, list[int]], dict[str, Any]]] = {
        "fork": lambda request, descriptors: {"pid": _fork(request, descriptors, channel)},
        "collect": lambda request, _: {"code": _collect(request["collect"])},
    }
    while channel.wait(LEASE_SECONDS):
        messages, descriptors = channel.receive_with_descriptors()
        if messages is None:
            break
        for message in messages:
            for kind, answer in answers.items():
                if kind in message:
                    channel.send(answer(message, descriptors))
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    os._exit(0)  # Python would take torch apart for half a second


def _fork(request: Mapping[str, Any], descriptors: list[int], channel: Channel) -> int:
    (descriptor,) = descriptors
    pid = os.fork()
    if pid:
        os.close(descriptor)
        return pid
    code = 1
    try:
        channel.close()
        own = Channel.inherited(descriptor)  # open to the very end: the parent kills what has closed it
        code = _become(request, own)
    finally:  # never back into the server's own frames
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become(request: Mapping[str, Any], channel: Channel) -> int:
    """Run the child and return its exit code."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for output in (sys.stdout, sys.stderr):
        os.dup2(log, output.fileno())
    os.environ.update(request["environment"])
    gc.enable()
    try:
        importlib.import_module(request["fork"]).serve(channel, *request["arguments"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _collect(pid: int) -> int | None:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # of a server before this one
        return None


if __name__ == "__main__":
    serve(Channel.inherited(int(sys.argv[-1])), *sys.argv[1:-1])

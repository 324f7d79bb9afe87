"""Requests a second and their times: `orch serve` against MLflow's own model server, the same model and the same JSON.

Both serve the same promoted version of a digits CNN (`mlflow models serve --env-manager local`), each as one process,
one after the other in turn, on the same two cores as the client. The client keeps 1, 8 and 32 connections busy, each
with one request at a time, and looks at status and length of each answer alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import machine
import numpy as np
import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NUM_CORES = 2
MIN_REPEATS = 3
AT_ONCE = (1, 8, 32)
LIMIT = 3.0
WARM_SECONDS = 1.0
START_SECONDS = 120.0
MODEL = "models:/served@champion"
SIDES = ("orch serve", "mlflow")
PATHS = {"orch serve": "/predict", "mlflow": "/invocations", "nothing": "/"}
# What the client can do: a server that reads a request and says two letters, on uvicorn as the two sides are.
NOTHING = """
import sys, uvicorn
async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
uvicorn.run(app, port=int(sys.argv[1]), lifespan="off", access_log=False)
"""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one side did for so many clients at once."""

    side: str
    at_once: int
    per_second: float
    p50: float  # milliseconds
    p99: float
    others: float  # share of the cores' time that other processes used meanwhile


@dataclass(eq=False)
class _Connection:
    """A connection with one request under way."""

    socket: socket.socket
    sent_at: float = 0.0
    received: bytearray = field(default_factory=bytearray)

    def send(self, request: bytes) -> None:
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Read what is there; whether the answer is whole."""
        self.received += self.socket.recv(1 << 16)
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self.received[:end]).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self.received) < end + 4 + length:
            return False
        if head[9:12] != b"200":
            raise SystemExit(f"unexpected answer: {bytes(self.received[:500])!r}")
        self.received.clear()
        return True


def load(port: int, path: str, body: bytes, at_once: int, seconds: float) -> list[float]:
    """The time of each request that was sent after a warm-up and answered within so many seconds."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    times: list[float] = []
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as ready:
        begin = time.perf_counter() + WARM_SECONDS
        for _ in range(at_once):
            opened = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(opened)
            ready.register(opened, selectors.EVENT_READ, connection)
            connection.send(request)
        while True:
            for key, _ in ready.select(timeout=60):
                if key.data.receive():
                    now = time.perf_counter()
                    if now > begin + seconds:
                        return times
                    if key.data.sent_at >= begin:
                        times.append(now - key.data.sent_at)
                    key.data.send(request)


def measure(side: str, process: psutil.Process, port: int, body: bytes, at_once: int, seconds: float) -> Timing:
    """Keep a server busy."""
    own, busy, since = _core_seconds(process), machine.busy_seconds(), time.perf_counter()
    times = sorted(load(port, PATHS[side], body, at_once, seconds))
    spent = time.perf_counter() - since
    others = machine.busy_seconds() - busy - (_core_seconds(process) - own)
    return Timing(
        side=side,
        at_once=at_once,
        per_second=len(times) / seconds,
        p50=1000 * statistics.median(times),
        p99=1000 * times[int(0.99 * len(times))],
        others=max(0.0, others) / (spent * NUM_CORES),
    )


@contextlib.contextmanager
def running(side: str, home: Path) -> Iterator[tuple[psutil.Process, int]]:
    """A server that answers, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    mlflow = [str(machine.ORCH.with_name("mlflow")), "models", "serve", "-m", MODEL, "--env-manager", "local"]
    command = {
        "orch serve": [str(machine.ORCH), "serve", MODEL, "--port", str(port)],
        "mlflow": [*mlflow, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        "nothing": [sys.executable, "-c", NOTHING, str(port)],
    }[side]
    with (
        (home / f"{side}.log").open("wb") as log,
        subprocess.Popen(command, env=_environment(home), stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            _wait(port, process)
            yield psutil.Process(process.pid), port
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def promoted(home: Path) -> None:
    """Make the state folder of a promoted digits CNN."""
    for command in (["train", "recipe=cnn", "study=served", "epochs=3", "device=cpu"], ["promote"]):
        subprocess.run([str(machine.ORCH), *command], env=_environment(home), check=True, stdout=subprocess.DEVNULL)


def check(answers: dict[str, Any]) -> None:
    """See that both gave the same figures."""
    ours, theirs = answers.values()
    for name, values in theirs["predictions"].items():
        np.testing.assert_allclose(ours["predictions"][name], values, atol=1e-5)


def show(timings: Sequence[Timing]) -> bool:
    """Print a line for each side and number of clients, and the ratios of medians; whether all limits are kept."""
    print(f"\nat once  {'side':11} {'n':>2}  {'requests a second':24} {'p50, ms':20} p99, ms")
    kept = True
    for at_once in AT_ONCE:
        middle: dict[str, tuple[float, float]] = {}
        for side in SIDES:
            own = [timing for timing in timings if (timing.side, timing.at_once) == (side, at_once)]
            rate = [timing.per_second for timing in own]
            half, most = [timing.p50 for timing in own], [timing.p99 for timing in own]
            columns = f"{machine.spread(rate, 0):24} {machine.spread(half, 2):20} {machine.spread(most, 2)}"
            print(f"{at_once:7}  {side:11} {len(own):2}  {columns}")
            middle[side] = statistics.median(rate), statistics.median(most)
        (rate_of_ours, p99_of_ours), (rate_of_peer, p99_of_peer) = (middle[side] for side in SIDES)
        ratio = rate_of_ours / rate_of_peer
        kept = kept and ratio >= LIMIT and p99_of_ours <= p99_of_peer
        print(f"{'':9}ratio of medians: {ratio:.1f} (limit {LIMIT:.0f}); p99 {p99_of_ours / p99_of_peer:.2f} of its")
    disturbed = max(timing.others for timing in timings)
    if disturbed > machine.QUIET:
        print(f"the machine was not quiet: others took up to {disturbed:.0%} of the cores")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="runs of each side, at least 3")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run and number of clients")
    parser.add_argument("--pictures", type=int, default=1, help="in each request")
    arguments = parser.parse_args()
    if arguments.repeat < MIN_REPEATS:
        parser.error(f"--repeat must be at least {MIN_REPEATS}")
    num_cores = machine.use_cores(NUM_CORES)
    print(machine.hardware(num_cores))
    print(machine.versions("mlflow", "onnxruntime", "fastapi", "uvicorn", "httptools", "uvloop"))
    pictures = np.random.default_rng(0).integers(0, 256, (arguments.pictures, 8, 8, 1))
    body = json.dumps({"inputs": {"images": pictures.tolist()}}).encode()
    print(f"{arguments.pictures} picture(s) of 8 x 8 in {len(body):,} bytes of JSON", flush=True)
    home = Path(tempfile.mkdtemp(prefix="serving-"))
    promoted(home)
    timings: list[Timing] = []
    for turn in range(arguments.repeat):
        answers: dict[str, Any] = {}
        for side in SIDES[:: -1 if turn % 2 else 1]:  # neither is always the first
            with running(side, home) as (process, port):
                answers[side] = _asked(port, side, body)
                for at_once in AT_ONCE:
                    timing = measure(side, process, port, body, at_once, arguments.seconds)
                    timings.append(timing)
                    figures = f"{timing.per_second:6.0f} a second, p50 {timing.p50:7.2f}, p99 {timing.p99:7.2f} ms"
                    print(f"{side:11} {at_once:2} at once: {figures}, others {timing.others:.0%}", flush=True)
        check({side: answers[side] for side in SIDES})
    with running("nothing", home) as (process, port):
        for at_once in AT_ONCE:
            alone = measure("nothing", process, port, body, at_once, arguments.seconds)
            print(f"the client, of a server that does nothing: {at_once:2} at once: {alone.per_second:.0f} a second")
    shutil.rmtree(home)
    if not show(timings):
        sys.exit(1)


def _environment(home: Path) -> dict[str, str]:
    return {
        **machine.environment(),
        "ORCH_HOME": str(home),
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
        "PATH": f"{machine.ORCH.parent}{os.pathsep}{os.environ.get('PATH', '')}",  # where `mlflow` looks for uvicorn
    }


def _asked(port: int, side: str, body: bytes) -> Any:
    request = Request(f"http://127.0.0.1:{port}{PATHS[side]}", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return
        time.sleep(0.2)
    raise SystemExit("a server did not start; see its log")


def _core_seconds(process: psutil.Process) -> float:
    """Of the client, and of a server with what it started."""
    used = 0.0
    for each in (psutil.Process(), process, *process.children(recursive=True)):
        times = each.cpu_times()
        used += times.user + times.system
    return used


if __name__ == "__main__":
    main()

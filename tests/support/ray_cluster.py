"""A real Ray cluster on this machine: a node is `ray start` in a session of its own, which can be killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.support.orch import alive, kill, wait_until
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RAY = str(Path(sys.executable).with_name("ray"))
MEMORY = ["--object-store-memory", "100000000"]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}  # who connects must have the same


class Cluster:
    """One head, and nodes that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **TOKEN}
        self.nodes: list[subprocess.Popen[bytes]] = []
        port = free_ports()
        self.address = f"127.0.0.1:{port}"
        self._ports = ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        self.environment.pop("RAY_ADDRESS", None)
        self._first = ["--head", "--port", str(port), "--ray-client-server-port", str(free_ports())]
        self._first += ["--include-dashboard", "false", "--temp-dir", str(folder)]

    def add(self, cpus: int, before: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start a node, the head first, and wait until it is one of the cluster; `before` is what starts it."""
        where = ["--address", self.address] if self.nodes else self._first
        log = self.folder / f"node-{len(self.nodes)}.log"
        command = [*before, RAY, "start", "--block", *where, "--num-cpus", str(cpus), *MEMORY, *self._ports]
        with log.open("wb") as output:
            node = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=output, cwd=self.folder, start_new_session=True
            )
        self.nodes.append(node)
        wait_until(lambda: "Ray runtime started" in log.read_text() or node.poll() is not None, what=f"{log} to tell")
        assert node.poll() is None, log.read_text()
        return node

    def kill(self, node: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """End all of a node's processes at once, and return them."""
        found = processes(node)
        for process in found:
            kill(process)
        node.wait(10)
        return found

    def actors(self) -> list[psutil.Process]:
        """The processes of all actors on the cluster."""
        return [process for node in self.nodes for process in actors(node)]

    def close(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            self.kill(node)


def processes(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A node's living processes, the actors first, lest they notice."""
    with contextlib.suppress(psutil.NoSuchProcess):
        whole = psutil.Process(node.pid)
        return [process for process in [*reversed(whole.children(recursive=True)), whole] if alive(process)]
    return []


def actors(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of a node's actors."""
    found = []
    for process in processes(node):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any("ray::RayWorker" in part for part in process.cmdline()):  # Ray writes there what is being called
                found.append(process)
    return found


@contextlib.contextmanager
def running(*cpus: int) -> Iterator[Cluster]:
    """A cluster of a node for each number of CPUs."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # its sockets' paths must be short
    cluster = Cluster(folder)
    try:
        for number in cpus:
            cluster.add(number)
        yield cluster
    finally:
        cluster.close()
        time.sleep(0.2)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def with_token() -> Iterator[None]:
    """Let this process connect to such clusters; Ray reads the variables once, when it is imported."""
    from ray._private.authentication_test_utils import reset_auth_token_state

    former = {name: os.environ.get(name) for name in TOKEN}
    os.environ.update(TOKEN)
    reset_auth_token_state()
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        reset_auth_token_state()

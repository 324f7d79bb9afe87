"""A real `mlflow server` on a loopback port, with artifacts of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.request import urlopen

from tests.support.orch import wait_until
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


def answers(address: str) -> bool:
    """Whether there is a server that answers."""
    with contextlib.suppress(OSError), urlopen(address, timeout=5):
        return True
    return False


@contextlib.contextmanager
def tracking_server(
    folder: Path, store: str = "", *, options: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A server over a database, or one in `folder`, until the end; its address."""
    port = free_ports()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store or f"sqlite:///{folder / 'server.db'}"]
    command += options or ["--artifacts-destination", str(folder / "server-artifacts")]
    whole = {**os.environ, **(environment or {})}
    with subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=whole
    ) as server:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), 180, "the tracking server")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)

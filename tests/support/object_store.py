"""A server that speaks S3, moto's, on a loopback port."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.orch import wait_until
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The server's address and its process, until the end."""
    port, log = free_ports(), folder / "moto.log"
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until(lambda: b"Running on" in log.read_bytes(), what="the S3 server")
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.kill()
        server.wait()

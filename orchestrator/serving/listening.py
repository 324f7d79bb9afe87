"""A port that is taken before anything is loaded, and a server on it that ends well."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp

BACKLOG = 2048
STOP_SECONDS = 5.0  # beyond the time that a request may take


@contextlib.contextmanager
def until_stopped() -> Iterator[None]:
    """Until Ctrl-C or SIGTERM, which end this quietly."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        UsageError: the port is in use, or the address is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host} is no address: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or one just closed seems in use
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} is in use; pass --port N, or 0 for a free one") from error
        raise UsageError(f"--host {host} --port {port} cannot be listened on: {error}") from error
    return listener


def run(app: ASGIApp, listener: socket.socket, *, seconds: float) -> None:
    """Answer requests, each in at most so many seconds, until a signal; those under way are answered first."""
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        ws="none",
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(seconds + STOP_SECONDS),
    )
    uvicorn.Server(config).run([listener])

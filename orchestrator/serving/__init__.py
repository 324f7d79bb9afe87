"""`orch serve`: a promoted model behind HTTP, by FastAPI and onnxruntime, in one process.

The port is taken before anything is loaded, and answers once the model is there. A server on loopback is open to this
machine; any other needs a token. Either answers to its own names only: a page on the web can make a browser call a
server under a name of that page's own (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from orchestrator.errors import UsageError
from orchestrator.serving.app import make_app
from orchestrator.serving.following import Following
from orchestrator.serving.measures import Measures

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.serving.following import Loaded
    from orchestrator.serving.options import Options
    from orchestrator.settings import Settings

BACKLOG = 2048
STOP_SECONDS = 5.0  # beyond the time that a request may take


def serve(settings: Settings, uri: str, options: Options, on_ready: Callable[[Loaded, str], None]) -> None:
    """Serve what `uri` stands for until Ctrl-C or SIGTERM; requests under way are answered first.

    `on_ready` is told the version and the address.

    Raises:
        UsageError: the address cannot be listened on, or as of `models.find`.
        UnavailableError: MLflow cannot be reached.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt), _listening(options) as listener:
            measures = Measures()
            following = Following(settings, uri, measures, threads=options.threads)
            if options.watch and following.can_move:
                following.watch(options.watch)
            port = int(listener.getsockname()[1])
            _tell_on_stderr()
            on_ready(
                following.loaded, f"http://{options.host if ':' not in options.host else f'[{options.host}]'}:{port}"
            )
            server = uvicorn.Server(
                uvicorn.Config(
                    make_app(following, measures, options, port),
                    http="httptools",
                    loop="uvloop",
                    ws="none",
                    backlog=BACKLOG,
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    proxy_headers=False,
                    timeout_graceful_shutdown=int(options.timeout + STOP_SECONDS),
                )
            )
            gc.collect()
            gc.freeze()  # a million objects of imports, which no collection need look at while a request waits
            server.run([listener])
    finally:
        signal.signal(signal.SIGTERM, before)


def _listening(options: Options) -> socket.socket:
    """A socket that listens where the options say.

    Raises:
        UsageError: the port is in use, or the address is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {options.host} is no address: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or one just closed seems in use
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {options.port} is in use; pass --port N, or 0 for a free one") from error
        raise UsageError(f"--host {options.host} --port {options.port} cannot be listened on: {error}") from error
    return listener


def _tell_on_stderr() -> None:
    logger = logging.getLogger(__name__)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False

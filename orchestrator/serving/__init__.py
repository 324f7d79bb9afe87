"""`orch serve`: a promoted model behind HTTP, by FastAPI and onnxruntime, in one process.

The port is taken before anything is loaded, and answers once the model is there. A server on loopback is open to this
machine; any other needs a token. Either answers to its own names only: a page on the web can make a browser call a
server under a name of that page's own (DNS rebinding).
"""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

from orchestrator.serving.app import make_app
from orchestrator.serving.following import Following
from orchestrator.serving.listening import listen, run, until_stopped
from orchestrator.serving.measures import Measures

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.serving.following import Loaded
    from orchestrator.serving.options import Options
    from orchestrator.settings import Settings


def serve(settings: Settings, uri: str, options: Options, on_ready: Callable[[Loaded, str], None]) -> None:
    """Serve what `uri` stands for until Ctrl-C or SIGTERM; requests under way are answered first.

    `on_ready` is told the version and the address.

    Raises:
        UsageError: the address cannot be listened on, or as of `models.find`.
        UnavailableError: MLflow cannot be reached.
    """
    with until_stopped(), listen(options.host, options.port) as listener:
        measures = Measures()
        following = Following(settings, uri, measures, threads=options.threads)
        if options.watch and following.can_move:
            following.watch(options.watch)
        port = int(listener.getsockname()[1])
        _tell_on_stderr()
        host = f"[{options.host}]" if ":" in options.host else options.host
        on_ready(following.loaded, f"http://{host}:{port}")
        gc.collect()
        gc.freeze()  # a million objects of imports, which no collection need look at while a request waits
        run(make_app(following, measures, options, port), listener, seconds=options.timeout)


def _tell_on_stderr() -> None:
    logger = logging.getLogger(__name__)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False

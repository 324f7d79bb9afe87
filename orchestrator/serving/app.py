"""The pages of `orch serve`: `/predict`, `/health`, `/ready`, `/metrics`, `/docs`.

What every request passes first is `_Guard`: whose name it was sent to, and whether it has the token. A prediction goes
from there to `Service.predict`, since the ways through FastAPI's application cost as much as a small model's answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import swagger_ui_bundle  # type: ignore[import-untyped]
from fastapi import FastAPI
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from orchestrator.errors import OrchError, UsageError
from orchestrator.executors.local import num_cores
from orchestrator.serving.api import DESCRIPTION, PAGE, PAGE_POLICY, PAGE_SCRIPT
from orchestrator.serving.batching import Batcher, FullError
from orchestrator.serving.measures import CONTENT_TYPE
from orchestrator.serving.names import Names
from orchestrator.serving.payloads import RequestError, dumped, of_pictures, of_tensor, read_json, read_pictures
from orchestrator.serving.waking import Waking

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from numpy.typing import NDArray
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from orchestrator.serving.batching import Answer
    from orchestrator.serving.following import Following
    from orchestrator.serving.measures import Measures
    from orchestrator.serving.options import Options

JSON = "application/json"
FORM = "multipart/form-data"
PICTURES = ("image/png", "image/jpeg", "application/octet-stream")
# Above so many bytes JSON is read on a thread, so that others' requests are taken meanwhile.
QUICKLY_READ = 65_536
RETRY_SECONDS = 1
# What may be seen without the token; `/health` says less then.
OPEN = ("/health", "/ready", "/docs", "/openapi.json")


class Service:
    """What the pages do."""

    def __init__(self, following: Following, measures: Measures, options: Options) -> None:
        self._following, self._measures, self._options = following, measures, options
        self._threads = ThreadPoolExecutor(num_cores(), "read")
        self._waking = Waking()
        self._num_in_flight = 0
        self._had_company = False  # the latest request
        measures.in_flight.set_function(lambda: self._num_in_flight)

    @contextlib.asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """While the application runs."""
        self._batcher = Batcher(self._following, self._measures, max_batch=self._options.max_batch)
        yield
        self._batcher.close()
        self._threads.shutdown(wait=False)

    async def predict(self, request: Request) -> Response:
        """Answer a request within its time, or say why not."""
        if self._is_full:
            return _full(f"{self._num_in_flight} requests are under way")
        since = time.perf_counter()
        self._num_in_flight += 1
        self._had_company = self._num_in_flight > 1
        try:
            async with asyncio.timeout(self._options.timeout):
                return Response(await self._predicted(request), media_type=JSON)
        except ClientDisconnect:
            return _refusal(400, "the client went away")
        except TimeoutError:
            return _refusal(504, f"no answer within {self._options.timeout:g} s")
        except FullError as error:
            return _full(str(error))
        except OrchError as error:
            return _refusal(_status(error), str(error))
        finally:
            self._num_in_flight -= 1
            self._measures.request_seconds.observe(time.perf_counter() - since)
            if not self._had_company:  # else the loop, asleep meanwhile, finds more requests for its next batch
                self._waking.stay()

    async def health(self, request: Request) -> Response:
        """What is served, and whether the version that the name stands for is."""
        following = self._following
        found: dict[str, Any] = {"status": "ok" if not following.problem else "behind"}
        if request.scope["may"]:
            loaded = following.loaded
            found |= {"model": loaded.name, "version": loaded.version, "sha256": loaded.sha256, "uri": following.uri}
            found |= {"problem": following.problem or None, "requests": self._num_in_flight}
        return JSONResponse(found)

    async def ready(self, _: Request) -> Response:
        """Whether a request would be taken now."""
        return _full("busy") if self._is_full else JSONResponse({"status": "ready"})

    async def metrics(self, _: Request) -> Response:
        """All figures, for Prometheus."""
        return Response(self._measures.text(), headers={"Content-Type": CONTENT_TYPE})

    @property
    def _is_full(self) -> bool:
        return self._num_in_flight >= self._options.queue

    async def _predicted(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (JSON, FORM, *PICTURES):
            raise RequestError(415, f"expected {JSON}, {FORM} or {', '.join(PICTURES)}; found {kind!r:.100}")
        body = await _body(request, self._options.max_body)
        model = self._following.loaded.model
        if kind == JSON:
            read = functools.partial(read_json, body, model, self._options)
            found = read() if len(body) <= QUICKLY_READ else await self._on_thread(read)
        else:
            files = [body] if kind in PICTURES else await _files(request, body, self._options.max_batch)
            found = await self._on_thread(functools.partial(read_pictures, files, model, self._options))
        if isinstance(found, np.ndarray):
            return of_tensor(await self._batcher.answer(found))
        return of_pictures(await self._answers(found))

    async def _answers(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Answer]:
        """An answer for each picture, all of one version."""
        while True:
            answers = await asyncio.gather(*(self._batcher.answer(picture[None]) for picture in pictures))
            if len({answer.by.version for answer in answers}) == 1:
                return answers

    async def _on_thread(self, read: functools.partial[Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, read)


def make_app(following: Following, measures: Measures, options: Options, port: int) -> ASGIApp:
    """The application, for a server that listens on `port`."""
    service = Service(following, measures, options)
    app = FastAPI(title="orch serve", lifespan=service.running, docs_url=None, redoc_url=None)
    app.openapi = lambda: DESCRIPTION  # type: ignore[method-assign]
    app.add_route("/predict", service.predict, methods=["POST"])
    app.add_route("/health", service.health)
    app.add_route("/ready", service.ready)
    app.add_route("/metrics", service.metrics)
    app.add_route("/docs", _docs)
    app.add_route("/docs/start.js", _docs_start)
    app.mount("/docs", StaticFiles(directory=Path(swagger_ui_bundle.swagger_ui_path)))
    return _Guard(app, service, measures, options, port)


class _Guard:
    """403 for a foreign Host or Origin (as of `dashboards.loopback_only`), 401 without the token; counts answers."""

    def __init__(self, app: ASGIApp, service: Service, measures: Measures, options: Options, port: int) -> None:
        self._app, self._service, self._measures = app, service, measures
        self._token = f"Bearer {options.token.get_secret_value()}".encode() if options.token else b""
        self._names = Names(options, port)
        self._paths = {"/predict", "/metrics", *OPEN}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"]

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                code = str(message["status"])
                self._measures.answered(path if path in self._paths else "other", code).inc()
            await send(message)

        headers = dict(scope["headers"])
        scope["may"] = not self._token or hmac.compare_digest(headers.get(b"authorization", b""), self._token)
        if not self._names.are_in(headers):
            answer = _refusal(403, "this server has another name; see orch serve --allow-host")
            return await answer(scope, receive, counted)
        if not scope["may"] and path not in OPEN and not path.startswith("/docs/"):
            answer = _refusal(401, "expected the header Authorization: Bearer TOKEN")
            answer.headers["WWW-Authenticate"] = "Bearer"
            return await answer(scope, receive, counted)
        if path == "/predict" and scope["method"] == "POST":
            answer = await self._service.predict(Request(scope, receive))
            return await answer(scope, receive, counted)
        return await self._app(scope, receive, counted)


async def _body(request: Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        RequestError: it is larger than `limit`, or says so.
    """
    too_large = RequestError(413, f"a body has at most {limit:,} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    parts, size, more = [], 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
        if (size := size + len(parts[-1])) > limit:
            raise too_large
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _files(request: Request, body: bytes, limit: int) -> list[bytes]:
    """The files of a form.

    Raises:
        RequestError: it is broken, or has too many.
    """

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, once(), max_files=limit, max_fields=limit, max_part_size=len(body))
    parser.spool_max_size = len(body) + 1  # the body is in memory already; nothing of it goes to the disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise RequestError(400, f"the form cannot be read: {getattr(error, 'message', error)}") from error
    return [await value.read() for _, value in form.multi_items() if not isinstance(value, str)]


def _status(error: OrchError) -> int:
    if isinstance(error, RequestError):
        return error.status
    return 422 if isinstance(error, UsageError) else 500


def _refusal(status: int, message: str) -> Response:
    return Response(dumped({"detail": message}), status, media_type=JSON)


def _full(reason: str) -> Response:
    answer = _refusal(503, f"too much to do: {reason}; try again")
    answer.headers["Retry-After"] = str(RETRY_SECONDS)
    return answer


async def _docs(_: Request) -> Response:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": PAGE_POLICY})


async def _docs_start(_: Request) -> Response:
    return Response(PAGE_SCRIPT, media_type="text/javascript")

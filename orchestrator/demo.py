"""`orch demo`: a page to drop a picture on, or to draw one, that shows what a promoted model makes of it.

By Gradio, on loopback, to loopback's names only. Gradio asks nothing of any other machine: its analytics are off, and
a policy tells the browser the same.
"""

from __future__ import annotations

import html
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI
from PIL import Image, ImageOps

from orchestrator import models
from orchestrator.errors import UsageError
from orchestrator.inference import Model, decode
from orchestrator.serving.listening import listen, run, until_stopped
from orchestrator.serving.names import Names
from orchestrator.serving.options import LOOPBACK, Options

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from orchestrator.settings import Settings

NUM_SHOWN = 5
CANVAS = 280  # pixels a side
BRUSH = 22
MARGIN = 0.08  # of a drawing's side, left free around it
MAX_FILE = "20mb"
SECONDS = 10.0  # for answers that are under way at the end
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)


def demo(settings: Settings, uri: str, port: int, on_ready: Callable[[str, str], None]) -> None:
    """Show the page until Ctrl-C or SIGTERM; `on_ready` is told what is shown and where.

    Raises:
        UsageError: Gradio is not installed, the port is in use, the model takes no pictures, or as of `models.find`.
        UnavailableError: MLflow cannot be reached.
    """
    with until_stopped(), listen(LOOPBACK, port) as listener, tempfile.TemporaryDirectory() as uploads:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads, "HF_HUB_OFFLINE": "1"}
        _check_installed()
        entry, path = models.find(settings, uri)
        model = Model(path)
        if model.columns:
            raise UsageError(f"{uri} takes {model.expected}; a demo shows pictures")
        title = f"{entry.model} version {entry.to_version}"
        port = int(listener.getsockname()[1])
        app = _Guard(_page(model, title), Names(Options(port=port), port))
        on_ready(title, f"http://{LOOPBACK}:{port}")
        run(app, listener, seconds=SECONDS)


def _check_installed() -> None:
    try:
        import gradio  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError as error:
        raise UsageError(f"orch demo needs Gradio: pip install 'orch[demo]' ({error})") from error


def _page(model: Model, title: str) -> ASGIApp:
    import gradio as gr

    def of_file(file: str | None) -> dict[str, float] | None:
        return None if file is None else _told(model, _decoded(file, model.num_channels))

    def of_drawing(drawn: dict[str, Any] | None, swapped: bool) -> dict[str, float] | None:
        picture = _drawing(drawn["composite"] if drawn else None, model.num_channels, swapped=swapped)
        return None if picture is None else _told(model, picture)

    how: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    with gr.Blocks(title="orch demo", analytics_enabled=False) as page:
        gr.HTML(f"<h1>{html.escape(title)}</h1>")
        with gr.Row():
            with gr.Column():
                with gr.Tab("Picture"):
                    file = gr.Image(
                        type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Drop a picture here"
                    )
                with gr.Tab("Draw"):
                    pen = gr.Brush(default_size=BRUSH, colors=["#000000"], color_mode="fixed")
                    drawing = gr.Sketchpad(
                        type="pil",
                        canvas_size=(CANVAS, CANVAS),
                        fixed_canvas=True,
                        brush=pen,
                        layers=False,
                        label="Choose the brush, and draw",
                    )
                    swapped = gr.Checkbox(label="The model knows dark ink on a light ground")
            numbers = model.task == "regression"  # which are no shares of 1
            found = gr.JSON(label="Answer") if numbers else gr.Label(num_top_classes=NUM_SHOWN, label="Answer")
        file.change(of_file, file, found, **how)
        gr.on([drawing.change, swapped.change], of_drawing, [drawing, swapped], found, **how)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    made: ASGIApp = gr.mount_gradio_app(
        app, page, "/", ssr_mode=False, max_file_size=MAX_FILE, footer_links=[], show_error=True
    )
    return made


def _told(model: Model, picture: NDArray[np.uint8]) -> dict[str, float]:
    """Class or label -> probability, or name -> number."""
    (answer,) = model.outputs(picture[None])[model.output_name]
    return dict(zip(model.class_names, map(float, answer), strict=True))


def _decoded(file: str, num_channels: int) -> NDArray[np.uint8]:
    import gradio as gr

    try:
        return decode(Path(file), num_channels)
    except UsageError as error:
        raise gr.Error(str(error).replace(file, Path(file).name), print_exception=False) from error


def _drawing(composite: Image.Image | None, num_channels: int, *, swapped: bool) -> NDArray[np.uint8] | None:
    """What was drawn as `(H, W, C)`, bright on dark, as scanned digits are, or the reverse; None for an empty canvas.

    Cut out and made square, since models see drawings that fill their picture.
    """
    if composite is None:
        return None
    ink = composite.getchannel("A") if composite.mode == "RGBA" else ImageOps.invert(composite.convert("L"))
    box = ink.getbbox()
    if box is None:
        return None
    side = round(max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * MARGIN))
    square = Image.new("L", (side, side))
    cut = ink.crop(box)
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    picture = np.asarray(ImageOps.invert(square) if swapped else square)
    return np.repeat(picture[..., None], num_channels, 2)


class _Guard:
    """403 for whoever calls the page by another name; and no request of it to other machines."""

    def __init__(self, app: ASGIApp, names: Names) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        if self._names.are_in(dict(scope["headers"])):
            return await self._app(scope, receive, guarded)
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
        return await send({"type": "http.response.body", "body": b"this page has another name\n"})

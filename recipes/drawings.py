"""Charts and grids of pictures as arrays `(H, W, 3)` uint8, by matplotlib without its global state.

Names come from outside: they are shown as the text that they are, and never as mathematics or markup.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

DOTS_PER_INCH = 100
NUM_COUNTED = 20  # classes up to which a confusion matrix has room for numbers
NUM_LABELLED = 34  # names that fit beside a larger one
NUM_LISTED = 25
NAME_LENGTH = 14
CELL_INCHES = 1.65
MAX_MARKED = 40  # epochs up to which each is a dot


def png(pixels: Pixels) -> bytes:
    """The same as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def curves(history: Sequence[dict[str, Any]]) -> Pixels:
    """Losses, and accuracies or what the task has in their place, by epoch; the best epoch is a dotted line."""
    figure = _figure(10, 4)
    best = max((epoch["number"] for epoch in history if epoch["is_best"]), default=None)
    for axes, kinds in zip(figure.subplots(1, 2), (("loss",), ("accuracy", "f1", "r2")), strict=True):
        for name in sorted({name for epoch in history for name in epoch["metrics"] if name.endswith(kinds)}):
            points = [(epoch["number"], epoch["metrics"][name]) for epoch in history if name in epoch["metrics"]]
            marker = "o" if len(points) <= MAX_MARKED else ""
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=name)
        if best is not None:
            axes.axvline(best, color="grey", linestyle=":", label=f"best epoch: {best}")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    return _drawn(figure)


def confusion(matrix: NDArray[np.int64], class_names: Sequence[str]) -> Pixels:
    """How many images of a class (row) were taken for which (column); of many classes the worst pairs are listed."""
    num_classes = len(class_names)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    is_small = num_classes <= NUM_COUNTED
    figure = (
        _figure(max(5.0, 2 + 0.36 * num_classes), max(4.5, 1.5 + 0.36 * num_classes)) if is_small else _figure(12, 8)
    )
    axes = figure.subplots() if is_small else figure.subplots(1, 2, width_ratios=[3, 1])[0]
    # A share's root: one image of a hundred taken for another class is to be seen too.
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    _name_ticks(axes, class_names)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    if is_small:
        _write_counts(axes, matrix, shares)
    else:
        _list_pairs(figure.axes[1], matrix, class_names)
    return _drawn(figure)


def grid(pictures: Sequence[Pixels], captions: Sequence[str], columns: int, message: str = "") -> Pixels:
    """Pictures `(C, H, W)` uint8, each with a caption of some lines below it; `message` if there is none."""
    if not pictures:
        figure = _figure(6, 2)
        figure.text(0.5, 0.5, message, ha="center", va="center", fontsize=14, parse_math=False)
        return _drawn(figure)
    columns = min(columns, len(pictures))
    rows, num_lines = math.ceil(len(pictures) / columns), 1 + max(caption.count("\n") for caption in captions)
    width, height = CELL_INCHES, CELL_INCHES + 0.14 * num_lines
    figure = _figure(width * columns, height * rows, layout=None)
    # One pair of axes in inches for all, which is drawn ten times as fast as one for each.
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False, xticks=[], yticks=[])
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(place, columns)
        centre, bottom = width * (column + 0.5), height * (rows - row - 1) + 0.14 * num_lines + 0.1
        _, tall, wide = (each * (CELL_INCHES - 0.2) / max(picture.shape[1:]) for each in picture.shape)
        colours: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255} if len(picture) == 1 else {}
        extent = (centre - wide / 2, centre + wide / 2, bottom, bottom + tall)
        axes.imshow(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0), extent=extent, **colours)
        axes.text(centre, bottom - 0.05, caption, ha="center", va="top", fontsize=8, parse_math=False)
    axes.set_xlim(0, width * columns)
    axes.set_ylim(0, height * rows)
    return _drawn(figure)


def short(name: str) -> str:
    """A name in one line that has room in a chart: of a long one both ends, for many differ in the last letters."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in name)
    half = NAME_LENGTH // 2
    return plain if len(plain) <= NAME_LENGTH else f"{plain[:half]}…{plain[1 - half :]}"


def _name_ticks(axes: Axes, class_names: Sequence[str]) -> None:
    """Names of the classes at both sides, as many as have room."""
    step = 1 if len(class_names) <= NUM_COUNTED else math.ceil(len(class_names) / NUM_LABELLED)
    names = [short(name) for name in class_names[::step]]
    ticks = range(0, len(class_names), step)
    turned = 90 if max(map(len, names)) > 3 or step > 1 or len(class_names) > NUM_COUNTED else 0
    axes.set_xticks(ticks, names, rotation=turned, fontsize=9, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=9, parse_math=False)


def _write_counts(axes: Axes, matrix: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for row, column in np.argwhere(matrix):
        colour = "white" if shares[row, column] > 0.3 else "black"
        axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", fontsize=9, color=colour)


def _list_pairs(axes: Axes, matrix: NDArray[np.int64], class_names: Sequence[str]) -> None:
    """The most frequent mistakes as text."""
    mistakes = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:NUM_LISTED]
    pairs = [divmod(int(place), len(matrix)) for place in order if mistakes.flat[place]]
    lines = [f"{matrix[pair]}  {short(class_names[pair[0]])}: {short(class_names[pair[1]])}" for pair in pairs]
    axes.set_axis_off()
    text = "\n".join(["images  class: taken for", "", *lines]) if lines else "no mistakes"
    axes.text(0, 1, text, transform=axes.transAxes, va="top", fontsize=9, parse_math=False)


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Of this many inches."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _drawn(figure: Figure) -> Pixels:
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]

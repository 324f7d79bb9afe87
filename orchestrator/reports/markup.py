"""HTML in which names and values are shown as the text that they are."""

from __future__ import annotations

import base64
import html
import io
import re
from datetime import UTC, datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from PIL import Image

from orchestrator.errors import printable
from orchestrator.reports.parts import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

PICTURE_PIXELS = 128  # a side of an embedded picture, at most
TINY_PIXELS = 48  # up to which a picture is shown with its pixels as squares
QUALITY = 82  # of JPEG
_NUMBER = re.compile(r"-?[\d.]+(e[+-]\d+)?|")


def safe(value: object) -> str:
    """Text as HTML that shows it literally; lines stay."""
    return html.escape("\n".join(map(printable, str(value).split("\n"))))


def note(text: str, button: str = "") -> str:
    """What is said beside a chart or a table, and a button's HTML; nothing of nothing."""
    return f'<p class="note">{safe(text)} {button}</p>' if text or button else ""


def block(title: str, text: str) -> str:
    """Text to copy."""
    return f"<p>{safe(title)}</p><pre>{safe(text)}</pre>"


def table(header: Sequence[str], lines: Sequence[Sequence[Any]], classes: Sequence[str] = ()) -> str:
    """A table that scrolls within itself; columns of numbers are on the right. `classes` are of the lines."""
    if not lines:
        return ""
    columns = list(zip(*lines, strict=True))
    kinds = [' class="number"' if all(map(_is_number, column)) else "" for column in columns]
    head = "".join(f"<th{kind}>{safe(name)}</th>" for name, kind in zip(header, kinds, strict=True))
    rows = [
        f'<tr class="{look}">{_cells(cells, kinds)}</tr>' for cells, look in zip_longest(lines, classes, fillvalue="")
    ]
    named = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return f'<div class="rows" tabindex="0"><table>{named}<tbody>{"".join(rows)}</tbody></table></div>'


def _cells(cells: Sequence[Any], kinds: Sequence[str]) -> str:
    return "".join(f"<td{kind}>{safe(plain(cell))}</td>" for cell, kind in zip(cells, kinds, strict=True))


def _is_number(cell: Any) -> bool:
    return not isinstance(cell, bool) and _NUMBER.fullmatch(plain(cell)) is not None


def picture(pixels: NDArray[np.uint8]) -> str:
    """Pixels `(C, H, W)`, one channel or three, as an embedded picture, a large one made smaller."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    is_tiny, file = max(image.size) <= TINY_PIXELS, io.BytesIO()
    image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    if is_tiny:
        image.save(file, "png", optimize=True)
    else:
        image.save(file, "jpeg", quality=QUALITY)
    data = base64.b64encode(file.getvalue()).decode()
    kind, look = ("png", ' class="tiny"') if is_tiny else ("jpeg", "")
    return f'<img{look} alt="" src="data:image/{kind};base64,{data}">'


def date(seconds: float) -> str:
    """A moment, to the minute."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float) -> str:
    """How long, in the largest unit that it has one of."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"

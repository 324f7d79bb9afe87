"""Plain data -> tables and lines for a terminal. Names from outside are shown as the text that they are."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from orchestrator.curves import LETTERS, draw
from orchestrator.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Row = Mapping[str, Any]

T = TypeVar("T")
WIDE = 1000  # columns of a pipe, which has no edge
GAP = "   "  # between the columns of a table
MAX_CELL = 40  # letters of what differs; all of it is in --json
BETTER = "*"
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
# Part of a contrast -> what to say where it has nothing.
PARTS = {
    "config": "the configurations are the same",
    "study": "they are searched alike",
    "provenance": "code, packages and machine are the same, as far as they are on record",
}


def show_leaderboard(rows: Sequence[Mapping[str, Any]], *, limit: int | None = None) -> None:
    """Print the ranked trials of a study, or the first `limit`: a column a parameter, or one for all in little room.

    What further seeds say of a trial stands beside its value; they have no rows of their own. Several objectives have
    a column each, and one for who is on their Pareto front.
    """
    console = _console()
    rows = [row for row in rows if row["confirms"] is None]
    names = list(rows[0]["params"]) if rows else []
    shown = rows[:limit]
    values = _value_columns(rows)
    how = {"epochs": _epochs, "seconds": _seconds, "state": _state}

    def tables() -> Iterator[tuple[list[str], Iterable[list[object]]]]:
        yield (
            ["trial", *values, *names, *how],
            (
                [
                    row["trial"],
                    *(cell(row) for cell in values.values()),
                    *(short(row["params"][name]) for name in names),
                    *(cell(row) for cell in how.values()),
                ]
                for row in shown
            ),
        )
        yield (
            ["trial", *values, *how, "parameters"],
            (
                [
                    row["trial"],
                    *(cell(row) for cell in (*values.values(), *how.values())),
                    short({k: v for k, v in row["params"].items() if v is not None}),
                ]
                for row in shown
            ),
        )

    _print_table(console, tables())
    if len(rows) > len(shown):
        print(f"… and {len(rows) - len(shown)} more: orch compare")


def _value_columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """Header -> what stands there in a row, of all that says how good a trial is."""
    columns: dict[str, Callable[[Row], str]] = {rows[0]["objective"] if rows else "value": _value}
    several: Mapping[str, float] = next((row["objectives"] for row in rows if row["objectives"]), {})
    columns |= {name: functools.partial(_objective, name) for name in several if name not in columns}
    if several:
        columns["front"] = _front
    if any(row["confirmed"] for row in rows):
        columns["further seeds"] = _mean
    return columns


def _value(row: Row) -> str:
    return "" if row["value"] is None else f"{row['value']:.4f}"


def _objective(name: str, row: Row) -> str:
    return short(row["objectives"].get(name))


def _front(row: Row) -> str:
    return "yes" if row["front"] else ""


def _mean(row: Row) -> str:
    return "{mean:.4f} ({low:.4f} to {high:.4f})".format_map(row["confirmed"]) if row["confirmed"] else ""


def _epochs(row: Row) -> str:
    return str(row["epochs"])


def _seconds(row: Row) -> str:
    return f"{row['seconds']:.1f}"


def _state(row: Row) -> str:
    return row["state"] if row["reason"] is None else f"{row['state']} ({row['reason']})"


def show_contrast(found: Mapping[str, Any]) -> None:
    """Print runs, trials or studies beside each other: what differs, figures with the better one marked, curves."""
    letters = LETTERS[: len(found["sides"])]
    sides = found["sides"]
    show_table(
        ["", "name", "trial", "state", "run"],
        [
            [letter, *(_blank(side[key]) for key in ("name", "trial", "state", "run_id"))]
            for letter, side in zip(letters, sides, strict=True)
        ],
    )
    for part, nothing in PARTS.items():
        if found[part]:
            show_table([part, *letters], [[name, *map(_cut, values)] for name, values in found[part].items()])
        else:
            print(nothing)
    commits = list(dict.fromkeys(filter(None, found["provenance"].get("commit", []))))
    if len(commits) > 1:
        print("what is committed differs by:", *(f"git diff {commits[0]} {other}" for other in commits[1:]))
    lines = [[name, *_marked(metric)] for name, metric in found["metrics"].items()]
    if lines:
        show_table(["metric", *letters], lines)
        print(f"{BETTER} is the better one")
    for name, curves in found["curves"].items():
        _show_curves(curves, f"{name} by epoch")
    for name, changes in found["texts"].items():
        for side, diff in changes.items():
            print(f"\n{name} of {printable(sides[0]['name'])} and {printable(side)}")
            print("\n".join(map(printable, diff)))


def _blank(value: object) -> object:
    return "" if value is None else value


def _cut(value: object) -> str:
    text = short(value)
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 1]}…"


def _marked(metric: Mapping[str, Any]) -> list[str]:
    return [short(value) + (BETTER if side in metric["best"] else "") for side, value in enumerate(metric["values"])]


def _show_curves(curves: Sequence[Sequence[float]], title: str) -> None:
    """Print curves in letters, each in a colour of its own where there are colours."""
    console = _console()
    for number, line in enumerate(draw(curves, title)):
        text = Text(line)
        for place, letter in enumerate(LETTERS[: len(curves)] if number else ""):
            text.highlight_regex(letter, style=COLOURS[place % len(COLOURS)])
        console.print(text, soft_wrap=True)


def show_table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Print a table; in a pipe it is as wide as it needs to be."""
    _print_table(_console(), [(header, lines)])


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDE)


def _print_table(console: Console, tables: Iterable[tuple[Sequence[str], Iterable[Sequence[object]]]]) -> None:
    """Print the first of these tables that fits, else the last with cells of several lines.

    One that fits is written as it is, since rich takes most of a millisecond for a row.
    """
    for header, lines in tables:
        names, texts = [printable(name) for name in header], _texts(lines)
        widths = _widths(names, texts)
        if _width(widths) <= console.width:
            padded = [_padded(cells, widths) for cells in texts]
            print()
            console.print(Text(_padded(names, widths), style="bold"), soft_wrap=True)
            print("\n".join([f" {'─' * (_width(widths) - 2)}", *padded, ""]))
            return
    console.print(_folded(names, texts))


def _texts(lines: Iterable[Sequence[object]]) -> list[list[str]]:
    return [[printable(str(cell)) for cell in line] for line in lines]


def _widths(header: Sequence[str], texts: Sequence[Sequence[str]]) -> list[int]:
    """How many places of a terminal each column takes."""
    columns = zip(*texts, strict=True) if texts else ([] for _ in header)
    return [max(map(cell_len, (name, *cells))) for name, cells in zip(header, columns, strict=True)]


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1) + 2


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A line of a table."""
    filled = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
    return f" {GAP.join(filled)} ".rstrip()


def _folded(header: Sequence[str], texts: Iterable[Sequence[str]]) -> Table:
    """A table whose cells take several lines where they must."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(Text(name), overflow="fold")
    for cells in texts:
        table.add_row(*map(Text, cells))
    return table


def show_pairs(pairs: Mapping[str, object]) -> None:
    """Print `name  value` lines, aligned."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        lines = short(value).split("\n")  # a traceback has many
        print(f"{name:<{width}}  " + "\n".join(map(printable, lines)))


def progress(items: Iterable[T], total: int) -> Iterable[T]:
    """Count along on standard error, if that is a terminal."""
    console = Console(stderr=True)
    return track(items, "images", total, transient=True, console=console, disable=not console.is_terminal)


def size(num_bytes: float) -> str:
    """Bytes as a person would write them."""
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {prefix}B"
    return f"{num_bytes:.0f} B"


def short(value: object) -> str:
    """Return a value as a person would write it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}={short(item)}" for key, item in value.items())
    return "" if value is None else str(value)

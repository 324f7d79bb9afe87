"""Plain data -> tables and lines for a terminal. Names from outside are shown as the text that they are."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from orchestrator.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Row = Mapping[str, Any]

T = TypeVar("T")
WIDE = 1000  # columns of a pipe, which has no edge


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
    table = _table(
        ["trial", *values, *names, *how],
        [
            [
                row["trial"],
                *(cell(row) for cell in values.values()),
                *(short(row["params"][name]) for name in names),
                *(cell(row) for cell in how.values()),
            ]
            for row in shown
        ],
    )
    # Measured as in a pipe: a console takes no table for wider than itself.
    if console.measure(table, options=console.options.update(max_width=WIDE)).maximum > console.width:
        table = _table(
            ["trial", *values, *how, "parameters"],
            [
                [
                    row["trial"],
                    *(cell(row) for cell in (*values.values(), *how.values())),
                    short({k: v for k, v in row["params"].items() if v is not None}),
                ]
                for row in shown
            ],
        )
    console.print(table)
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


def show_table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Print a table; in a pipe it is as wide as it needs to be."""
    _console().print(_table(header, lines))


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDE)


def _table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(Text(name), overflow="fold")
    for line in lines:
        table.add_row(*(Text(printable(str(cell))) for cell in line))
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


def short(value: object) -> str:
    """Return a value as a person would write it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}={short(item)}" for key, item in value.items())
    return "" if value is None else str(value)

"""Plain data -> tables and lines for a terminal. Names from outside are shown as the text that they are."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from orchestrator.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


T = TypeVar("T")
WIDE = 1000  # columns of a pipe, which has no edge


def show_leaderboard(rows: Sequence[Mapping[str, Any]], *, limit: int | None = None) -> None:
    """Print the ranked trials of a study, or the first `limit`: a column a parameter, or one for all in little room.

    What further seeds say of a trial stands beside its value; they have no rows of their own.
    """
    console = _console()
    rows = [row for row in rows if row["confirms"] is None]
    names = list(rows[0]["params"]) if rows else []
    objective = rows[0]["objective"] if rows else "value"
    shown = rows[:limit]
    seeds = ["further seeds"] if any(row["confirmed"] for row in rows) else []
    table = _table(
        ["trial", objective, *seeds, *names, "epochs", "seconds", "state"],
        [
            [
                *_figures(row)[:2],
                *_mean(row, seeds),
                *(short(row["params"][name]) for name in names),
                *_figures(row)[2:],
            ]
            for row in shown
        ],
    )
    # Measured as in a pipe: a console takes no table for wider than itself.
    if console.measure(table, options=console.options.update(max_width=WIDE)).maximum > console.width:
        table = _table(
            ["trial", objective, *seeds, "epochs", "seconds", "state", "parameters"],
            [
                [
                    *(*_figures(row)[:2], *_mean(row, seeds), *_figures(row)[2:]),
                    short({k: v for k, v in row["params"].items() if v is not None}),
                ]
                for row in shown
            ],
        )
    console.print(table)
    if len(rows) > len(shown):
        print(f"… and {len(rows) - len(shown)} more: orch compare")


def _mean(row: Mapping[str, Any], seeds: Sequence[str]) -> list[str]:
    """What further seeds say of a row, where there is a column for it."""
    said = row["confirmed"]
    return [("{mean:.4f} ({low:.4f} to {high:.4f})".format_map(said) if said else "") for _ in seeds]


def _figures(row: Mapping[str, Any]) -> list[str]:
    """Trial, value, epochs, seconds and state of a row."""
    state = row["state"] if row["reason"] is None else f"{row['state']} ({row['reason']})"
    value = "" if row["value"] is None else f"{row['value']:.4f}"
    return [str(row["trial"]), value, str(row["epochs"]), f"{row['seconds']:.1f}", state]


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

"""Findings -> which worker was busy with which trial, and what came of it."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from orchestrator.reports.parts import Chart, axes, left_out, said, spread, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.reports.findings import Findings, Work

    Clock = Callable[[float], float]

MAX_BARS, MAX_WORKERS, MANY_WORKERS = 1500, 32, 8
BREAK_SHARE, BREAK_SECONDS = 0.05, 1.0  # longer breaks, of the time that was worked and in all, are cut out
UNITS = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
OUTCOMES = {  # of an attempt -> its colour
    "complete": "--accent",
    "pruned": "--faded",
    "paused": "--calm",
    "running": "--good",
    "failed": "--bad",
    "interrupted": "--gold",
}


def timeline(found: Findings) -> Chart | None:
    """A bar an attempt; the time in which nothing ran is cut out."""
    if not found.work:
        return None
    workers = sorted({each.worker for each in found.work}, key=_natural)
    shown_workers = spread(workers, MAX_WORKERS)
    there = [each for each in found.work if each.worker in set(shown_workers)]
    shown = spread(there, MAX_BARS)
    clock, breaks = _clock(found.work)
    end = max(clock(each.ended_at) for each in found.work)
    unit = next((name for name, seconds in UNITS.items() if end > 2 * seconds), "seconds")
    bars = {outcome: [each for each in shown if each.outcome == outcome] for outcome in OUTCOMES}
    layout = axes(f"{unit} since the first trial began", "") | {"barmode": "overlay", "bargap": 0.25}
    layout["xaxis"]["range"] = [0, 1.01 * end / UNITS[unit]]
    names = [text(worker) for worker in shown_workers[::-1]]
    order = {"type": "category", "categoryorder": "array", "categoryarray": names, "dtick": 1}
    layout["yaxis"] |= {**order, "range": [-0.5, len(names) - 0.5], "showgrid": False, "fixedrange": True, "ticks": ""}
    layout["shapes"] = [_mark(at / UNITS[unit]) for at in breaks]
    is_part = len(shown_workers) < len(workers)
    busy = sum(each.ended_at - each.begun_at for each in found.work) / (end * len(workers)) if end else 1.0
    return Chart(
        key="timeline",
        label="what each worker did when",
        data=[_bars(each, outcome, clock, UNITS[unit]) for outcome, each in bars.items() if each],
        layout=layout,
        note=said(
            f"{len(workers):,} worker(s), busy for {busy:.0%} of the time.",
            f"{len(breaks)} break(s) in which nothing ran are cut out at the dotted lines." if breaks else "",
            f"{len(shown_workers)} of them are shown." if is_part else "",
            left_out(len(shown), len(there), "of their attempts"),
        ),
        height=120 + (20 if len(shown_workers) > MANY_WORKERS else 38) * len(shown_workers),
    )


def _bars(work: Sequence[Work], outcome: str, clock: Clock, unit: float) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": outcome,
        "y": [text(each.worker) for each in work],
        "base": [clock(each.begun_at) / unit for each in work],
        "x": [(each.ended_at - each.begun_at) / unit for each in work],
        "hovertext": [
            f"trial {each.trial}, {outcome}<br>{each.ended_at - each.begun_at:.1f} s on {text(each.worker)}"
            for each in work
        ],
        "hoverinfo": "text",
        "marker": {"color": OUTCOMES[outcome], "line": {"color": "--paper", "width": 1}},
    }


def _mark(at: float) -> dict[str, Any]:
    """A line over all workers."""
    place = {"x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **place, "line": {"color": "--gold", "width": 1, "dash": "dot"}}


def _clock(work: Sequence[Work]) -> tuple[Clock, list[float]]:
    """What a moment is on a clock that stands still in breaks, in seconds; and where those are on it."""
    spans: list[tuple[float, float]] = []
    for each in sorted(work, key=lambda each: each.begun_at):
        if spans and each.begun_at <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], each.ended_at))
        else:
            spans.append((each.begun_at, each.ended_at))
    limit = max(BREAK_SECONDS, BREAK_SHARE * sum(end - begun for begun, end in spans))
    breaks = [(end, begun) for (_, end), (begun, _) in pairwise(spans) if begun - end > limit]

    def clock(moment: float) -> float:
        return moment - spans[0][0] - sum(begun - end for end, begun in breaks if begun <= moment)

    return clock, [clock(begun) for _, begun in breaks]


def _natural(worker: str) -> list[str]:
    """An order in which cpu10 comes after cpu2."""
    return [part.zfill(12) if part.isdigit() else part for part in re.split(r"(\d+)", worker)]

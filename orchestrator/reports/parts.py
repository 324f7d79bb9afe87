"""What charts are made of: text that stays text, traces, axes, and fewer points where there are many.

Colours are names of the page's stylesheet (`--accent`), which has them in light and in dark; the page's script puts
them in. Plotly reads `<b>` and `<a href=…>` in any text, so what comes from outside is escaped here.
"""

from __future__ import annotations

import html
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.errors import printable
from orchestrator.render import short
from orchestrator.tables import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.reports.findings import Drawn, Findings

T = TypeVar("T")
Range = tuple[float, float]

NAME_LENGTH = 28
MAX_LINES_SAID = 24  # of what a point says of its trial
MAX_CURVE_POINTS = 40
MIN_ZOOMED, ZOOM = 8, 2.0  # values from which a chart may zoom in; quartile distances below the lower quartile
# Group of trials -> its colour and how its points look, in the order in which they lie on each other.
LOOKS: dict[str, dict[str, Any]] = {
    "pruned": {"color": "--faded", "size": 6, "opacity": 0.6},
    "failed": {"color": "--bad", "size": 6, "opacity": 0.8, "symbol": "x"},
    "not ended": {"color": "--good", "size": 7, "symbol": "circle-open"},
    "complete": {"color": "--accent", "size": 8, "opacity": 0.85},
    "winner": {"color": "--gold", "size": 15, "symbol": "star", "line": {"color": "--ink", "width": 1}},
}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure, what to say above it, and how much room it wants: pixels of height, and of width at least."""

    key: str
    label: str  # for those who cannot see it
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    note: str = ""
    is_zoomed: bool = False  # some points lie below what is shown at first
    height: int = 360
    min_width: int = 0


def text(value: object, most: int = NAME_LENGTH) -> str:
    """A name or a value as Plotly shows it literally, in one line of at most so many letters."""
    return html.escape(cut(value, most), quote=False)


def cut(value: object, most: int = NAME_LENGTH) -> str:
    """The same where Plotly reads no markup, as at the axes of parallel coordinates."""
    shown, half = printable(plain(value)), most // 2
    return shown if len(shown) <= most else f"{shown[:half]}…{shown[1 - half :]}"


def plain(value: object) -> str:
    """A value as one would type it, of a number a few digits."""
    return str(value).lower() if isinstance(value, bool) else short(value)


def spread(items: Sequence[T], most: int, keep: Callable[[T], bool] = lambda _: False) -> list[T]:
    """About `most` of the items, spread evenly over all, in their order, and those that are to `keep`."""
    if len(items) <= most:
        return list(items)
    chosen = {round(place * (len(items) - 1) / (most - 1)) for place in range(most)}
    return [item for place, item in enumerate(items) if place in chosen or keep(item)]


def left_out(shown: int, of: int, what: str) -> str:
    """What a chart does not show, in a sentence; nothing if it shows all."""
    return f"{shown:,} of {of:,} {what} are shown, spread evenly over all." if shown < of else ""


def said(*sentences: str) -> str:
    """Those that there are, as one text."""
    return " ".join(filter(None, sentences))


def groups(trials: Sequence[Drawn], found: Findings, *, winner: bool = True) -> dict[str, list[Drawn]]:
    """Trials by what came of them, as `LOOKS` has them; without `winner` that is one of the complete ones."""
    best = found.winner.number if winner and found.winner else -1
    gathered: dict[str, list[Drawn]] = {name: [] for name in LOOKS}
    for trial in trials:
        if trial.number == best:
            gathered["winner"].append(trial)
        else:
            gathered[trial.state.value if trial.state.finished else "not ended"].append(trial)
    return {name: group for name, group in gathered.items() if group}


def points(
    trials: Sequence[Drawn],
    x: Callable[[Drawn], Any],
    y: Callable[[Drawn], float],
    found: Findings,
    *,
    winner: bool = True,
) -> list[dict[str, Any]]:
    """A point a trial, that says what it is."""
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [x(trial) for trial in group],
            "y": [y(trial) for trial in group],
            "hovertext": [about(trial, found) for trial in group],
            "hoverinfo": "text",
            "marker": LOOKS[name],
        }
        for name, group in groups(trials, found, winner=winner).items()
    ]


def about(trial: Drawn, found: Findings) -> str:
    """What a trial's point says of it."""
    told = trial.objectives or ({} if trial.value is None else {found.objective: trial.value})
    lines = [f"trial {trial.number}, {trial.state.value}"]
    lines += [f"{text(name)} {short(value)}" for name, value in told.items()]
    lines += [f"{text(name)} = {text(value)}" for name, value in trial.params.items()]
    return "<br>".join(lines[:MAX_LINES_SAID])


def line(places: Sequence[tuple[int, float]], name: str, colour: str, **look: Any) -> dict[str, Any]:
    """A line through points."""
    return {
        "type": "scatter",
        "mode": "lines" if len(places) > 1 else "markers",
        "name": name,
        "x": [x for x, _ in places],
        "y": [y for _, y in places],
        "hoverinfo": "x+y+name",
        "line": {"color": colour, "width": 2, **look},
        "marker": {"color": colour},
    }


def bundle(trials: Sequence[Drawn], name: str, width: float, opacity: float) -> dict[str, Any]:
    """The curves of many trials as one line with gaps, which is drawn far quicker than one each."""
    places: list[tuple[int | None, float | None, str]] = []
    for trial in trials:
        what = f"trial {trial.number}, {trial.state.value}"
        places += [(x, y, f"{what}<br>epoch {x}: {short(y)}") for x, y in thin(trial.curve)]
        places.append((None, None, ""))
    return {
        "type": "scatter",
        "mode": "lines+markers" if name == "winner" or all(len(trial.curve) == 1 for trial in trials) else "lines",
        "name": name,
        "x": [x for x, _, _ in places],
        "y": [y for _, y, _ in places],
        "hovertext": [what for _, _, what in places],
        "hoverinfo": "text",
        "connectgaps": False,
        "opacity": opacity,
        "line": {"color": LOOKS[name]["color"], "width": width},
        "marker": {"size": 5, "color": LOOKS[name]["color"]},
    }


def thin(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A long curve by fewer of its points; its best stays."""
    best = max(curve, key=lambda point: point[1], default=None)
    return spread(curve, MAX_CURVE_POINTS, lambda point: point == best)


def axes(x: str, y: str, *, y_range: Range | None = None) -> dict[str, Any]:
    """A layout with these titles, which are Plotly's text."""
    named: dict[str, dict[str, Any]] = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    if y_range is not None:
        named["yaxis"]["range"] = list(y_range)
    return named


def zoom(values: Sequence[float], distances: float = ZOOM) -> Range | None:
    """The range that a chart begins with where a few poor values would press all others together; else None.

    It ends that many quartile distances below the lower quartile.
    """
    if len(values) < MIN_ZOOMED:
        return None
    lower, _, upper = statistics.quantiles(values, n=4)
    bound, best = lower - distances * (upper - lower), max(values)
    return (bound, best + 0.06 * (best - bound)) if min(values) < bound < lower else None


def below(shown: Range | None, values: Sequence[float], what: str) -> str:
    """How many are outside of a range."""
    number = sum(value < shown[0] for value in values) if shown else 0
    return f"{number:,} {what} below what is shown." if number else ""


def value_of(trial: Drawn) -> float:
    """The value of a trial that has one."""
    assert trial.value is not None, "trials without a value are left out"
    return trial.value


def with_value(found: Findings) -> list[Drawn]:
    """The trials that have a value: complete and pruned ones, and those that have begun."""
    return [trial for trial in found.trials if trial.value is not None and trial.state is not State.FAILED]

"""Findings -> parallel coordinates: a line a trial through its parameters to its value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from orchestrator.render import short
from orchestrator.reports.parts import Chart, cut, left_out, said, spread, text, value_of, with_value, zoom

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.reports.findings import Drawn, Findings

MAX_LINES, MAX_AXES = 500, 9
AXIS_PIXELS = 98
MAX_TICKS = 8  # whole numbers up to which each has one
TICK_LENGTH = 14
SCALE = [[0.0, "--low"], [0.5, "--mid"], [1.0, "--high"]]


def parallel(found: Findings) -> Chart | None:
    """The chart, in which the better ones stand out; those that were stopped are there with what they had come to."""
    valued = [trial for trial in with_value(found) if trial.params]
    fields = found.searched[:MAX_AXES]
    if len(valued) < 2 or not fields:
        return None
    shown = spread(sorted(valued, key=value_of), MAX_LINES)  # the best are drawn last
    values = [value_of(trial) for trial in shown]
    low = max((zoom(values) or (values[0], 0))[0], values[0])
    dimensions = [*(_axis(name, found, shown) for name in fields), *_others(found, shown), _end(found, values, low)]
    colours = {"color": values, "colorscale": SCALE, "cmin": low, "cmax": values[-1]}
    is_part = len(fields) < len(found.searched)
    return Chart(
        key="parallel",
        label="parameters and value of each trial, as parallel coordinates",
        data=[{"type": "parcoords", "dimensions": dimensions, "line": colours, "labelangle": -20}],
        layout={"margin": {"l": 60, "r": 60, "t": 70, "b": 24}},
        note=said(
            "The better a trial, the stronger its line. Drag along an axis to keep those of a range, click to undo.",
            f"The {len(fields)} fields that matter most, of {len(found.searched)}." if is_part else "",
            left_out(len(shown), len(valued), "trials"),
        ),
        height=430,
        min_width=AXIS_PIXELS * len(dimensions),
    )


def _others(found: Findings, shown: Sequence[Drawn]) -> list[dict[str, Any]]:
    """The axes of further objectives, where all trials have them."""
    names = [each.name for each in found.objectives if each.name != found.objective]
    return [
        {"label": text(name), "values": [trial.objectives[name] for trial in shown]}
        for name in names
        if all(name in trial.objectives for trial in shown)
    ]


def _end(found: Findings, values: Sequence[float], low: float) -> dict[str, Any]:
    """The axis of the value; what is poorer than its lower end goes there."""
    high = values[-1] if values[-1] > low else low + 1.0
    ticks = [low + share * (high - low) for share in (0, 0.25, 0.5, 0.75, 1)]
    return {
        "label": text(found.objective),
        "values": [max(value, low) for value in values],
        "range": [low, high],
        "tickvals": ticks,
        "ticktext": ["≤ " * (values[0] < low) + short(ticks[0]), *(short(at) for at in ticks[1:])],
    }


def _axis(name: str, found: Findings, shown: Sequence[Drawn]) -> dict[str, Any]:
    """The axis of a field; where it was not drawn, a line goes through its lower end."""
    searched = found.study.spec["space"][name]
    values = [trial.params.get(name) for trial in shown]
    low, high, ticks, place = _choice_scale(searched) if "choices" in searched else _number_scale(searched)
    missing = low - 0.12 * (high - low or 1)
    places = [missing if value is None else place(value) for value in values]
    if None in values:
        low, ticks = missing, [(missing, "none"), *ticks]
    return {
        "label": text(name),
        "values": places,
        "range": [min([low, *places]), max([high, *places])],
        "tickvals": [at for at, _ in ticks],
        "ticktext": [label for _, label in ticks],
    }


def _choice_scale(searched: Mapping[str, Any]) -> tuple[float, float, list[tuple[float, str]], Any]:
    """Lowest and highest place, what is said where, and the place of a value."""
    choices = searched["choices"]
    ticks = [(float(at), cut(choice, TICK_LENGTH)) for at, choice in enumerate(choices)]
    return (0.0 if len(choices) > 1 else -0.5), max(0.5, len(choices) - 1.0), ticks, choices.index


def _number_scale(searched: Mapping[str, Any]) -> tuple[float, float, list[tuple[float, str]], Any]:
    """The same of a range; where it is one of logarithms, places are those."""
    place = math.log10 if searched.get("log") else float
    low, high = place(searched["low"]), place(searched["high"])
    if low == high:  # of an imported study
        low, high = low - 0.5, high + 0.5
    if searched.get("integer") and not searched.get("log") and high - low <= MAX_TICKS:
        at = [float(each) for each in range(math.ceil(low), math.floor(high) + 1)]
    elif searched.get("log"):
        inner = range(math.ceil(low), math.floor(high) + 1)
        at = [low, *(float(each) for each in inner if 0.15 < (each - low) / (high - low) < 0.85), high]
    else:
        at = [low + share * (high - low) for share in (0, 0.25, 0.5, 0.75, 1)]
    return low, high, [(each, short(10**each if searched.get("log") else each)) for each in at], place

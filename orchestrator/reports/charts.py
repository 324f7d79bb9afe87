"""Findings -> charts of all trials, and of the winner's answers, as plain data that Plotly draws. Pure.

A chart of many trials would take minutes to draw and megabytes to send: each shows as many as stay legible, spread
evenly over all, and its note says so.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

from orchestrator.reports.parts import (
    Chart,
    about,
    axes,
    below,
    bundle,
    groups,
    left_out,
    line,
    points,
    said,
    spread,
    text,
    thin,
    value_of,
    with_value,
    zoom,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.evaluate import Answers
    from orchestrator.reports.findings import Drawn, Findings

MAX_POINTS = 1500  # of the history and of a front
MAX_CURVES = 150
CURVES_ZOOM = 10.0  # as `parts.ZOOM`: how they begin is to be seen
MAX_SLICES, MAX_SLICE_POINTS = 12, 400
MAX_PAIRS = 3  # of objectives
MAX_CLASSES, MAX_COUNTED = 30, 20  # of the confusion matrix; those up to which counts stand in it
MAX_DISCRETE = 10  # whole numbers up to which each has a place of its own on an axis
MAX_LEVEL = 2  # letters of a class's name that have room beside each other
TICK_LENGTH = 14  # of names beside each other
JITTER = 0.16  # by which points at such a place lie beside each other
_COLOURS = ("--accent", "--gold", "--calm", "--good")
# Width and opacity of the curves of a group.
_CURVES = {
    "pruned": (1.0, 0.55),
    "failed": (1.0, 0.6),
    "not ended": (1.2, 0.7),
    "complete": (1.2, 0.6),
    "winner": (3.0, 1.0),
}


def history(found: Findings) -> Chart | None:
    """The value of each trial by number, and the best so far."""
    valued = with_value(found)
    if not valued:
        return None
    steps = _steps([trial for trial in valued if trial.is_complete], found.trials[-1].number)
    records = {number for number, _ in steps}
    shown = spread(valued, MAX_POINTS, lambda trial: trial.number in records)
    values = [value_of(trial) for trial in valued]
    best = [{**line(steps, "best so far", "--accent", shape="hv"), "hoverinfo": "skip"}] if steps else []
    return Chart(
        key="history",
        label=f"{found.objective} of each trial, and the best so far",
        data=best + points(shown, lambda trial: trial.number, value_of, found),
        layout=axes("trial", text(found.objective), y_range=zoom(values)),
        note=said(below(zoom(values), values, "trial(s) lie"), left_out(len(shown), len(valued), "trials")),
        is_zoomed=zoom(values) is not None,
    )


def _steps(complete: Sequence[Drawn], last: int) -> list[tuple[int, float]]:
    """The trials that were better than all complete ones before, and the best at the end."""
    found: list[tuple[int, float]] = []
    for trial in complete:
        if not found or value_of(trial) > found[-1][1]:
            found.append((trial.number, value_of(trial)))
    return [*found, (last, found[-1][1])] if found else []


def curves(found: Findings) -> Chart | None:
    """What all trials came to epoch by epoch: those that were stopped are faded, the winner stands out."""
    trained = [trial for trial in found.trials if trial.curve]
    if not trained:
        return None
    winner = found.winner.number if found.winner else -1
    ranked = sorted(trained, key=lambda trial: (trial.state, -max(value for _, value in trial.curve)))
    shown = spread(ranked, MAX_CURVES, lambda trial: trial.number == winner)
    values = [value for trial in shown for _, value in trial.curve]
    first = zoom(values, CURVES_ZOOM)
    return Chart(
        key="curves",
        label=f"{found.objective} of each trial by epoch",
        data=[bundle(group, name, *_CURVES[name]) for name, group in groups(shown, found).items()],
        layout=axes("epoch", text(found.objective), y_range=first),
        note=said(below(first, values, "epoch(s) lie"), left_out(len(shown), len(trained), "curves")),
        is_zoomed=first is not None,
        height=420,
    )


def losses(found: Findings) -> Chart | None:
    """The winner's losses by epoch."""
    if not found.losses:
        return None
    looks = {"train_loss": ("--faded", "dot"), "val_loss": ("--accent", "solid")}
    data = [line(thin(each), name, looks[name][0], dash=looks[name][1]) for name, each in found.losses.items()]
    label = "losses of the winner by epoch"
    return Chart(key="losses", title="The winner's losses", label=label, data=data, layout=axes("epoch", "loss"))


def fronts(found: Findings) -> list[Chart]:
    """Of several objectives, two by two: all trials, and those that no other beats in everything."""
    valued = [trial for trial in found.trials if trial.objectives]
    shown = spread(valued, MAX_POINTS, lambda trial: trial.on_front)
    note = left_out(len(shown), len(valued), "trials")
    pairs = list(combinations([each.name for each in found.objectives], 2))[:MAX_PAIRS] if valued else []
    return [_front(found, shown, pair, f"front-{place}", note) for place, pair in enumerate(pairs)]


def _front(found: Findings, shown: Sequence[Drawn], pair: tuple[str, str], key: str, note: str) -> Chart:
    y, x = pair
    others = [trial for trial in shown if not trial.on_front]
    front = sorted((trial for trial in shown if trial.on_front), key=lambda trial: trial.objectives[x])
    is_plane = len(found.objectives) == 2  # of more, the front is no line
    best = {
        "type": "scatter",
        "mode": "lines+markers" if is_plane else "markers",
        "name": "Pareto front",
        "x": [trial.objectives[x] for trial in front],
        "y": [trial.objectives[y] for trial in front],
        "hovertext": [about(trial, found) for trial in front],
        "hoverinfo": "text",
        "marker": {"size": 11, "color": "--gold", "line": {"width": 1.5, "color": "--ink"}},
        "line": {"color": "--gold", "width": 1.5, "dash": "dot"},
    }
    data = points(others, lambda each: each.objectives[x], lambda each: each.objectives[y], found, winner=False)
    better = {each.name: "more is better" if each.direction == "max" else "less is better" for each in found.objectives}
    layout = axes(*(f"{text(name)} ({better[name]})" for name in (x, y)))
    return Chart(key=key, label=f"{y} against {x}", data=[*data, best], layout=layout, note=note, height=420)


def importance(found: Findings) -> Chart | None:
    """How much each searched field had to do with the values."""
    if not found.importances:
        return None
    first = next(iter(found.importances.values()))
    fields = list(first.shares)[::-1]
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": text(name),
            "y": [text(each) for each in fields],
            "x": [told.shares.get(each, 0.0) for each in fields],
            "text": [_percent(told.shares.get(each, 0.0)) for each in fields],
            "textposition": "outside",
            "cliponaxis": False,
            "marker": {"color": _COLOURS[place % len(_COLOURS)]},
        }
        for place, (name, told) in enumerate(found.importances.items())
    ]
    layout = axes("", "")
    most = max(share for told in found.importances.values() for share in told.shares.values())
    layout["xaxis"] |= {"visible": False, "range": [0, 1.15 * most], "fixedrange": True}
    layout["yaxis"] |= {"type": "category", "showgrid": False, "fixedrange": True, "dtick": 1, "ticks": ""}
    layout |= {"bargap": 0.35, "showlegend": len(bars) > 1, "hovermode": False}
    if len(bars) == 1:
        layout["margin"] = {"l": 8, "r": 12, "t": 4, "b": 8}
    return Chart(
        key="importance",
        label="importance of each field",
        data=bars,
        layout=layout,
        note=f"The share of the differences in value that goes back to each field, by {first.method}, of"
        f" {first.num_trials:,} complete trials. Of few trials it is a hint, not a measurement.",
        height=(70 if len(bars) > 1 else 40) + (14 + 18 * len(bars)) * len(fields),
    )


def _percent(share: float) -> str:
    return "<1%".replace("<", "&lt;") if 0 < share < 0.01 else f"{share:.0%}"


def slices(found: Findings) -> list[Chart]:
    """Each searched field against the value."""
    valued = with_value(found)
    values = [value_of(trial) for trial in valued]
    fields = [name for name in found.searched if any(name in trial.params for trial in valued)]
    charts = []
    for place, name in enumerate(fields[:MAX_SLICES]):
        layout = axes(text(name), text(found.objective), y_range=zoom(values)) | {"showlegend": False}
        charts.append(_slice(f"slice-{place}", name, found, valued, layout))
    return charts


def _slice(key: str, name: str, found: Findings, valued: Sequence[Drawn], layout: dict[str, Any]) -> Chart:
    searched = found.study.spec["space"][name]
    drew = [trial for trial in valued if name in trial.params]
    winner = found.winner.number if found.winner else -1
    shown = spread(drew, MAX_SLICE_POINTS, lambda trial: trial.number == winner)
    if choices := _choices(searched):
        ticks = {"tickvals": list(range(len(choices))), "ticktext": [text(choice, TICK_LENGTH) for choice in choices]}
        layout["xaxis"] |= {"range": [-0.5, len(choices) - 0.5], "showgrid": False, **ticks}
        data = points(shown, lambda trial: _beside(choices.index(trial.params[name]), trial), value_of, found)
    else:
        if searched.get("log"):
            is_short = searched["high"] < 30 * searched["low"]
            layout["xaxis"] |= {"type": "log", "dtick": "D2" if is_short else 1, "tickformat": "~g"}
        data = points(shown, lambda trial: trial.params[name], value_of, found)
    return Chart(key=key, label=f"{found.objective} by {name}", data=data, layout=layout, height=250)


def _choices(searched: dict[str, Any]) -> list[Any]:
    """The values of a field that has few; none of a range of many."""
    if "choices" in searched:
        return list(searched["choices"])
    low, high, step = searched["low"], searched["high"], searched.get("step") or 1
    is_discrete = searched.get("integer") and not searched.get("log") and (high - low) / step < MAX_DISCRETE
    return list(range(int(low), int(high) + 1, int(step))) if is_discrete else []


def _beside(place: int, trial: Drawn) -> float:
    """A place, moved a little by the trial's number (as the golden ratio spreads them), so that points stay apart."""
    return place + JITTER * (2 * (trial.number * 0.618034 % 1) - 1)


def confusion(answers: Answers) -> Chart | None:
    """What the winner took for what; of many classes, those it confuses most."""
    matrix = answers.figures["confusion"]
    if not matrix:
        return None
    chosen = _most_confused(matrix)
    names = [text(answers.figures["classes"][place]["class"], TICK_LENGTH) for place in chosen]
    counts = [[matrix[row][column] for column in chosen] for row in chosen]
    totals = [sum(matrix[row]) for row in chosen]
    data = {
        "type": "heatmap",
        "z": [  # a share's root: one image of a hundred taken for another class is to be seen, too
            [math.sqrt(count / max(1, total)) for count in line] for line, total in zip(counts, totals, strict=True)
        ],
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0.0, "--cell"], [0.5, "--mid"], [1.0, "--high"]],
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "hoverinfo": "text",
        "hovertext": [
            [f"{of} taken for {name}<br>{count:,} of {total:,}" for name, count in zip(names, line, strict=True)]
            for of, line, total in zip(names, counts, totals, strict=True)
        ],
    }
    if len(chosen) <= MAX_COUNTED:
        said_there = [[str(count) if count else "" for count in line] for line in counts]
        data |= {"text": said_there, "texttemplate": "%{text}"}
    layout = axes("taken for", "class")
    ticks = {"tickvals": list(range(len(names))), "ticktext": names, "ticks": ""}
    for axis in layout.values():
        axis |= {"showgrid": False, "fixedrange": True, **ticks}
    layout["yaxis"]["autorange"] = "reversed"
    layout["margin"] = {"l": 8, "r": 12, "t": 8, "b": 8}
    layout["xaxis"]["tickangle"] = 0 if max(map(len, names)) <= MAX_LEVEL else -45
    is_part = len(chosen) < len(matrix)
    return Chart(
        key="confusion",
        label="confusion matrix of the winner",
        data=[data],
        layout=layout,
        note=f"The {len(chosen)} classes with the most mistakes, of {len(matrix):,}." if is_part else "",
        height=min(680, 150 + 32 * len(chosen)),
    )


def _most_confused(matrix: Sequence[Sequence[int]]) -> list[int]:
    """The classes with the most mistakes, theirs and taken for them; all where there are few."""
    columns = [sum(line) for line in zip(*matrix, strict=True)]
    wrong = [sum(line) + columns[place] - 2 * line[place] for place, line in enumerate(matrix)]
    return sorted(sorted(range(len(matrix)), key=lambda place: -wrong[place])[:MAX_CLASSES])


def plotly_javascript() -> str:
    """What draws the charts: Plotly's own, from its package."""
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

    return str(get_plotlyjs())

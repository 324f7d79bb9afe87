"""Runs, trials and whole studies beside each other: only what differs, and who is better in what. Pure: rows in, plain
data out.

A study stands there with its best trial.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PARTS = ("config", "study", "provenance")
Direction = Literal["max", "min"]
# By which words of its name a metric is known as one that is maximised or minimised.
_BETTER: dict[str, Direction] = {
    "accuracy|acc|f1|auroc|precision|recall|r2|per_second": "max",
    "loss|mae|mse|rmse|error|ece|seconds|ms|bytes": "min",
}


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the things that are compared."""

    name: str
    whole_study: bool
    trial: int | None  # of a study its best; None where it has none
    state: str | None
    run_id: str | None
    objective: str
    config: Mapping[str, Any]
    study: Mapping[str, Any]  # how the study is searched
    provenance: Mapping[str, Any]  # what it was made with
    figures: Mapping[str, float]
    curves: Mapping[str, Sequence[float]]  # metric -> its value of each epoch
    directions: Mapping[str, Direction] = field(default_factory=dict)  # of what the study names as its objectives


def contrast(sides: Sequence[Side]) -> dict[str, Any]:
    """What differs between the sides, a list of values each, in their order; None where a side has none.

    `texts` are what differs in several lines, such as uncommitted changes, as unified diffs against the first side.
    """
    provenance = _differing([side.provenance for side in sides], whole=False)
    texts = {name for name, values in provenance.items() if any("\n" in str(value) for value in values)}
    return {
        "sides": [
            {
                "name": side.name,
                "study": side.whole_study,
                "trial": side.trial,
                "state": side.state,
                "run_id": side.run_id,
            }
            for side in sides
        ],
        "config": _differing([side.config for side in sides]),
        "study": _differing([side.study for side in sides]),
        "provenance": {name: values for name, values in provenance.items() if name not in texts},
        "texts": {
            name: _changes([side.name for side in sides], provenance[name]) for name in provenance if name in texts
        },
        "metrics": _metrics(sides),
        "curves": {
            name: [list(side.curves.get(name, ())) for side in sides]
            for name in dict.fromkeys(name for side in sides for name in side.curves)
        },
    }


def as_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The header and the lines of what `contrast` found, one a field; curves a line an epoch."""
    header = ["part", "name", *(side["name"] for side in found["sides"])]
    lines = [[part, name, *values] for part in PARTS for name, values in found[part].items()]
    lines += [["metrics", name, *metric["values"]] for name, metric in found["metrics"].items()]
    for name, curves in found["curves"].items():
        for epoch in range(max(map(len, curves))):
            lines.append(["curves", f"{name}@{epoch + 1}", *(dict(enumerate(curve)).get(epoch) for curve in curves)])
    return header, lines


def direction(name: str) -> Direction | None:
    """Whether more of a metric is better (`max`) or less; None where neither is."""
    for words, found in _BETTER.items():
        if re.search(rf"(^|_)({words})(_|$)", name):
            return found
    return None


def _metrics(sides: Sequence[Side]) -> dict[str, dict[str, Any]]:
    """Metric -> the values, and which sides have the best of them where there is a better one."""
    named = {name: way for side in sides for name, way in side.directions.items()}
    found = {}
    for name in dict.fromkeys(name for side in sides for name in side.figures):
        values = [side.figures.get(name) for side in sides]
        there = [value for value in values if value is not None and value == value]  # NaN is not
        way = named.get(name) or direction(name)
        best = (max if way == "max" else min)(there) if way and len(set(there)) > 1 else None
        better = [number for number, value in enumerate(values) if best is not None and value == best]
        found[name] = {"values": values, "better": way, "best": better}
    return found


def _differing(of: Sequence[Mapping[str, Any]], *, whole: bool = True) -> dict[str, list[Any]]:
    """Key -> values, where they are not all the same; what is below a key as `key.name`.

    An empty mapping has nothing to compare. Unless they are `whole`, neither has one that lacks a key at its top: that
    was not recorded then.
    """
    flat = [_flat(each) for each in of]
    found = {}
    for key in dict.fromkeys(key for each in flat for key in each):
        values, top = [each.get(key) for each in flat], key.partition(".")[0]
        told = [value for value, each in zip(values, of, strict=True) if (each if whole else top in each)]
        if len({repr(value) for value in told}) > 1:
            found[key] = values
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _changes(names: Sequence[str], texts: Sequence[Any]) -> dict[str, list[str]]:
    """Side -> how its text differs from the first side's, as a unified diff."""
    first, *others = [str(text or "").splitlines() for text in texts]
    return {
        name: list(difflib.unified_diff(first, lines, names[0], name, lineterm="", n=1))
        for name, lines in zip(names[1:], others, strict=True)
        if lines != first
    }

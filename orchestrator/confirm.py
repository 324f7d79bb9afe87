"""Winners without luck: the leaders of a study are trained again with further seeds, and the best mean wins.

The best of many trials owes some of its value to chance, the more so the more there were. Its value is therefore no
part of the mean, which further seeds alone make up. Pure: rows in, figures out.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.tables import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from orchestrator.tables import Trial

MIN_SEEDS, MAX_SEEDS = 2, 30
# Student's t at 97.5%, for 1 to 29 degrees of freedom (https://www.itl.nist.gov/div898/handbook/eda/section3/eda3672.htm).
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045),
)


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """What further seeds say of a trial's configuration: the mean of their values, and its 95% interval."""

    num_seeds: int
    num_failed: int  # of them, which have no value
    mean: float
    low: float
    high: float


def parse(text: str) -> tuple[int, int]:
    """Read `3x5`: how many leaders, with how many further seeds each; `none` is none of either.

    Raises:
        ValueError: not of this form, or too few or too many seeds for an interval.
    """
    if text == "none":
        return 0, 0
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None or not MIN_SEEDS <= int(found[2]) <= MAX_SEEDS:
        raise ValueError(f"expected none, or leaders and seeds as in 3x5, with {MIN_SEEDS} to {MAX_SEEDS} seeds each")
    return int(found[1]), int(found[2])


def missing_seeds(leader: Trial, trials: Iterable[Trial], num_seeds: int) -> list[int]:
    """The seeds with which a leader's configuration is still to be trained: the next ones after its own."""
    tried = {trial.config["seed"] for trial in trials if trial.confirms == leader.number}
    own = leader.config["seed"]
    return [seed for seed in range(own + 1, own + 1 + num_seeds) if seed not in tried]


def confirmed(trials: Iterable[Trial]) -> dict[int, Confirmed]:
    """Trial number -> what further seeds say of it, where all that were begun have ended and some have a value."""
    groups: Mapping[int, list[Trial]] = defaultdict(list)
    for trial in trials:
        if trial.confirms is not None:
            groups[trial.confirms].append(trial)
    whole = {number: group for number, group in groups.items() if all(trial.state.finished for trial in group)}
    found = {number: _of(group) for number, group in whole.items()}
    return {number: each for number, each in found.items() if each is not None}


def _of(group: list[Trial]) -> Confirmed | None:
    values = [trial.value for trial in group if trial.state is State.COMPLETE and trial.value is not None]
    if len(values) < MIN_SEEDS:
        return None
    mean = statistics.fmean(values)
    margin = _T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    num_failed = len(group) - len(values)
    return Confirmed(num_seeds=len(group), num_failed=num_failed, mean=mean, low=mean - margin, high=mean + margin)

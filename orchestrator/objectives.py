"""What a study is to get better at where that is more than one thing: metrics of its epochs, each with a direction.

A study has none of these unless they are named: its trials are then ranked by what their task is judged by, which is
maximised (`recipes.config.objective_of`), and which is always one of several.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.errors import UnknownNameError, UsageError
from recipes.config import METRICS, Part, objective_of
from recipes.speed import ALL_SPEED_METRICS, LATENCY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.budget import Budget
    from orchestrator.pareto import Vector
    from orchestrator.space import Scalar
    from orchestrator.tables import Epoch

KEY = "objectives"
FORM = "expected two or more as in val_accuracy:max,latency_ms:min"
SAMPLERS = ("tpe", "nsga2", "qmc", "random", "grid")  # that draw for several


class Objective(Part):
    """A metric, and whether more of it is better or less."""

    name: str
    direction: Literal["max", "min"]

    @property
    def sign(self) -> int:
        """What makes a value one that is maximised."""
        return 1 if self.direction == "max" else -1

    def __str__(self) -> str:
        return f"{self.name}:{self.direction}"


def take(typed: dict[str, str], *, single: bool) -> tuple[Objective, ...]:
    """Take the key out of `typed`.

    Raises:
        UsageError: it is not of its form, or there is but a `single` configuration.
    """
    if KEY not in typed:
        return ()
    from orchestrator import overrides  # its parser takes a while to import, and tables of results need it not

    text = overrides.split(typed.pop(KEY))[1]
    if single:
        raise UsageError(f"{KEY} belongs to `orch sweep`; `orch train` runs one configuration")
    found = [re.fullmatch(r"(\w+):(max|min)", each) for each in text.split(",")]
    if len(found) < 2 or not all(found):
        raise UsageError(f"{KEY}={text}: {FORM}")
    named = [Objective(name=each[1], direction=each[2]) for each in found if each]
    if len({each.name for each in named}) < len(named):
        raise UsageError(f"{KEY}={text}: a metric is named twice")
    return tuple(named)


def check(named: Sequence[Objective], flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """See that the metrics are there; return the fields that make them so.

    Raises:
        UsageError: one that no epoch has, or what the task is judged by is not among them.
    """
    if not named:
        return {}
    own = objective_of(flat)
    if Objective(name=own, direction="max") not in named:
        raise UsageError(f"{KEY}={describe(named)}: {own}:max must be among them, by it each trial's epoch is chosen")
    if "latency" not in flat:  # not of our training loop: its epochs tell what they like
        return {}
    known = (*METRICS[str(flat.get("task", "classification"))], *ALL_SPEED_METRICS)
    for each in named:
        if each.name not in known:
            raise UnknownNameError("objective", each.name, known)
    return {"latency": True} if any(each.name == LATENCY for each in named) else {}


def check_budget(named: Sequence[Objective], budget: Budget, sampler: str) -> None:
    """See that sampler, pruner and limits are such as know several objectives.

    Raises:
        UsageError: one is not.
    """
    if not named:
        return
    several = "has one objective in view, and this study has several"
    if sampler not in SAMPLERS:
        raise UsageError(f"sampler={sampler} {several}; allowed: auto, {', '.join(SAMPLERS)}")
    if "threshold" in budget.pruner.split(":"):
        raise UsageError(f"pruner={budget.pruner} {several}")
    if budget.patience:
        raise UsageError(f"patience={budget.patience} {several}")
    if budget.confirm != "none":
        raise UsageError(f"confirm={budget.confirm} {several}")


def describe(named: Sequence[Objective]) -> str:
    """As one would type them."""
    return ",".join(map(str, named))


def of_spec(spec: Mapping[str, Any]) -> tuple[Objective, ...]:
    """Those of a study as the record has it."""
    return tuple(Objective.model_validate(each) for each in spec.get(KEY, ()))


def values_at(epochs: Sequence[Epoch], number: int, named: Sequence[Objective]) -> dict[str, float]:
    """What the objectives were after an epoch; what is told but once is as it was told.

    Raises:
        KeyError: none of these epochs has told of one.
    """
    told: dict[str, float] = {}
    for epoch in epochs[:number]:
        told |= epoch.metrics
    return {each.name: told[each.name] for each in named}


def vector(values: Mapping[str, float], named: Sequence[Objective]) -> Vector:
    """The values to maximise."""
    return tuple(each.sign * values[each.name] for each in named)

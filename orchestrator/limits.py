"""When a study has had enough, though its trials are not all done. Pure: rows in, a reason out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.tables import Reason, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.budget import Budget
    from orchestrator.tables import Trial


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit that is reached, in words. One that `stops` lets no trial go on, else those that have begun end.

    `ends_well` is that the study has its result.
    """

    reason: str
    stops: bool = False
    ends_well: bool = True


def reached(budget: Budget, trials: Iterable[Trial], num_epochs: int, objective: str) -> Limit | None:
    """The first limit of a budget that the trials of a study have reached; `num_epochs` are all they trained."""
    trials = [trial for trial in trials if trial.confirms is None]
    num_failed = sum(trial.state is State.FAILED and trial.reason in {Reason.ERROR, Reason.LOST} for trial in trials)
    if budget.max_failures and num_failed >= budget.max_failures:
        return Limit(reason=f"{num_failed} trial(s) failed, all that max_failures= allows", stops=True, ends_well=False)
    if budget.max_epochs_total and num_epochs >= budget.max_epochs_total:
        allowed = f"all that max_epochs_total={budget.max_epochs_total} allows"
        return Limit(reason=f"{num_epochs} epochs are trained, {allowed}", stops=True)
    best = _best(trials)
    if budget.target_value is not None and best is not None and (best.value or 0.0) >= budget.target_value:
        found = f"trial {best.number} has {objective} {best.value:.4f}"
        return Limit(reason=f"{found}, and target_value={budget.target_value:g} is reached")
    if budget.patience and best is not None and (num_since := _num_since(best, trials)) >= budget.patience:
        return Limit(reason=f"{num_since} trials in a row were no better than trial {best.number}, as patience= says")
    return None


def _best(trials: list[Trial]) -> Trial | None:
    complete = [trial for trial in trials if trial.state is State.COMPLETE]
    return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def _num_since(best: Trial, trials: list[Trial]) -> int:
    """How many ended after the best one did, stopped early or not."""
    ended = {State.COMPLETE, State.PRUNED}
    return sum(trial.state in ended and (trial.ended_at or 0.0) > (best.ended_at or 0.0) for trial in trials)

"""How much each searched field had to do with the values that came out, by Optuna's evaluators.

Complete trials alone count, as in `optuna.importance`: what was stopped early has no value to compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import optuna
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from pydantic import TypeAdapter

from orchestrator.search import distribution
from orchestrator.space import Space

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from orchestrator.tables import Trial

MIN_TRIALS = 4  # of fewer nothing can be said
MAX_FANOVA_TRIALS = 150  # its forest takes three seconds of so many and eight fields, of 500 trials fourteen
FANOVA, PED_ANOVA = "fANOVA", "PED-ANOVA"
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Importances:
    """Field -> its share of 1, the largest first, and how that was found."""

    method: str
    num_trials: int
    shares: dict[str, float]


def importances(space: Mapping[str, Any], trials: Sequence[Trial], values: Mapping[int, float]) -> Importances | None:
    """The importance of each field of a record's `space` for `values` (trial -> value, more is better) of trials.

    By fANOVA (Hutter et al. 2014) over fields that all trials have; of fields with conditions or many trials by
    PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255), which asks what it takes to be among the best tenth. None where
    there are too few trials, or all have the same value.
    """
    known = _fields(space)
    counted = [trial for trial in trials if trial.number in values and _fits(trial, known)]
    if not known or len(counted) < MIN_TRIALS or len({values[trial.number] for trial in counted}) < 2:
        return None
    given = {name: distribution(searched) for name, searched in known.items()}
    is_small = len(counted) <= MAX_FANOVA_TRIALS and all(trial.params.keys() >= given.keys() for trial in counted)
    evaluator = FanovaImportanceEvaluator(seed=_SEED) if is_small else PedAnovaImportanceEvaluator()
    found = get_param_importances(_study(counted, values, given), evaluator=evaluator)
    method, shares = FANOVA if is_small else PED_ANOVA, {name: float(share) for name, share in found.items()}
    return Importances(method=method, num_trials=len(counted), shares=shares) if any(shares.values()) else None


def _fields(space: Mapping[str, Any]) -> Space:
    """The searched fields; of a study that was imported, ranges may hold one value alone, which says nothing."""
    told = {name: each for name, each in space.items() if "choices" in each or each["low"] < each["high"]}
    return TypeAdapter(Space).validate_python(told)


def _fits(trial: Trial, known: Space) -> bool:
    """Whether what a trial drew is of the space; Optuna lets a field's range change, so that of an import may not."""
    return all(known[name].takes(value) for name, value in trial.params.items() if name in known)


def _study(
    trials: Sequence[Trial], values: Mapping[int, float], given: Mapping[str, optuna.distributions.BaseDistribution]
) -> optuna.Study:
    """These trials as Optuna sees them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        optuna.trial.create_trial(
            params={name: trial.params[name] for name in given if name in trial.params},
            distributions={name: each for name, each in given.items() if name in trial.params},
            value=values[trial.number],
        )
        for trial in trials
    )
    return study

"""The record as Optuna sees it: an in-memory study, rebuilt from the record, that suggests parameters.

Each draw's generator is seeded from the study's seed and the trial's number, so that a resumed study goes on drawing
as it would have, given the same results.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from orchestrator.space import Choices, Range, Scalar, Space
from orchestrator.tables import Epoch, Reason, State, Trial
from recipes.config import objective_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.samplers import BaseSampler

    from orchestrator.study import SamplerName

_FEASIBLE = "ended well"  # name of the constraint that out of memory and divergence violate


class Search:
    """Suggests the parameters of the next trial; is told how trials ended."""

    def __init__(self, space: Space, sampler: SamplerName, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions = {name: _distribution(searched) for name, searched in space.items()}
        self._sampler, self._seed = sampler, seed
        self._study = optuna.create_study(direction="maximize")
        self._open: dict[int, optuna.Trial] = {}

    def restore(self, trials: Sequence[Trial], epochs: Mapping[int, Sequence[Epoch]]) -> None:
        """Take in what the record holds: ended trials as results, all others as still open."""
        for trial in trials:
            self._study.enqueue_trial(trial.params)
            self._open[trial.number] = self._study.ask(self._distributions)
            if trial.state.finished:
                self.tell(trial, epochs.get(trial.number, []))

    def ask(self, number: int) -> dict[str, Scalar]:
        """Draw the parameters of trial `number`."""
        self._study.sampler = _sampler(self._sampler, _draw_seed(self._seed, number))
        self._open[number] = self._study.ask(self._distributions)
        return dict(self._open[number].params)

    def tell(self, trial: Trial, epochs: Sequence[Epoch]) -> None:
        """Take in how `trial` ended; out of memory and divergence teach the sampler to stay away."""
        asked = self._open.pop(trial.number)
        if trial.state is State.FAILED and trial.reason in {Reason.ERROR, Reason.LOST}:
            self._study.tell(asked, state=TrialState.FAIL)
            return
        objective = objective_of(trial.config)
        for epoch in epochs:
            asked.report(epoch.metrics[objective], epoch.number)
        asked.set_constraint(_FEASIBLE, 1.0 if trial.state is State.FAILED else 0.0)
        if trial.state is State.COMPLETE:
            self._study.tell(asked, trial.value)
        else:
            self._study.tell(asked, state=TrialState.PRUNED)


def _sampler(name: SamplerName, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "tpe":
                return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)


def _draw_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4])


def _distribution(searched: Range | Choices) -> BaseDistribution:
    if isinstance(searched, Choices):
        return CategoricalDistribution(searched.choices)
    if searched.integer:
        return IntDistribution(int(searched.low), int(searched.high), log=searched.log, step=int(searched.step))
    return FloatDistribution(searched.low, searched.high, log=searched.log, step=searched.step or None)

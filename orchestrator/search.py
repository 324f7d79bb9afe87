"""The record as Optuna sees it: an in-memory study, rebuilt from the record, that suggests parameters.

Each draw's generator is seeded from the study's seed and the trial's number, so that a resumed study goes on drawing
as it would have, given the same results. Fields are drawn one after another, each after those that its condition is
about: one whose condition does not hold is not drawn, and the sampler learns nothing from it.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from orchestrator.errors import UsageError
from orchestrator.space import Choices, Range, Scalar, Space, draw, holds, in_order
from orchestrator.tables import Epoch, Reason, State, Trial
from recipes.config import objective_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna.samplers import BaseSampler

    from orchestrator.study import SamplerName

_FEASIBLE = "ended well"  # name of the constraint that out of memory and divergence violate
# How often an impossible configuration is drawn again: by the sampler, then from the whole space.
SAMPLED_TRIES, UNIFORM_TRIES = 20, 2000


class Search:
    """Suggests the parameters of the next trial; is told how trials ended.

    `complaint` says of parameters why they are impossible, or nothing.
    """

    def __init__(
        self,
        space: Space,
        sampler: SamplerName,
        seed: int,
        complaint: Callable[[Mapping[str, Scalar]], str] = lambda _: "",
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = {name: space[name] for name in in_order(space)}
        self._distributions = {name: _distribution(searched) for name, searched in self._space.items()}
        self._sampler, self._seed, self._complaint = sampler, seed, complaint
        self._has_conditions = any(searched.when for searched in space.values())
        self._study = optuna.create_study(direction="maximize")
        self._open: dict[int, optuna.Trial] = {}

    def restore(self, trials: Sequence[Trial], epochs: Mapping[int, Sequence[Epoch]]) -> None:
        """Take in what the record holds: ended trials and those that were paused as results, all others as open.

        A paused trial has the value of its rung. Left open, it would be taken for a poor one, and until the end of a
        study that pauses there would hardly be a result to learn from.
        """
        for trial in trials:
            self._open[trial.number] = self._add(trial.params)
            if trial.state.finished or trial.value is not None:
                self.tell(trial, epochs.get(trial.number, []))

    def ask(self, number: int) -> dict[str, Scalar]:
        """Draw the parameters of trial `number`, as often as it takes for them to be possible.

        Raises:
            UsageError: nothing possible was found.
        """
        for attempt in range(SAMPLED_TRIES):
            seed = _draw_seed(self._seed, number, *([attempt] if attempt else []))
            self._study.sampler = _sampler(self._sampler, seed, has_conditions=self._has_conditions)
            asked = self._drawn()
            if not self._complaint(asked.params):
                self._open[number] = asked
                return dict(asked.params)
            self._study.tell(asked, state=TrialState.FAIL)  # which no sampler looks at
        params = self._uniform(number)
        self._open[number] = self._add(params)
        return params

    def _drawn(self) -> optuna.Trial:
        """A trial whose parameters the sampler draws."""
        asked = self._study.ask()
        for name, searched in self._space.items():
            if holds(searched.when, asked.params):
                _suggest(asked, name, self._distributions[name])
        _forget_undrawn(asked)
        return asked

    def _add(self, params: Mapping[str, Scalar]) -> optuna.Trial:
        """A trial with these parameters."""
        self._study.sampler = optuna.samplers.RandomSampler()  # the quickest; it draws nothing
        self._study.enqueue_trial(dict(params))
        return self._study.ask({name: given for name, given in self._distributions.items() if name in params})

    def _uniform(self, number: int) -> dict[str, Scalar]:
        """Possible parameters, from anywhere in the space."""
        rng = random.Random(_draw_seed(self._seed, number, SAMPLED_TRIES))
        complaint = ""
        for _ in range(UNIFORM_TRIES):
            params = draw(self._space, rng)
            complaint = self._complaint(params)
            if not complaint:
                return params
        tries = SAMPLED_TRIES + UNIFORM_TRIES
        raise UsageError(f"trial {number}: no possible configuration among {tries} draws; the last: {complaint}")

    def is_open(self, number: int) -> bool:
        """Whether nothing was told of trial `number` yet. Optuna can't unsay: of others only `restore` tells anew."""
        return number in self._open

    def tell(self, trial: Trial, epochs: Sequence[Epoch]) -> None:
        """Take in how `trial` ended or where it paused; out of memory and divergence teach the sampler to stay away."""
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


def _suggest(asked: optuna.Trial, name: str, given: BaseDistribution) -> None:
    match given:
        case CategoricalDistribution():
            asked.suggest_categorical(name, given.choices)
        case IntDistribution():
            asked.suggest_int(name, given.low, given.high, step=given.step, log=given.log)
        case FloatDistribution():
            asked.suggest_float(name, given.low, given.high, step=given.step, log=given.log)


def _forget_undrawn(asked: optuna.Trial) -> None:
    """Take back what the sampler noted of fields that then were not drawn, since a record holds nothing of them.

    TPE and GP write what they draw for all fields at once into attributes of these names.
    """
    attributes = asked.storage.get_trial_system_attrs(asked._trial_id)
    for key in attributes:
        if ":relative_params:" in key:
            asked.storage.set_trial_system_attr(asked._trial_id, key, "")


def _sampler(name: SamplerName, seed: int, *, has_conditions: bool) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "tpe":
                # In groups, fields that not all trials have are drawn together with the others.
                return optuna.samplers.TPESampler(
                    seed=seed, multivariate=True, group=has_conditions, constant_liar=True
                )
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)


def _draw_seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4])


def _distribution(searched: Range | Choices) -> BaseDistribution:
    if isinstance(searched, Choices):
        return CategoricalDistribution(searched.choices)
    if searched.integer:
        return IntDistribution(int(searched.low), int(searched.high), log=searched.log, step=int(searched.step))
    return FloatDistribution(searched.low, searched.high, log=searched.log, step=searched.step or None)

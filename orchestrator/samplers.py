"""Optuna's samplers by name, made anew for each draw.

A draw depends on the seed, the number of the trial and the results so far, and on nothing else, so that a study that
was stopped draws as one that was not. Optuna's own TPE, GP and random samplers are such. Three others keep a state
between draws (a counter, a distribution, generations), which here is found again from the results in the order of the
trials' numbers.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.trial import TrialState

from orchestrator.points import from_unit, plain_ranges, to_unit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from orchestrator.space import Scalar, Space

    Distributions = Mapping[str, BaseDistribution]

# These learn from complete trials alone, never from a stopped one.
LEARN_FROM_COMPLETE = frozenset({"gp", "cmaes", "nsga2"})
# Of these a violated constraint would be told in vain: one cannot use it, the other fits a model of it each time.
TAKE_NO_CONSTRAINTS = frozenset({"gp", "cmaes"})
# What these do next comes of all generations before, which a view of some results would cut elsewhere at each draw.
OF_GENERATIONS = frozenset({"cmaes", "nsga2"})
POPULATION_SIZE = 20  # of NSGA-II; Optuna's 50 would be the whole budget of most sweeps of images


def make(name: str, space: Space, distributions: Distributions, seed: int, place: int) -> BaseSampler:
    """The sampler for one draw; `place` is its number, for sequences."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "tpe":
                # In groups, fields that not all trials have are drawn together with the others.
                group = any(searched.when for searched in space.values())
                return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=group, constant_liar=True)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
            case "cmaes":
                return _Cmaes(space, distributions, seed)
            case "qmc":
                return _Sobol(space, distributions, seed, place)
            case "nsga2":
                return _Nsga2(population_size=POPULATION_SIZE, seed=seed)
    assert name == "random", f"{name} does not draw"
    return optuna.samplers.RandomSampler(seed=seed)


class _Jointly(BaseSampler):
    """Draws fields of a space together; those that `_draw` leaves out are drawn at random."""

    def __init__(self, space: Space, distributions: Distributions, seed: int) -> None:
        self._space, self._distributions, self._seed = space, distributions, seed
        self._random = optuna.samplers.RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All of the space, which is known from the start."""
        del study, trial
        return dict(self._distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The fields that are drawn together."""
        del trial, search_space
        return dict(self._draw(study))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """One of the other fields."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _draw(self, study: optuna.Study) -> Mapping[str, Scalar]:
        raise NotImplementedError


class _Sobol(_Jointly):
    """A scrambled Sobol sequence; trial n is its point n (Sobol, 1967; Owen, https://doi.org/10.1006/jcom.1998.0487)."""

    def __init__(self, space: Space, distributions: Distributions, seed: int, place: int) -> None:
        super().__init__(space, distributions, seed)
        self._place = place

    def _draw(self, study: optuna.Study) -> Mapping[str, Scalar]:
        del study
        from scipy.stats.qmc import Sobol  # type: ignore[import-untyped]  # a second to import

        sequence = Sobol(len(self._space), scramble=True, rng=self._seed)
        if self._place:
            sequence.fast_forward(self._place)
        return {
            name: from_unit(self._space[name], place)
            for name, place in zip(self._space, sequence.random(1)[0], strict=True)
        }


class _Cmaes(_Jointly):
    """CMA-ES over the ranges without conditions (Hansen, https://arxiv.org/abs/1604.00772); the rest is random.

    Its distribution starts in the middle, with a sixth of each range as deviation. A generation is told once it is
    whole: the next `population_size` complete trials in the order of their numbers.
    """

    def _draw(self, study: optuna.Study) -> Mapping[str, Scalar]:
        from cmaes import CMA  # type: ignore[import-untyped]

        ranges = plain_ranges(self._space)
        num = len(ranges)
        bounds = np.tile([0.0, 1.0], (num, 1))
        search = CMA(np.full(num, 0.5), 1 / 6, bounds, n_max_resampling=10 * num, seed=self._seed)
        told = [
            (np.array([to_unit(searched, trial.params[name]) for name, searched in ranges.items()]), -trial.values[0])
            for trial in _complete(study)
        ]
        for end in range(search.population_size, len(told) + 1, search.population_size):
            search.tell(told[end - search.population_size : end])
        return {name: from_unit(ranges[name], place) for name, place in zip(ranges, search.ask(), strict=True)}


class _Nsga2(NSGAIISampler):
    """NSGA-II, whose generations are the complete trials in the order of their numbers, `population_size` at a time."""

    def __init__(self, *, population_size: int, seed: int) -> None:
        super().__init__(population_size=population_size, seed=seed)
        self._size = population_size
        self._parents: dict[int, list[FrozenTrial]] = {0: []}

    def get_trial_generation(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """That of the next trial."""
        del trial
        return len(_complete(study)) // self._size

    def get_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """The trials of a generation."""
        return _complete(study)[generation * self._size : (generation + 1) * self._size]

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """The best of all generations before, by selection from one to the next."""
        for number in range(len(self._parents), generation + 1):
            self._parents[number] = self.select_parent(study, number)
        return self._parents[generation]


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

"""The record as Optuna sees it: an in-memory study, rebuilt from the record, that suggests parameters.

Each draw's generator is seeded from the study's seed and the trial's number, so that a resumed study goes on drawing
as it would have, given the same results. Fields are drawn one after another, each after those that its condition is
about: one whose condition does not hold is not drawn, and the sampler learns nothing from it.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from orchestrator import samplers
from orchestrator.errors import UsageError
from orchestrator.points import Points
from orchestrator.recent import RecentStorage
from orchestrator.space import Choices, Range, Scalar, Space, draw, holds, in_order
from orchestrator.starts import Result, result
from orchestrator.study import feasible
from orchestrator.tables import Epoch, State, Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from orchestrator.objectives import Objective
    from orchestrator.study import Study

_FEASIBLE = "ended well"  # name of the constraint that out of memory and divergence violate
# What they are worth to a sampler that sees complete trials alone: less than guessing, by each objective.
_NOTHING_LEARNT = {"val_accuracy": 0.0, "val_f1": 0.0, "val_r2": -1.0}
# How often a configuration that is impossible or was run is drawn again: by the sampler, then from the whole space.
SAMPLED_TRIES, UNIFORM_TRIES = 20, 2000


_DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}


class Search:
    """Suggests the parameters of the next trial, none twice; is told how trials ended.

    `complaint` says of parameters why they are impossible, or nothing. Trial n is the n-th configuration of `queue`,
    where there is one; the sampler draws the fields that it leaves open. `known` are results of another study, from
    which the sampler learns.
    """

    def __init__(
        self,
        space: Space,
        sampler: str,
        seed: int,
        complaint: Callable[[Mapping[str, Scalar]], str] = lambda _: "",
        *,
        objective: str = "val_accuracy",
        objectives: Sequence[Objective] = (),
        queue: Sequence[Mapping[str, Scalar]] = (),
        known: Sequence[Result] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = {name: space[name] for name in in_order(space)}
        self._distributions = {name: distribution(searched) for name, searched in self._space.items()}
        self._sampler, self._seed, self._complaint, self._queue = sampler, seed, complaint, queue
        self._objective, self._objectives = objective, objectives
        self._storage = RecentStorage(everything=sampler in samplers.OF_GENERATIONS, several=bool(objectives))
        directions = [_DIRECTIONS[each.direction] for each in objectives] or [_DIRECTIONS["max"]]
        self._study = optuna.create_study(storage=self._storage, directions=directions)
        self._open: dict[int, optuna.Trial] = {}
        self._told: dict[int, int] = {}  # trial -> Optuna's id of it
        self._points = Points(self._space, _draw_seed(seed, "order"))
        self._order = self._points.listed()  # what has come out of it has been run, is impossible, or is the next
        self._next: dict[str, Scalar] | None = None
        self._run: set[Hashable] = set()
        for each in known:
            self._end(self._add(each.params), each)

    @classmethod
    def of(cls, study: Study) -> Search:
        """The search of a study, which knows nothing of its trials yet."""
        return cls(
            study.space,
            study.sampler,
            study.seed,
            feasible(study).complaint,
            objective=study.objective,
            objectives=study.objectives,
            queue=({},) * study.num_kept + study.queue,  # it begins after what is kept
            known=study.known,
        )

    @property
    def used_up(self) -> bool:
        """Whether all possible configurations have been run; never where they cannot be counted."""
        return self._points.countable and self._next_new() is None

    def restore(self, trials: Sequence[Trial], epochs: Mapping[int, Sequence[Epoch]]) -> None:
        """Take in what the record holds: ended trials and those that were paused as results, all others as open.

        A paused trial has the value of its rung. Left open, it would be taken for a poor one, and until the end of a
        study that pauses there would hardly be a result to learn from.
        """
        for trial in trials:
            self._opened(trial.number, self._add(trial.params))
            if trial.state.finished or trial.value is not None:
                self.tell(trial, epochs.get(trial.number, []))

    def ask(self, number: int) -> dict[str, Scalar]:
        """Draw the parameters of trial `number`, as often as it takes for them to be possible and new.

        Raises:
            UsageError: nothing possible was found, or all has been run.
        """
        given = self._queue[number] if number < len(self._queue) else {}
        asked = self._sampled(number, given) or self._add(self._uniform(number, given))
        return self._opened(number, asked)

    def _opened(self, number: int, asked: optuna.Trial) -> dict[str, Scalar]:
        self._open[number] = asked
        self._run.add(self._points.key(asked.params))
        return dict(asked.params)

    def _sampled(self, number: int, given: Mapping[str, Scalar]) -> optuna.Trial | None:
        """What the sampler draws to the `given` fields, if it comes to something new; a grid has an order instead."""
        rejected: list[optuna.Trial] = []  # open while others are drawn, so that the sampler keeps away from them
        found = None
        while found is None and len(rejected) < (SAMPLED_TRIES if self._sampler != "grid" else 0):
            self._study.sampler = self._sampler_for(number, len(rejected))
            asked = self._drawn(given)
            if self._is_new(asked.params):
                found = asked
            else:
                rejected.append(asked)
        for asked in rejected:
            self._study.tell(asked, state=TrialState.FAIL)  # which no sampler looks at
        return found

    def _sampler_for(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        """The sampler of one draw. A sequence has one seed for all trials; the trial's number is the place in it."""
        first: tuple[int | str, ...] = ("sequence",) if self._sampler == "qmc" else (number,)
        seed = _draw_seed(self._seed, *((number, attempt) if attempt else first))
        return samplers.make(self._sampler, self._space, self._distributions, seed, number)

    def _drawn(self, given: Mapping[str, Scalar]) -> optuna.Trial:
        """A trial whose parameters the sampler draws, but for those that are given."""
        if given:
            self._study.enqueue_trial(dict(given))
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

    def _uniform(self, number: int, given: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """New parameters from anywhere in the space; if there are none with the `given` fields, without them."""
        if self._points.countable and (found := self._next_new(given)) is not None:
            return found
        rng = random.Random(_draw_seed(self._seed, number, SAMPLED_TRIES))
        complaint = ""
        for _ in range(UNIFORM_TRIES):
            params = draw(self._space, rng, given)
            if self._is_new(params):
                return params
            complaint = self._complaint(params) or "it has been run"
        if given:
            return self._uniform(number, {})
        tries = SAMPLED_TRIES + UNIFORM_TRIES
        raise UsageError(f"trial {number}: no possible configuration among {tries} draws; the last: {complaint}")

    def _is_new(self, params: Mapping[str, Scalar]) -> bool:
        return self._points.key(params) not in self._run and not self._complaint(params)

    def _next_new(self, given: Mapping[str, Scalar] | None = None) -> dict[str, Scalar] | None:
        """The next configuration in the seed's order that is new, one with the `given` fields if there is."""
        if given:
            matching = (params for params in self._points.listed() if given.items() <= params.items())
            if (found := self._first_new(matching)) is not None:
                return found
        if self._next is None or not self._is_new(self._next):
            self._next = self._first_new(self._order)
        return self._next

    def _first_new(self, listed: Iterable[dict[str, Scalar]]) -> dict[str, Scalar] | None:
        return next((params for params in listed if self._is_new(params)), None)

    def tell(self, trial: Trial, epochs: Sequence[Epoch]) -> None:
        """Take in how `trial` ended or where it paused; out of memory and divergence teach the sampler to stay away.

        What was told of a trial before, as when it paused, is forgotten.
        """
        asked = self._open.pop(trial.number, None) or self._reopened(trial.number)
        self._told[trial.number] = asked._trial_id
        ended = result(trial, epochs, trial.params, self._objectives)
        if ended is None:
            self._study.tell(asked, state=TrialState.FAIL)
        else:
            self._end(asked, ended)

    def _reopened(self, number: int) -> optuna.Trial:
        """A trial as if nothing had been told of it; it keeps its place among the others."""
        self._storage.reopen(self._told[number])
        self._study.sampler = optuna.samplers.RandomSampler()  # the quickest; it draws nothing
        return optuna.Trial(self._study, self._told[number])

    def _end(self, asked: optuna.Trial, ended: Result) -> None:
        if self._sampler not in samplers.TAKE_NO_CONSTRAINTS:
            asked.set_constraint(_FEASIBLE, 1.0 if ended.state is State.FAILED else 0.0)
        if self._objectives:
            self._end_with_several(asked, ended)
            return
        for number, value in enumerate(ended.values, 1):
            asked.report(value, number)
        if ended.state is State.FAILED and self._sampler in samplers.LEARN_FROM_COMPLETE:
            self._study.tell(asked, _NOTHING_LEARNT[self._objective])
        elif ended.state is State.COMPLETE:
            self._study.tell(asked, ended.value)
        else:
            self._study.tell(asked, state=TrialState.PRUNED)

    def _end_with_several(self, asked: optuna.Trial, ended: Result) -> None:
        """Tell a trial that was stopped as complete with what it had come to, since Optuna takes no epochs of several.

        Whatever dominated it where it was stopped still does, so that it is taken for no better than it is.
        """
        if ended.state is not State.FAILED:
            self._study.tell(asked, list(ended.ends))
        elif self._sampler in samplers.LEARN_FROM_COMPLETE:  # any values: what violates a constraint is the worst
            self._study.tell(asked, [0.0] * len(self._objectives))
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


def _draw_seed(*parts: int | str) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4])


def distribution(searched: Range | Choices) -> BaseDistribution:
    """What Optuna draws a field from."""
    if isinstance(searched, Choices):
        return CategoricalDistribution(searched.choices)
    if searched.integer:
        return IntDistribution(int(searched.low), int(searched.high), log=searched.log, step=int(searched.step))
    return FloatDistribution(searched.low, searched.high, log=searched.log, step=searched.step or None)

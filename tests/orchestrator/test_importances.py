from __future__ import annotations

import random

import pytest

from orchestrator.importances import FANOVA, MAX_FANOVA_TRIALS, PED_ANOVA, importances
from orchestrator.tables import State, Trial

SPACE = {
    "lr": {"low": 1e-4, "high": 1e-1, "log": True, "step": 0, "integer": False},
    "width": {"low": 16, "high": 128, "log": False, "step": 16, "integer": True},
    "optimizer": {"choices": ["adamw", "sgd"]},
}


def drawn(number, **changed):
    chance = random.Random(number)
    params = {"lr": 10 ** chance.uniform(-4, -1), "width": 16 * chance.randint(1, 8), "optimizer": chance.choice("as")}
    params |= {"optimizer": {"a": "adamw", "s": "sgd"}[params["optimizer"]], **changed}
    return Trial(number=number, state=State.COMPLETE, params={name: v for name, v in params.items() if v is not None})


def by_width(trials):
    """The wider the better, and nothing else."""
    return {trial.number: trial.params["width"] / 128 for trial in trials}


@pytest.mark.parametrize(("num_trials", "method"), [(40, FANOVA), (MAX_FANOVA_TRIALS + 50, PED_ANOVA)])
def test_field_that_alone_decides_has_nearly_all_of_the_importance(num_trials, method):
    trials = [drawn(number) for number in range(num_trials)]
    found = importances(SPACE, trials, by_width(trials))
    assert (found.method, found.num_trials) == (method, num_trials)
    assert next(iter(found.shares)) == "width"
    assert found.shares["width"] > 0.8
    assert sum(found.shares.values()) == pytest.approx(1)


def test_fields_that_not_all_trials_have_are_weighed_too():
    space = {**SPACE, "momentum": {"low": 0.5, "high": 0.9, "when": {"optimizer": ["sgd"]}}}
    trials = [drawn(number) for number in range(60)]
    for trial in trials:
        if trial.params["optimizer"] == "sgd":
            trial.params = {**trial.params, "momentum": random.Random(trial.number).uniform(0.5, 0.9)}
    found = importances(space, trials, by_width(trials))
    assert found.method == PED_ANOVA
    assert found.shares.keys() == space.keys()
    assert max(found.shares, key=found.shares.__getitem__) == "width"


@pytest.mark.parametrize("space", [{}, {"lr": {"low": 0.1, "high": 0.1, "log": False, "step": 0, "integer": False}}])
def test_nothing_is_said_where_nothing_is_searched(space):
    trials = [drawn(number) for number in range(10)]
    assert importances(space, trials, by_width(trials)) is None


def test_nothing_is_said_of_too_few_trials_or_equal_values():
    trials = [drawn(number) for number in range(10)]
    assert importances(SPACE, trials, by_width(trials[:3])) is None
    assert importances(SPACE, trials, {trial.number: 0.5 for trial in trials}) is None


def test_trials_that_drew_from_another_range_are_left_out():
    trials = [drawn(number) for number in range(10)] + [drawn(number, width=4096) for number in range(10, 14)]
    assert importances(SPACE, trials, by_width(trials)).num_trials == 10

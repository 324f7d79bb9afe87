"""Pruners: one contract, and what each is known for."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from orchestrator.pruning import PRUNERS, Asha, Hyperband, Median


@pytest.fixture(params=sorted(PRUNERS))
def pruner(request):
    return PRUNERS[request.param]


def test_decisions_fall_on_epochs_before_the_last(pruner):
    for max_epochs in (1, 2, 3, 8, 9, 10, 27, 81, 200):
        for trial in range(30):
            decided = pruner.decision_epochs(trial, max_epochs)
            assert list(decided) == sorted(set(decided))
            assert all(1 <= epoch < max_epochs for epoch in decided)


def test_best_trial_is_never_stopped(pruner):
    values = {trial: (17 * trial % 40) / 40 for trial in range(40)}
    best = max(values, key=values.get)
    for epoch in pruner.decision_epochs(best, 27):
        reached = {trial: value for trial, value in values.items() if epoch in pruner.decision_epochs(trial, 27)}
        assert pruner.goes_on(best, 27, reached)


def test_first_trial_to_reach_a_rung_goes_on(pruner):
    assert pruner.goes_on(0, 27, {0: 0.1})


def test_trials_that_are_equal_are_treated_alike(pruner):
    assert all(pruner.goes_on(trial, 27, dict.fromkeys(range(12), 0.5)) for trial in range(12))


def trained(pruner, num_trials, max_epochs, seed=0):
    """Epochs of each trial when they come one after another, each with a value of its own at all epochs."""
    chance = random.Random(seed)
    values = {trial: chance.random() for trial in range(num_trials)}
    rungs: dict[int, dict[int, float]] = {}
    lengths = {}
    for trial, value in values.items():
        lengths[trial] = max_epochs
        for epoch in pruner.decision_epochs(trial, max_epochs):
            rungs.setdefault(epoch, {})[trial] = value
            if not pruner.goes_on(trial, max_epochs, rungs[epoch]):
                lengths[trial] = epoch
                break
    return lengths, values


@pytest.mark.parametrize(("name", "least", "most"), [("none", 1, 1), ("asha", 0.15, 0.4), ("hyperband", 0.2, 0.7)])
def test_pruner_saves_epochs_and_finishes_the_best(name, least, most):
    lengths, values = trained(PRUNERS[name], 90, 27)
    assert least <= sum(lengths.values()) / (90 * 27) <= most
    assert lengths[max(values, key=values.get)] == 27


@pytest.mark.parametrize(
    ("max_epochs", "rungs"), [(1, ()), (2, (1,)), (3, (1,)), (9, (1, 3)), (15, (2, 5)), (27, (3, 9)), (100, (12, 34))]
)
def test_asha_decides_a_ninth_and_a_third_of_the_way(max_epochs, rungs):
    assert Asha().decision_epochs(0, max_epochs) == rungs


def test_asha_keeps_the_best_third_of_a_rung():
    values = {trial: trial / 10 for trial in range(9)}
    assert [Asha().goes_on(trial, 27, values) for trial in range(9)] == [False] * 6 + [True] * 3


def test_asha_lets_only_the_leader_on_before_a_third_is_a_trial():
    assert Asha().goes_on(1, 27, {0: 0.4, 1: 0.5})
    assert not Asha().goes_on(0, 27, {0: 0.4, 1: 0.5})


def test_hyperband_uses_every_number_of_rungs_and_more_trials_for_more_rungs():
    rungs = Counter(Hyperband().decision_epochs(trial, 27) for trial in range(600))
    assert set(rungs) == {(), (9,), (3, 9), (1, 3, 9)}
    assert rungs[()] < rungs[(9,)] < rungs[(3, 9)] < rungs[(1, 3, 9)]


def test_hyperband_compares_a_bracket_only_with_itself():
    pruner = Hyperband()
    mine = pruner.decision_epochs(0, 27)
    other = next(trial for trial in range(100) if pruner.decision_epochs(trial, 27) != mine)
    rival = next(trial for trial in range(1, 100) if pruner.decision_epochs(trial, 27) == mine)
    assert pruner.goes_on(0, 27, {0: 0.5, other: 0.9})
    assert not pruner.goes_on(0, 27, {0: 0.5, rival: 0.9})


def test_median_stops_what_is_below_the_median_of_enough_others():
    others = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}
    assert not Median().goes_on(0, 27, {**others, 0: 0.29})
    assert Median().goes_on(0, 27, {**others, 0: 0.3})
    del others[5]
    assert Median().goes_on(0, 27, {**others, 0: 0.0})


def test_median_waits_for_the_warm_up():
    assert Median(warmup_epochs=3).decision_epochs(0, 7) == (4, 5, 6)

"""Pruners: one contract, and what each is known for."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy
import pytest

from orchestrator.errors import UnknownNameError
from orchestrator.pruning import PRUNERS, Asha, AshaPause, Hyperband, Ladder, Patient, Percentile, Rung, Threshold, make


@pytest.fixture(params=[*sorted(PRUNERS), "percentile:25", "patient:2:median"])
def pruner(request):
    return make(request.param)


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
    assert not Percentile(kept=50).goes_on(0, 27, {**others, 0: 0.29})
    assert Percentile(kept=50).goes_on(0, 27, {**others, 0: 0.3})
    del others[5]
    assert Percentile(kept=50).goes_on(0, 27, {**others, 0: 0.0})


def test_median_waits_for_the_warm_up():
    assert Percentile(kept=50, warmup_epochs=3).decision_epochs(0, 7) == (4, 5, 6)


def test_percentile_keeps_what_is_among_the_best_of_the_others():
    others = {trial: trial / 8 for trial in range(1, 10)}
    kept = [make("percentile:25").goes_on(0, 27, {**others, 0: value}) for value in (0.5, 0.874, 0.875, 1.5)]
    assert kept == [False, False, True, True]
    values = [0.3, 0.1, 0.9, 0.4, 0.6, 0.2]
    limit = float(numpy.percentile(values, 70))
    table = dict(enumerate(values, 1))
    assert make("percentile:30").goes_on(0, 27, {**table, 0: limit + 1e-9})
    assert not make("percentile:30").goes_on(0, 27, {**table, 0: limit - 1e-9})
    assert make("percentile:30").goes_on(0, 27, {1: 0.9, 2: 0.9, 3: 0.9, 4: 0.9, 0: 0.0}), "too few to tell"


def test_threshold_stops_what_is_below_it_after_the_warm_up_even_the_best():
    pruner = make("threshold:0.5:3")
    assert pruner.decision_epochs(0, 7) == (4, 5, 6)
    assert [pruner.goes_on(0, 7, {0: value, 1: 0.1}) for value in (0.49, 0.5, 0.6)] == [False, True, True]


def test_patient_stops_what_the_other_would_once_it_no_longer_gets_better():
    pruner = make("patient:3:median")
    values = {0: 0.3, **dict.fromkeys(range(1, 7), 0.9)}
    assert not make("median").goes_on(0, 27, values)
    assert pruner.decision_epochs(0, 27) == make("median").decision_epochs(0, 27)
    assert pruner.goes_on(0, 27, values, [0.1, 0.2, 0.3])
    assert pruner.goes_on(0, 27, values, [0.1, 0.4, 0.3, 0.3]), "two epochs without a better one"
    assert not pruner.goes_on(0, 27, values, [0.1, 0.4, 0.3, 0.4, 0.3]), "three"
    assert pruner.goes_on(0, 27, dict.fromkeys(range(7), 0.3), [0.1, 0.4, 0.3, 0.4, 0.3]), "the other lets it"


# -- in order of values, kept


def old_asha(pruner, trial, values):
    return sum(value > values[trial] for value in values.values()) < max(1, len(values) // pruner.eta)


def old_hyperband(pruner, trial, values):
    bracket = pruner._bracket(trial, 27)
    rivals = {number: value for number, value in values.items() if pruner._bracket(number, 27) == bracket}
    return old_asha(bracket, trial, rivals)


def old_percentile(pruner, trial, values):
    others = sorted(value for number, value in values.items() if number != trial)
    if len(others) < pruner.min_trials:
        return True
    place = (len(others) - 1) * (1 - pruner.kept / 100)
    low, high = others[math.floor(place)], others[math.ceil(place)]
    return values[trial] >= low + (high - low) * (place % 1)


def old_promoted(pruner, paused, ranks, num_kept=0):
    for rung in sorted(set(paused.values()), reverse=True):
        order = {number: (rank, -number) for number, rank in ranks[rung].items()}
        best = max((number for number, epoch in paused.items() if epoch == rung), key=order.__getitem__)
        num_better = sum(other > order[best] for other in order.values())
        if num_better < max(num_kept, len(order) // pruner.eta):
            return best
    return None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "formula"),
    [("asha", old_asha), ("hyperband", old_hyperband), ("median", old_percentile), ("percentile:30", old_percentile)],
)
def test_decision_by_a_kept_order_is_that_by_the_whole_table(name, formula, seed):
    """Values of which many are alike; now and then a trial is forgotten."""
    pruner, chance, rung, table = make(name), random.Random(seed), Rung(), {}
    for trial in chance.sample(range(1000), 250):
        table[trial] = chance.randint(0, 30) / 30
        rung.add(trial, table[trial])
        expected = formula(pruner, trial, table)
        assert pruner.goes_on(trial, 27, rung) is pruner.goes_on(trial, 27, table) is expected
        if chance.random() < 0.1:
            table.pop(trial)
            rung.discard(trial)
    assert dict(rung) == table


@pytest.mark.parametrize("seed", range(5))
def test_promotion_by_a_kept_ladder_is_that_by_the_whole_tables(seed):
    """Trials reach rungs, pause, go on and fail at random; many values are alike."""
    pruner, chance, ladder = AshaPause(), random.Random(seed), Ladder()
    paused, ranks, at = {}, {1: {}, 3: {}, 9: {}}, {}
    for _ in range(600):
        trial = chance.choice([*at, *[max(at, default=-1) + 1] * 3])
        if trial in paused:
            ladder.go_on(trial)
            del paused[trial]
        if chance.random() < 0.05 or at.get(trial) == 9:
            ladder.drop(trial)
            at[trial] = 0
            for table in ranks.values():
                table.pop(trial, None)
            continue
        rung = at[trial] = {0: 1, 1: 3, 3: 9}[at.get(trial, 0)]
        ranks[rung][trial] = (chance.randint(0, 9) / 9, -chance.randint(0, 3) / 3)
        ladder.reach(trial, rung, ranks[rung][trial])
        if chance.random() < 0.8:
            paused[trial] = rung
            ladder.pause(trial, rung)
        for num_kept in (0, 1):
            expected = old_promoted(pruner, paused, ranks, num_kept)
            assert pruner.first(ladder, num_kept=num_kept) == expected
            assert pruner.promoted(paused, ranks, num_kept=num_kept) == expected


# -- pause and promote


def ladder(num_trials, max_epochs, num_workers=1, pruner=AshaPause(), seed=0):  # noqa: B008
    """Epochs of each trial, of a value of its own, as `num_workers` train them in turn, an epoch each a step."""
    values = random.Random(seed).sample(range(num_trials), num_trials)
    epochs, paused, running = {}, {}, []
    ranks = {rung: {} for rung in pruner.decision_epochs(0, max_epochs)}
    while True:
        while len(running) < num_workers:
            trial = pruner.promoted(paused, ranks)
            if trial is None and len(epochs) < num_trials:
                trial = len(epochs)
            if trial is None and not running:
                trial = pruner.promoted(paused, ranks, num_kept=1)
            if trial is None:
                break
            paused.pop(trial, None)
            epochs.setdefault(trial, 0)
            running.append(trial)
        if not running:
            return epochs, values
        for trial in list(running):
            epochs[trial] += 1
            if epochs[trial] in ranks:
                ranks[epochs[trial]][trial] = (values[trial], 0.0)
                paused[trial] = epochs[trial]
            if epochs[trial] in ranks or epochs[trial] == max_epochs:
                running.remove(trial)


@pytest.mark.parametrize(
    ("min_epochs", "max_epochs", "rungs"),
    [(1, 1, ()), (1, 2, (1,)), (1, 3, (1,)), (1, 27, (1, 3, 9)), (1, 28, (1, 3, 9, 27)), (2, 27, (2, 6, 18))],
)
def test_pausing_asha_has_the_rungs_of_the_paper(min_epochs, max_epochs, rungs):
    assert AshaPause(min_epochs=min_epochs).decision_epochs(0, max_epochs) == rungs
    assert not AshaPause().goes_on(0, max_epochs, {0: 1.0})


@pytest.mark.parametrize("num_workers", [1, 4, 16])
def test_pausing_asha_trains_the_best_to_the_end_and_few_others(num_workers):
    epochs, values = ladder(81, 27, num_workers)
    assert len(epochs) == 81
    assert epochs[max(epochs, key=values.__getitem__)] == 27
    # Halving that knows all values at once trains 81, 27, 9 and 3 trials to 1, 3, 9 and 27 epochs.
    assert 243 <= sum(epochs.values()) <= 1.6 * 243
    reached = [sum(length >= rung for length in epochs.values()) for rung in (1, 3, 9, 27)]
    assert all(above >= below // 3 for below, above in itertools.pairwise(reached))


def test_pausing_asha_in_order_of_worth_promotes_the_best_third_exactly():
    pruner = AshaPause()
    ranks = {1: {trial: (float(trial), 0.0) for trial in range(9)}}
    paused = dict.fromkeys(range(9), 1)
    found = []
    while (trial := pruner.promoted(paused, ranks)) is not None:
        found.append(trial)
        del paused[trial]
    assert found == [8, 7, 6]


def test_pausing_asha_serves_the_highest_rung_first():
    ranks = {1: {trial: (float(trial), 0.0) for trial in range(9)}, 3: dict.fromkeys((6, 7, 8), (0.1, 0.0))}
    paused = {**dict.fromkeys(range(6), 1), 6: 3, 7: 3, 8: 3}
    assert AshaPause().promoted(paused, ranks) == 6, "of equals the earlier"
    ranks[3][7] = (0.1, 0.5)
    assert AshaPause().promoted(paused, ranks) == 7, "of equal values that of the lower loss"


def test_pausing_asha_promotes_nobody_from_a_rung_of_fewer_than_eta_unless_asked():
    assert AshaPause().promoted({0: 1, 1: 1}, {1: {0: (0.5, 0.0), 1: (0.6, 0.0)}}) is None
    assert AshaPause().promoted({0: 1, 1: 1}, {1: {0: (0.5, 0.0), 1: (0.6, 0.0)}}, num_kept=1) == 1
    assert AshaPause().promoted({}, {}) is None


@pytest.mark.parametrize("num_trials", [1, 2, 5, 20])
def test_pausing_asha_leaves_a_winner_however_few_there_are(num_trials):
    epochs, values = ladder(num_trials, 15)
    assert 15 in epochs.values()
    if num_trials < 3:
        assert epochs[max(epochs, key=values.__getitem__)] == 15


@pytest.mark.parametrize(
    ("text", "pruner"),
    [
        ("asha", Asha()),
        ("asha-pause", AshaPause()),
        ("asha-pause:2", AshaPause(min_epochs=2)),
        ("percentile:25", Percentile(kept=25)),
        ("threshold:0.5", Threshold(lowest=0.5)),
        ("threshold:-1e-1:3", Threshold(lowest=-0.1, warmup_epochs=3)),
        ("patient:5:median", Patient(patience=5, wrapped=Percentile(kept=50))),
        ("patient:2:percentile:12.5", Patient(patience=2, wrapped=Percentile(kept=12.5))),
    ],
)
def test_pruner_is_made_of_its_name(text, pruner):
    assert make(text) == pruner


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("asha:3", "asha takes no argument"),
        ("none:", "none takes no argument"),
        *((f"asha-pause:{epochs}", "a whole number of epochs of at least 1") for epochs in ("", "0", "x", "1.5")),
        *((f"percentile{kept}", "a number between 0 and 100") for kept in ("", ":0", ":100", ":x", ":nan", ":25:3")),
        *((f"threshold{lowest}", "expected a number, found") for lowest in ("", ":", ":x", ":nan", ":inf")),
        ("threshold:0.5:0", "a whole number of epochs"),
        ("patient", "expected patient:EPOCHS:PRUNER"),
        ("patient:median", "expected patient:EPOCHS:PRUNER"),
        ("patient:0:median", "a whole number of epochs"),
        ("patient:5:median:3", "median takes no argument"),
        ("patient:5:asha-pause", "asha-pause pauses"),
    ],
)
def test_pruner_with_an_argument_that_it_does_not_take_is_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(text)


def test_unknown_pruner_is_met_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match="did you mean 'asha-pause'"):
        make("asha-paus")

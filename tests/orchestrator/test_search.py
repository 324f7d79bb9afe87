"""What Optuna is told of the record, and what it suggests."""

from __future__ import annotations

import statistics

import pytest

from orchestrator.search import Search
from orchestrator.space import Choices, Range
from orchestrator.tables import Epoch, Reason, State, Trial

SPACE = {
    "lr": Range(low=1e-4, high=1e-1, log=True),
    "depth": Range(low=2, high=6, step=2, integer=True),
    "width": Range(low=8, high=128, log=True, step=1, integer=True),
    "dropout": Range(low=0.0, high=0.4, step=0.1),
    "optimizer": Choices(choices=("sgd", "adamw")),
    "batch_norm": Choices(choices=(True, False)),
}
LINE = {"x": Range(low=0.0, high=1.0)}


def trial(number, params, state=State.COMPLETE, value=None, reason=None):
    return Trial(number=number, params=params, config=params, state=state, value=value, reason=reason)


def epochs(*values):
    return [Epoch(number=number, metrics={"val_accuracy": value}) for number, value in enumerate(values, 1)]


def history(search, num_trials):
    """Draw and end trials in every way there is; return what the record would hold."""
    trials, trained = [], {}
    for number in range(num_trials):
        params = search.ask(number)
        value = round(1 - abs(params["dropout"] - 0.2) - params["lr"], 4)
        match number % 6:
            case 0 | 1:
                ended, trained[number] = trial(number, params, value=value), epochs(value / 2, value)
            case 2:
                ended, trained[number] = trial(number, params, State.PRUNED, value=value), epochs(value)
            case 3:
                ended = trial(number, params, State.FAILED, reason=Reason.OOM)
            case 4:
                ended, trained[number] = trial(number, params, State.FAILED, reason=Reason.ERROR), epochs(value)
            case _:
                ended = trial(number, params, State.WAITING)
        trials.append(ended)
        if ended.state.finished:
            search.tell(ended, trained.get(number, []))
    return trials, trained


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_drawn_values_are_of_the_space_and_its_types(sampler):
    search = Search(SPACE, sampler, seed=0)
    for number in range(30):
        params = search.ask(number)
        assert set(params) == set(SPACE)
        assert 1e-4 <= params["lr"] <= 1e-1
        assert params["depth"] in (2, 4, 6)
        assert 8 <= params["width"] <= 128
        assert {type(params["depth"]), type(params["width"])} == {int}
        assert params["dropout"] == pytest.approx(round(params["dropout"], 1))
        assert params["optimizer"] in ("sgd", "adamw")
        assert params["batch_norm"] in (True, False)


def test_draw_is_told_by_the_seed_and_the_number():
    def first(seed, number):
        return Search(SPACE, "tpe", seed).ask(number)["lr"]

    assert first(1, 0) == first(1, 0)
    assert len({first(seed, number) for seed in (1, 2) for number in (0, 1, 2)}) == 6


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_resumed_search_draws_as_one_that_never_stopped(sampler):
    search = Search(SPACE, sampler, seed=3)
    trials, trained = history(search, 24)
    resumed = Search(SPACE, sampler, seed=3)
    resumed.restore(trials, trained)
    assert [resumed.ask(number) for number in (24, 25)] == [search.ask(number) for number in (24, 25)]


def test_trial_that_waited_through_a_resume_can_be_told():
    search = Search(LINE, "tpe", seed=0)
    search.restore([trial(0, {"x": 0.5}, State.WAITING)], {})
    search.tell(trial(0, {"x": 0.5}, value=0.9), epochs(0.9))


def suggested(told, num_draws=10):
    """The mean of x that a search suggests after `told(number, x)` ended forty random trials."""
    search = Search(LINE, "tpe", seed=0)
    trials, trained = {}, {}
    for number, (params, *ended) in enumerate(told):
        trials[number] = trial(number, params, *ended[:-1])
        trained[number] = epochs(*ended[-1])
    search.restore(list(trials.values()), trained)
    return statistics.mean(search.ask(len(trials) + draw)["x"] for draw in range(num_draws))


def line(num=40):
    return [{"x": (7 * number % num) / num} for number in range(num)]


@pytest.mark.parametrize("state", [State.COMPLETE, State.PRUNED])
@pytest.mark.parametrize("peak", [0.1, 0.9])
def test_tpe_learns_where_values_are_high(peak, state):
    told = [(p, state, 1 - abs(p["x"] - peak), None, [1 - abs(p["x"] - peak)]) for p in line()]
    assert suggested(told) == pytest.approx(peak, abs=0.15)


@pytest.mark.parametrize("reason", [Reason.OOM, Reason.DIVERGED])
def test_tpe_stays_away_from_what_memory_or_mathematics_refused(reason):
    """Above one half everything looks better, until it fails."""
    told = [
        (p, State.FAILED, None, reason, [0.8, 0.9]) if p["x"] > 0.5 else (p, State.PRUNED, 0.5, None, [0.5])
        for p in line()
    ]
    assert suggested(told) < 0.5


def test_trials_that_failed_by_an_error_are_not_seen():
    search = Search(LINE, "tpe", seed=0)
    failed = [trial(number, params, State.FAILED, None, Reason.ERROR) for number, params in enumerate(line())]
    search.restore(failed, {number: epochs(0.1) for number in range(40)})
    assert search.ask(40) == Search(LINE, "tpe", seed=0).ask(40)

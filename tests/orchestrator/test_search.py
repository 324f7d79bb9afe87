"""What Optuna is told of the record, and what it suggests."""

from __future__ import annotations

import math
import random
import statistics

import optuna
import pytest
from optuna.samplers._tpe.sampler import _split_trials
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from orchestrator import recent, samplers
from orchestrator.errors import UsageError
from orchestrator.search import Search
from orchestrator.space import Choices, Range
from orchestrator.starts import Result
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
PLANE = {**LINE, "y": Range(low=0.0, high=1.0)}
# The Gaussian process has few fields here: a draw of it takes the longer the more there are.
FEW = {"lr": SPACE["lr"], "depth": SPACE["depth"], "dropout": SPACE["dropout"]}
SPACES = {"tpe": SPACE, "gp": FEW, "cmaes": SPACE, "qmc": SPACE, "nsga2": SPACE, "random": SPACE}
SMALL = {"width": Range(low=8, high=12, step=2, integer=True), "norm": Choices(choices=(True, False))}
GRID = {**SMALL, "rate": Range(low=0.1, high=0.3, step=0.1)}
SAMPLERS = [*SPACES, "grid"]


def trial(number, params, state=State.COMPLETE, value=None, reason=None):
    return Trial(number=number, params=params, config=params, state=state, value=value, reason=reason)


def epochs(*values):
    return [Epoch(number=number, metrics={"val_accuracy": value}) for number, value in enumerate(values, 1)]


def history(search, num_trials, start=0):
    """Draw and end trials in every way there is; return what the record would hold."""
    trials, trained = [], {}
    for number in range(start, start + num_trials):
        params = search.ask(number)
        value = round(1 - abs(params.get("dropout", 0) - 0.2) - params.get("lr", 0), 4)
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


@pytest.mark.parametrize("sampler", [sampler for sampler in SPACES if sampler != "gp"])
def test_drawn_values_are_of_the_space_and_its_types(sampler):
    search = Search(SPACE, sampler, seed=0)
    for number in range(30):
        params = search.ask(number)
        search.tell(trial(number, params, value=params["lr"]), epochs(params["lr"]))
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


@pytest.mark.parametrize("sampler", [pytest.param("gp", marks=pytest.mark.slow), *(s for s in SAMPLERS if s != "gp")])
def test_resumed_search_draws_as_one_that_never_stopped(sampler):
    space = SPACES.get(sampler, GRID)
    search = Search(space, sampler, seed=3)
    trials, trained = history(search, 14 if sampler == "grid" else 21 if sampler == "gp" else 24)
    resumed = Search(space, sampler, seed=3)
    resumed.restore(trials, trained)
    following = range(len(trials), len(trials) + 2)
    assert [resumed.ask(number) for number in following] == [search.ask(number) for number in following]


@pytest.mark.parametrize("sampler", ["cmaes", "nsga2"])
def test_sampler_of_generations_goes_on_as_before_through_many_of_them(sampler):
    """Resumed in the middle of a generation, and told of a trial that ended long after its neighbours."""
    search = Search(SPACE, sampler, seed=3)
    trials, trained = history(search, 130)
    late = trial(5, trials[5].params, value=0.9)
    trials[5], trained[5] = late, epochs(0.9)
    search.tell(late, trained[5])
    resumed = Search(SPACE, sampler, seed=3)
    resumed.restore(trials, trained)
    assert history(resumed, 12, 130)[0][-1].params == history(search, 12, 130)[0][-1].params


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


@pytest.mark.parametrize("state", [State.PAUSED, State.RUNNING, State.WAITING])
def test_trial_that_was_paused_is_learned_from_as_if_pruned_there(state):
    told = [(p, 1 - abs(p["x"] - 0.9)) for p in line()]

    def after(state):
        search = Search(LINE, "tpe", seed=0)
        trials = [trial(number, p, state, value) for number, (p, value) in enumerate(told)]
        search.restore(trials, {number: epochs(value) for number, (_, value) in enumerate(told)})
        return [search.ask(number)["x"] for number in range(40, 50)]

    assert after(state) == after(State.PRUNED)


def as_told(search):
    """What a search's storage holds of each trial that a sampler may see."""
    trials = search._study.get_trials(deepcopy=False)
    return [(each.params, each.state, each.values, each.intermediate_values, each.constraints) for each in trials]


@pytest.mark.parametrize("sampler", [sampler for sampler in SPACES if sampler != "gp"])
def test_paused_trial_that_is_told_again_counts_as_in_a_new_search(sampler):
    """Trials pause after one epoch; of those some end in every way there is, others pause again or still wait."""
    search, chance = Search(SPACE, sampler, seed=3), random.Random(0)
    trials, trained = [], {}
    for number in range(60):
        value = chance.random()
        trials.append(trial(number, search.ask(number), State.PAUSED, value))
        trained[number] = epochs(value)
        search.tell(trials[-1], trained[number])
    ends = [State.COMPLETE, State.PRUNED, State.PAUSED, (State.FAILED, Reason.OOM), (State.FAILED, Reason.ERROR), None]
    for number in chance.sample(range(60), 60):
        state, reason = end if isinstance(end := ends[number % 6], tuple) else (end, None)
        if state is not None:
            values = [trials[number].value, chance.random()]
            trials[number] = trial(number, trials[number].params, state, max(values), reason)
            trained[number] = epochs(*values)
            search.tell(trials[number], trained[number])
    anew = Search(SPACE, sampler, seed=3)
    anew.restore(trials, trained)
    assert as_told(search) == as_told(anew)
    following = range(60, 64)
    assert [search.ask(number) for number in following] == [anew.ask(number) for number in following]


# -- long studies


ENDS = [(State.COMPLETE, None), (State.PRUNED, None), (State.FAILED, Reason.OOM), (State.FAILED, Reason.ERROR)]


def with_results(num, seed=0, shares=(1, 1, 1, 1)):
    """A search that was told of `num` trials which ended in every way, by their shares of `ENDS`."""
    chance = random.Random(seed)
    search, trials, trained = Search(PLANE, "tpe", seed=0), [], {}
    for number in range(num):
        ((state, reason),) = chance.choices(ENDS, shares)
        params, value = {"x": chance.random(), "y": chance.random()}, round(chance.random(), 2)
        trials.append(trial(number, params, state, None if reason else value, reason))
        trained[number] = epochs(*[value] * chance.randint(1, 4))
    search.restore(trials, trained)
    return search, trials, trained


def shown(search, *states):
    return [each.number for each in search._study.get_trials(deepcopy=False, states=states or None)]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2", "qmc"])
def test_draws_of_a_study_that_is_not_long_are_of_all_results(sampler, monkeypatch):
    drawn = history(Search(SPACE, sampler, seed=3), 60)[0]
    monkeypatch.setattr("orchestrator.search.RecentStorage", lambda **_: InMemoryStorage())
    assert [each.params for each in drawn] == [each.params for each in history(Search(SPACE, sampler, seed=3), 60)[0]]


def test_thousand_results_are_all_shown_and_of_more_the_latest_and_the_best():
    search, trials, _ = with_results(1700)
    learnt = [each for each in trials if each.reason is not Reason.ERROR]
    assert len(learnt) > recent.NUM_LATEST + recent.NUM_BEST
    latest = {each.number for each in learnt[-recent.NUM_LATEST :]}
    complete = [each for each in learnt if each.state is State.COMPLETE]
    best = {each.number for each in sorted(complete, key=lambda each: -each.value)[: recent.NUM_BEST]}
    assert shown(search) == sorted(latest | best)
    assert best - latest
    few, all_of_them, _ = with_results(recent.NUM_LATEST)
    assert shown(few) == [each.number for each in all_of_them if each.reason is not Reason.ERROR]


@pytest.mark.parametrize("shares", [(1, 1, 1, 1), (1, 20, 10, 1), (0, 1, 20, 1)])
def test_good_results_are_those_of_all_that_there_are(shares, monkeypatch):
    """By Optuna's own order, also where few are complete."""
    monkeypatch.setattr(recent, "NUM_LATEST", 50)
    monkeypatch.setattr(recent, "NUM_BEST", 25)
    search, *_ = with_results(200, shares=shares)
    everything = InMemoryStorage.get_all_trials(search._storage, 0, False, (TrialState.COMPLETE, TrialState.PRUNED))
    some = search._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert len(some) < len(everything)
    good = [{each.number for each in _split_trials(search._study, given, 25)[0]} for given in (some, everything)]
    assert good[0] == good[1]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "cmaes"])
def test_resumed_long_study_draws_as_one_that_never_stopped(sampler, monkeypatch):
    monkeypatch.setattr(recent, "NUM_LATEST", 20)
    monkeypatch.setattr(recent, "NUM_BEST", 5)
    search = Search(SPACE, sampler, seed=3)
    trials, trained = history(search, 61)
    late = trial(5, trials[5].params, value=0.9)  # it ended long after its neighbours
    trials[5], trained[5] = late, epochs(0.9)
    search.tell(late, trained[5])
    resumed = Search(SPACE, sampler, seed=3)
    resumed.restore(trials, trained)
    following = range(61, 64)
    assert [resumed.ask(number) for number in following] == [search.ask(number) for number in following]


@pytest.mark.parametrize("sampler", ["nsga2", "cmaes"])
def test_sampler_of_generations_is_shown_them_all(sampler, monkeypatch):
    drawn = history(Search(SPACE, sampler, seed=3), 60)[0]
    monkeypatch.setattr(recent, "NUM_LATEST", 20)
    monkeypatch.setattr(recent, "NUM_BEST", 5)
    assert [each.params for each in drawn] == [each.params for each in history(Search(SPACE, sampler, seed=3), 60)[0]]


# -- conditions and constraints

CONDITIONAL = {
    "dropout": Range(low=0.0, high=0.4),
    "nesterov": Choices(choices=(True, False), when={"optimizer": "sgd", "depth": [2, 3]}),
    "momentum": Range(low=0.5, high=0.99, when={"optimizer": "sgd"}),
    "lr": Range(low=1e-4, high=1e-1, log=True),
    "beta2": Range(low=0.9, high=0.999, when={"optimizer": ["adamw", "muon"]}),
    "optimizer": Choices(choices=("sgd", "adamw", "muon")),
    "depth": Range(low=1, high=4, step=1, integer=True, when={"optimizer": ["sgd", "adamw"]}),
}
RARE = {"x": Range(low=0.0, high=1.0), "y": Range(low=0.0, high=1.0), "z": Choices(choices=("a", "b"), when={"y": 2})}


def drawn_by(params):
    """The fields that a configuration of `CONDITIONAL` has."""
    found = {"dropout", "lr", "optimizer"}
    found |= {"momentum"} if params["optimizer"] == "sgd" else {"beta2"}
    found |= {"depth"} if params["optimizer"] != "muon" else set()
    return found | ({"nesterov"} if params["optimizer"] == "sgd" and params["depth"] in (2, 3) else set())


def odd(params):
    """A complaint about half of the configurations."""
    return "" if params["lr"] < 0.01 and params["dropout"] < 0.3 else "too odd"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_fields_whose_condition_does_not_hold_are_not_drawn(sampler):
    search = Search(CONDITIONAL, sampler, seed=0)
    trials, _ = history(search, 60)
    assert {row.params["optimizer"] for row in trials} == {"sgd", "adamw", "muon"}
    for row in trials:
        assert set(row.params) == drawn_by(row.params)


@pytest.mark.parametrize("complaint", [lambda _: "", odd], ids=["free", "constrained"])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_resumed_conditional_search_draws_as_one_that_never_stopped(sampler, complaint):
    search = Search(CONDITIONAL, sampler, 3, complaint)
    trials, trained = history(search, 24)
    resumed = Search(CONDITIONAL, sampler, 3, complaint)
    resumed.restore(trials, trained)
    assert [resumed.ask(number) for number in range(24, 32)] == [search.ask(number) for number in range(24, 32)]


@pytest.mark.parametrize("peak", [0.6, 0.9])
def test_tpe_learns_a_conditional_field_from_the_trials_that_have_it(peak):
    search = Search({name: CONDITIONAL[name] for name in ("optimizer", "momentum")}, "tpe", seed=0)
    trials, trained = [], {}
    for number in range(60):
        momentum = 0.5 + (7 * number % 49) / 100
        params = {"optimizer": "sgd", "momentum": momentum} if number % 2 else {"optimizer": "adamw"}
        value = 1 - abs(momentum - peak) if number % 2 else 0.5
        trials.append(trial(number, params, value=value))
        trained[number] = epochs(value)
    search.restore(trials, trained)
    drawn = [search.ask(number) for number in range(60, 80)]
    assert statistics.mean(p["momentum"] for p in drawn if p["optimizer"] == "sgd") == pytest.approx(peak, abs=0.1)


def test_tpe_draws_fields_of_one_condition_together():
    """Only where both are alike they are good."""
    pair = {name: Range(low=0.0, high=1.0, when={"optimizer": "sgd"}) for name in "ab"}
    search = Search({"optimizer": Choices(choices=("sgd", "adamw")), **pair}, "tpe", seed=0)
    trials, trained = [], {}
    for number in range(100):
        a, b = (7 * number % 100) / 100, (43 * number % 100) / 100
        params = {"optimizer": "sgd", "a": a, "b": b} if number % 4 else {"optimizer": "adamw"}
        value = 1 - abs(a - b) if number % 4 else 0.1
        trials.append(trial(number, params, value=value))
        trained[number] = epochs(value)
    search.restore(trials, trained)
    apart = [abs(p["a"] - p["b"]) for p in map(search.ask, range(100, 130)) if p["optimizer"] == "sgd"]
    assert statistics.mean(apart) < 0.15


def test_trial_without_any_parameter_is_drawn_and_restored():
    space = {"a": Choices(choices=(1, 2)), "b": Range(low=0.0, high=1.0, when={"a": 1})}
    search = Search(space, "random", seed=0)
    params = [search.ask(number) for number in range(6)]
    assert {frozenset(p) for p in params} == {frozenset("a"), frozenset("ab")}
    search = Search(LINE, "tpe", seed=0)
    search.restore([trial(0, {}, State.WAITING)], {})
    search.tell(trial(0, {}, value=0.5), epochs(0.5))


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_impossible_configurations_are_drawn_again_and_always_the_same(sampler):
    def drawn(complaint):
        search = Search(CONDITIONAL, sampler, 1, complaint)
        return [row.params for row in history(search, 24)[0]]

    free, constrained = drawn(lambda _: ""), drawn(odd)
    assert all(not odd(params) for params in constrained)
    assert constrained == drawn(odd)
    first = next(number for number, params in enumerate(free) if odd(params))
    assert constrained[:first] == free[:first], "what is possible is drawn as without constraints"


def test_rare_configurations_are_found_anywhere_in_the_space():
    search = Search(RARE, "tpe", 0, lambda params: "" if abs(params["x"] - params["y"]) < 0.002 else "apart")
    drawn = [search.ask(number) for number in range(3)]
    assert all(abs(params["x"] - params["y"]) < 0.002 for params in drawn)
    assert len({params["x"] for params in drawn}) == 3


def test_search_without_a_possible_configuration_ends_in_one_line():
    with pytest.raises(UsageError, match=r"^trial 7: no possible configuration among 2020 draws; the last: never$"):
        Search(LINE, "tpe", 0, lambda _: "never").ask(7)


def plane(num=60):
    return [{"x": (7 * number % num) / num, "y": (11 * number % num) / num} for number in range(num)]


def distance(params, peak):
    return abs(params["x"] - peak) + abs(params["y"] - peak)


@pytest.mark.parametrize(("sampler", "num_draws"), [("gp", 1), ("cmaes", 100), ("nsga2", 100)])
@pytest.mark.parametrize("peak", [0.1, 0.9])
def test_other_samplers_learn_where_values_are_high(sampler, num_draws, peak):
    search = Search(PLANE, sampler, seed=0)
    search.restore([trial(number, p, value=-distance(p, peak)) for number, p in enumerate(plane())], {})
    drawn = [search.ask(60 + draw) for draw in range(num_draws)]
    assert statistics.mean(distance(params, peak) for params in drawn) < 0.7, "at random it is 0.82"


def test_gaussian_process_stays_away_from_what_memory_refused():
    """Up to one half it gets better and better, beyond it all fail."""
    search = Search(PLANE, "gp", seed=0)
    told = [
        trial(number, p, State.FAILED, reason=Reason.OOM) if p["x"] > 0.5 else trial(number, p, value=1 + p["x"])
        for number, p in enumerate(plane())
    ]
    search.restore(told, {})
    assert search.ask(60)["x"] < 0.55


def test_what_diverged_is_worse_than_a_guess_by_the_objective_too():
    """R² of a poor model is below 0, which for an accuracy is the worst there is."""
    search = Search(PLANE, "gp", seed=0, objective="val_r2")
    told = [
        trial(number, p, State.FAILED, reason=Reason.DIVERGED) if p["x"] > 0.5 else trial(number, p, value=p["x"] - 0.8)
        for number, p in enumerate(plane())
    ]
    search.restore(told, {})
    assert search.ask(60)["x"] < 0.55


def test_cmaes_fails_ever_less_where_what_is_better_is_near_what_memory_refuses():
    search, refused = Search(PLANE, "cmaes", seed=0), []
    for number in range(120):
        params = search.ask(number)
        refused.append(params["x"] + params["y"] > 0.9)
        failed = trial(number, params, State.FAILED, reason=Reason.OOM)
        search.tell(failed if refused[-1] else trial(number, params, value=1 + params["x"]), [])
    assert sum(refused[-40:]) < sum(refused[:40]) / 2


def test_generations_are_optuna_s_where_trials_end_one_after_the_other():
    """Optuna's own sampler keeps its generations in the study; ours finds them again from the results."""
    theirs = optuna.create_study(direction="maximize")
    theirs.sampler = optuna.samplers.NSGAIISampler(population_size=samplers.POPULATION_SIZE, seed=0)
    search = Search(SPACE, "nsga2", seed=0)
    for number in range(90):
        asked = theirs.ask(search._distributions)
        value = asked.params["lr"] + 1e-6 * number  # no two alike: their order is another
        theirs.tell(asked, value)
        search.restore([trial(number, asked.params, value=value)], {})
    ours = samplers.make("nsga2", SPACE, search._distributions, 0, 90)
    for generation in range(5):
        parents = [
            sampler.get_parent_population(of, generation)
            for sampler, of in ((theirs.sampler, theirs), (ours, search._study))
        ]
        assert {each.number for each in parents[0]} == {each.number for each in parents[1]}
        assert bool(parents[0]) == bool(generation)


def test_cmaes_draws_ever_closer_to_the_best():
    search = Search({"x": LINE["x"], "y": Range(low=1e-4, high=1.0, log=True)}, "cmaes", seed=0)
    distances = []
    for number in range(120):
        params = search.ask(number)
        distances.append(abs(params["x"] - 0.3) + abs(math.log10(params["y"]) + 3))
        search.tell(trial(number, params, value=-distances[-1]), [])
    assert statistics.mean(distances[-20:]) < statistics.mean(distances[:20]) / 5


def test_sequence_covers_the_space_evenly():
    search = Search(LINE | {"norm": Choices(choices=(True, False))}, "qmc", seed=0)
    drawn = [search.ask(number) for number in range(32)]
    assert sorted(int(params["x"] * 32) for params in drawn) == list(range(32))
    assert sum(params["norm"] for params in drawn) == 16


# -- no configuration twice


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_configuration_of_a_small_space_is_drawn_once(sampler):
    search = Search(SMALL, sampler, seed=0)
    drawn = []
    for number in range(6):
        assert not search.used_up
        drawn.append(search.ask(number))
        search.tell(trial(number, drawn[-1], value=0.5), epochs(0.5))
    assert search.used_up
    assert len({tuple(params.items()) for params in drawn}) == 6
    assert {type(params["width"]) for params in drawn} == {int}


def test_resumed_search_does_not_draw_what_was_run():
    search = Search(GRID, "random", seed=0)
    trials, trained = history(search, 12)
    resumed = Search(GRID, "random", seed=0)
    resumed.restore(trials, trained)
    assert not resumed.used_up
    numbers = range(12, 18)
    drawn = [resumed.ask(number) for number in numbers]
    assert drawn == [search.ask(number) for number in numbers]
    assert len({tuple(params.values()) for params in [*drawn, *(t.params for t in trials)]}) == 18
    assert resumed.used_up


def test_ranges_without_steps_are_never_used_up():
    search = Search(SPACE, "tpe", seed=0)
    history(search, 12)
    assert not search.used_up


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_small_space_under_conditions_and_constraints_is_used_up_by_what_is_possible(sampler):
    space = {
        **SMALL,
        "rate": Range(low=0.1, high=0.3, step=0.1, when={"norm": True}),
        "depth": Range(low=1, high=2, step=1, integer=True),
    }

    def complaint(params):
        return "" if params["width"] * params["depth"] < 20 else "too large"

    search = Search(space, sampler, 0, complaint)
    drawn = []
    while not search.used_up:
        drawn.append(search.ask(len(drawn)))
    assert len(drawn) == 4 * 4, "four sizes, each with three rates or without norm"
    assert len({tuple(sorted(params.items())) for params in drawn}) == 16
    assert all(("rate" in params) == params["norm"] and not complaint(params) for params in drawn)
    with pytest.raises(UsageError, match="trial 16: no possible configuration among 2020 draws; the last: "):
        search.ask(16)


@pytest.mark.parametrize("sampler", ["cmaes", "qmc", "nsga2"])
def test_samplers_with_a_state_draw_under_conditions_as_one_that_never_stopped(sampler):
    search = Search(CONDITIONAL, sampler, 3, odd)
    trials, trained = history(search, 100)
    assert all(set(row.params) == drawn_by(row.params) and not odd(row.params) for row in trials)
    resumed = Search(CONDITIONAL, sampler, 3, odd)
    resumed.restore(trials, trained)
    assert [resumed.ask(number) for number in range(100, 104)] == [search.ask(number) for number in range(100, 104)]


def test_grid_has_an_order_of_its_seed():
    orders = [Search(GRID, "grid", seed).ask(0) for seed in (0, 0, 1, 2, 3)]
    assert orders[0] == orders[1]
    assert any(order != orders[0] for order in orders[2:])


# -- what a search begins with


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_queue_is_drawn_first_and_the_rest_of_a_configuration_by_the_sampler(sampler):
    space = SPACES.get(sampler, GRID)
    name = "depth" if "depth" in space else "width"
    value = space[name].low + 2
    whole = {key: searched.ends()[-1] for key, searched in space.items()}
    queue = [whole, {name: value}]
    search = Search(space, sampler, seed=3, queue=queue)
    trials, trained = history(search, 4)
    assert trials[0].params == pytest.approx(whole)
    assert trials[1].params[name] == value
    assert set(trials[1].params) == set(space)
    for num_ended in range(4):
        resumed = Search(space, sampler, seed=3, queue=queue)
        resumed.restore(trials[:num_ended], trained)
        assert resumed.ask(num_ended) == trials[num_ended].params


def test_part_of_a_configuration_of_which_all_have_run_is_drawn_freely():
    for space in (SMALL, SMALL | LINE):
        fixed = {"norm": True} | ({"x": 0.5} if "x" in space else {})
        search = Search(space, "tpe", seed=0, queue=[fixed] * 4)
        drawn = [search.ask(number) for number in range(4)]
        assert [fixed.items() <= params.items() for params in drawn] == [True, True, True, False]


def known(peak=0.8):
    return [Result(params=p, state=State.COMPLETE, value=-distance(p, peak), values=(0.5,)) for p in plane()]


@pytest.mark.parametrize(("sampler", "num_draws"), [("tpe", 10), ("gp", 1), ("cmaes", 10), ("nsga2", 10)])
def test_search_knows_results_of_another_study(sampler, num_draws):
    def drawn(results):
        search = Search(PLANE, sampler, seed=1, known=results)
        return [search.ask(number) for number in range(num_draws)]

    assert drawn(known()) == drawn(known()) != drawn([])
    assert statistics.mean(distance(params, 0.8) for params in drawn(known())) < 0.5


def test_results_of_another_study_are_no_trials_of_this_one():
    results = [Result(params={"width": 8, "norm": True}, state=State.COMPLETE, value=0.9, values=(0.9,))]
    search = Search(SMALL, "random", seed=0, known=results)
    trials, trained = history(search, 3)
    resumed = Search(SMALL, "random", seed=0, known=results)
    resumed.restore(trials, trained)
    assert [resumed.ask(number) for number in (3, 4)] == [search.ask(number) for number in (3, 4)]

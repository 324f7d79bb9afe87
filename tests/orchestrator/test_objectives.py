"""Studies that are to get better at several things at once."""

from __future__ import annotations

import random
import signal
import statistics
from types import SimpleNamespace

import optuna
import pytest

from orchestrator import compare, pareto, pruning, recent
from orchestrator.errors import UsageError
from orchestrator.notebook import open_study
from orchestrator.objectives import Objective, values_at
from orchestrator.search import Search
from orchestrator.settings import Settings
from orchestrator.space import Range
from orchestrator.standing import Standing
from orchestrator.study import load
from orchestrator.tables import Epoch, Reason, State, Trial
from tests.support.orch import COUNTING, Orch, wait_until

PLANE = {"x": Range(low=0.0, high=1.0), "y": Range(low=0.0, high=1.0)}
BOTH = (Objective(name="val_accuracy", direction="max"), Objective(name="size", direction="min"))
KEYS = {"objectives": "val_accuracy:max,num_parameters:min"}


def ended(number, params, state=State.COMPLETE, reason=None):
    value = None if state is State.FAILED else params["x"]
    best = None if state is State.FAILED else 2
    return Trial(number=number, params=params, config=params, state=state, value=value, best_epoch=best, reason=reason)


def epochs(params):
    """Accuracy grows with x; y is worth nothing and makes it larger, which only the first epoch tells."""
    return [
        Epoch(number=1, metrics={"val_accuracy": params["x"] / 2, "val_loss": 1.0, "size": params["y"]}, seconds=1.0),
        Epoch(number=2, metrics={"val_accuracy": params["x"], "val_loss": 1.0}, seconds=1.0),
    ]


def drawn(search, num_trials, start=0):
    states = [State.COMPLETE, State.PRUNED, State.COMPLETE, State.FAILED]
    trials, trained = [], {}
    for number in range(start, start + num_trials):
        params = search.ask(number)
        state = states[number % 4]
        trials.append(ended(number, params, state, Reason.OOM if state is State.FAILED else None))
        trained[number] = epochs(params)
        search.tell(trials[-1], trained[number])
    return trials, trained


def test_values_are_those_of_an_epoch_and_what_was_told_once():
    assert values_at(epochs({"x": 1.0, "y": 3.0}), 2, BOTH) == {"val_accuracy": 1.0, "size": 3.0}
    assert values_at(epochs({"x": 1.0, "y": 3.0}), 1, BOTH) == {"val_accuracy": 0.5, "size": 3.0}


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_resumed_search_of_several_draws_as_one_that_never_stopped(sampler):
    search = Search(PLANE, sampler, 3, objectives=BOTH)
    trials, trained = drawn(search, 60)
    resumed = Search(PLANE, sampler, 3, objectives=BOTH)
    resumed.restore(trials, trained)
    assert [resumed.ask(60), resumed.ask(61)] == [search.ask(60), search.ask(61)]


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "num_trials", "margin"), [("tpe", 120, 0.5), ("nsga2", 300, 0.15)])
def test_samplers_learn_what_is_better_in_both(sampler, num_trials, margin):
    """Large x and small y are best; by chance they would be equal, and either turned round would lead elsewhere."""
    trials, _ = drawn(Search(PLANE, sampler, 0, objectives=BOTH), num_trials)
    late = [trial.params for trial in trials[-60:]]
    assert statistics.mean(params["x"] - params["y"] for params in late) > margin
    assert statistics.mean(params["x"] for params in late) > 0.5 > statistics.mean(params["y"] for params in late)


def test_out_of_memory_is_kept_away_from():
    search = Search(PLANE, "tpe", 0, objectives=BOTH)
    trials = []
    for number in range(80):
        params = search.ask(number)
        too_large = params["x"] > 0.5
        trial = ended(number, params, State.FAILED if too_large else State.COMPLETE, Reason.OOM if too_large else None)
        search.tell(trial, epochs(params))
        trials.append(trial)
    assert sum(trial.state is State.FAILED for trial in trials[30:]) < 25, "of 50; more x is better until it fails"


def test_of_a_long_study_samplers_are_shown_the_latest_and_the_front(monkeypatch):
    monkeypatch.setattr(recent, "NUM_LATEST", 10)
    monkeypatch.setattr(recent, "NUM_BEST", 3)
    search = Search(PLANE, "random", 0, objectives=BOTH)
    trials, trained = drawn(search, 40)
    shown = {trial.number for trial in search._study.get_trials(deepcopy=False)}
    table = {n: (trained[n][1].metrics["val_accuracy"], -trained[n][0].metrics["size"]) for n in range(40) if n % 4 < 3}
    assert shown == {*range(30, 40), *pareto.order(table)[:3]}
    assert trials[3].number not in shown


def test_leaderboard_says_who_is_on_the_front():
    rng = random.Random(0)
    params = {number: {"x": rng.random(), "y": rng.random()} for number in range(20)}
    trials = [ended(number, params[number]) for number in params]
    trained = {number: epochs(params[number]) for number in params}
    rows = compare.leaderboard(trials, trained, {}, None, BOTH)
    front = {row["trial"] for row in rows if row["front"]}
    table = {number: (params[number]["x"], -params[number]["y"]) for number in params}
    assert front == set(pareto.fronts(table)[0])
    assert [row["trial"] in front for row in rows] == [True] * len(front) + [False] * (20 - len(front))
    best = params[rows[0]["trial"]]
    assert rows[0]["objectives"] == {"val_accuracy": best["x"], "size": best["y"]}
    first = [trial.number for trial in compare.ranked(trials, trained, BOTH)]
    assert first == [row["trial"] for row in rows]
    assert first[0] == max(params, key=lambda number: params[number]["x"])


def standing(vectors, *, pauses=False, states=None):
    """Trials that trained one epoch each, with these accuracies and sizes."""
    states = states or [State.PAUSED] * len(vectors)
    trials = [Trial(number=n, state=state, value=vectors[n][0], config={}) for n, state in enumerate(states)]
    trained = {
        n: [Epoch(number=1, metrics={"val_accuracy": each[0], "size": each[1], "val_loss": 0.0})]
        for n, each in enumerate(vectors)
    }
    record = SimpleNamespace(epochs=lambda _: trained, trials=lambda _: trials)
    return Standing(record, 1, "val_accuracy", BOTH, pauses=pauses)


# 0, 2 and 4 are on the front, 4 between the others; 1 is dominated by 0, 3 by all.
RUNG = [(0.9, 9.0), (0.8, 9.5), (0.5, 1.0), (0.4, 9.9), (0.7, 5.0), (0.6, 9.4)]


def test_pruning_keeps_the_front_and_not_the_most_accurate():
    there = standing(RUNG)
    keeps = [number for number in range(6) if pruning.Asha().goes_on(number, 9, there.rungs.rung(1))]
    assert keeps == [0, 2], "of six two go on: the ends of the front, one of them with the third lowest accuracy"


def test_promotion_takes_the_front_first_and_who_failed_stands_in_nobodys_way():
    pruner = pruning.AshaPause()
    states = [State.FAILED, *[State.PAUSED] * 5]
    there = standing(RUNG, pauses=True, states=states)
    assert pruner.first(there.rungs.ladder, num_kept=1) == 1, "with 0 gone, an end of the front like 2"
    assert pruner.first(standing(RUNG, pauses=True).rungs.ladder) == 0
    poorest = there.rungs.poorest_first([there.trials[number] for number in range(1, 6)])
    assert [trial.number for trial in poorest][:2] == [3, 5]


# -- the command line


@pytest.fixture
def orch(tmp_path):
    return Orch(tmp_path)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (["objectives=val_accuracy"], "expected two or more as in val_accuracy:max,latency_ms:min"),
        (["objectives=val_accuracy:max"], "expected two or more"),
        (["objectives=val_accuracy:max,lr:up"], "expected two or more"),
        (["objectives=val_accuracy:max,lr:min,lr:max"], "a metric is named twice"),
        (["objectives=val_loss:min,flops:min"], "val_accuracy:max must be among them"),
        (["objectives=val_accuracy:min,flops:min"], "val_accuracy:max must be among them"),
        (["objectives=val_accuracy:max,latency:min"], "unknown objective 'latency'; did you mean 'latency_ms'?"),
        ([f"objectives={KEYS['objectives']}", "sampler=gp"], "sampler=gp has one objective in view"),
        ([f"objectives={KEYS['objectives']}", "sampler=cmaes"], "allowed: auto, tpe, nsga2, qmc, random, grid"),
        ([f"objectives={KEYS['objectives']}", "pruner=patient:3:threshold:0.5"], "has one objective in view"),
        ([f"objectives={KEYS['objectives']}", "confirm=3x5"], "confirm=3x5 has one objective in view"),
        ([f"objectives={KEYS['objectives']}", "patience=5"], "patience=5 has one objective in view"),
    ],
)
def test_objectives_that_cannot_be_are_refused_in_one_line(keys, told):
    with pytest.raises(UsageError) as refused:
        load(["recipe=cnn", *keys])
    assert told in str(refused.value)


def test_latency_is_measured_where_it_is_an_objective():
    assert load(["recipe=cnn", "objectives=val_accuracy:max,latency_ms:min"]).fixed["latency"] is True
    assert load(["recipe=cnn", f"objectives={KEYS['objectives']}"]).fixed["latency"] is False


def test_sampler_is_one_for_several_where_none_is_named():
    arguments = [f"recipe={COUNTING}", "hidden=range(4,16)", "pruner=none"]
    assert load(arguments).sampler == "gp"
    assert load([*arguments, f"objectives={KEYS['objectives']}"]).sampler == "tpe"


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["asha", "asha-pause"])
def test_sweep_of_several_goes_on_after_a_kill_and_everyone_shows_its_front(orch, pruner, monkeypatch):
    arguments = orch.counting(trials=14, epochs=9, pruner=pruner, sampler="tpe", hidden="range(4,64)", **KEYS)
    with orch.running(*arguments) as sweep:
        wait_until(lambda: len(orch.begun()) >= 20, what="twenty epochs")
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
    done = orch("resume", "s")
    status, rows = orch.json("status", "s"), orch.json("compare", "s")
    states = [row["state"] for row in rows]
    assert (states.count("complete") + states.count("pruned"), status["total"]) == (14, 14)
    assert states.count("pruned") > 0
    whole = {row["trial"]: row["objectives"] for row in rows if row["state"] == "complete"}
    table = {trial: (each["val_accuracy"], -each["num_parameters"]) for trial, each in whole.items()}
    front = set(pareto.fronts(table)[0])
    assert {row["trial"] for row in rows if row["front"]} == front
    assert {row["trial"] for row in status["front"]} == front
    assert f"front     {len(front)} trial(s) that no other beats in all: " in done.stdout
    assert "num_parameters" in done.stdout
    monkeypatch.setenv("ORCH_HOME", str(orch.home))
    assert {row["trial"] for row in open_study("s").front} == front
    assert {"val_accuracy", "num_parameters"} <= set(open_study("s").to_pandas().columns)
    mirrored = optuna.load_study(study_name="s", storage=Settings.from_environment().optuna_url)
    assert {trial.number for trial in mirrored.best_trials} == front
    assert [way.name for way in mirrored.directions] == ["MAXIMIZE", "MINIMIZE"]
    refused = orch.here(*[each for each in arguments if not each.startswith("objectives=")], code=2)
    assert "objectives: val_accuracy:max,num_parameters:min -> absent" in refused.stderr


@pytest.mark.slow
def test_recipe_that_never_tells_of_an_objective_fails_its_trials_in_words(orch, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from pydantic import BaseModel, ConfigDict\n"
        "from recipes.loop import Epoch\n"
        "class Config(BaseModel):\n"
        "    model_config = ConfigDict(frozen=True, extra='forbid')\n"
        "    lr: float = 0.1\n"
        "def train(config, attempt=None):\n"
        "    metrics = {'val_accuracy': config.lr, 'val_loss': 1.0}\n"
        "    yield Epoch(number=1, metrics=metrics, seconds=0.1, is_best=True, saved=None)\n"
    )
    keys = ["lr=interval(0.1,0.2)", "trials=1", "retries=0", "study=s", "objectives=val_accuracy:max,watts:min"]
    orch.here("sweep", f"recipe={own}", *keys, code=4)
    assert "epoch 1 has no watts; a recipe's epochs must have them" in orch.json("show", "s/0")["message"]

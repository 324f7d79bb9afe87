"""Winners without luck: which seeds are tried, what their mean is worth, and what a sweep makes of it."""

from __future__ import annotations

import statistics

import pytest
from scipy import stats

from orchestrator import compare, confirm
from orchestrator.errors import UsageError
from orchestrator.study import load
from orchestrator.tables import Epoch, State, Trial
from tests.support.orch import Orch, kill, wait_until


def trial(number, value, *, confirms=None, seed=0, state=State.COMPLETE):
    return Trial(number=number, state=state, value=value, confirms=confirms, config={"seed": seed}, params={})


def epochs_of(trials):
    return {
        each.number: [Epoch(number=1, metrics={"val_accuracy": each.value, "val_loss": 1.0}, seconds=0.1)]
        for each in trials
        if each.value is not None
    }


SEEDS = [0.90, 0.94, 0.92]
TRIALS = [
    trial(0, 0.97),
    trial(1, 0.99),
    trial(2, 0.95),
    *(trial(3 + n, value, confirms=0, seed=1 + n) for n, value in enumerate(SEEDS)),
    *(trial(6 + n, value, confirms=1, seed=1 + n) for n, value in enumerate([0.80, 0.99, 0.85])),
]


def test_best_mean_of_further_seeds_comes_before_a_lucky_value():
    assert [each.number for each in compare.ranked(TRIALS, epochs_of(TRIALS))] == [0, 1, 2]
    assert [each.number for each in compare.by_value(TRIALS, epochs_of(TRIALS))] == [1, 0, 2]


def test_interval_is_that_of_student_without_the_value_that_was_selected():
    found = confirm.confirmed(TRIALS)[0]
    error = statistics.stdev(SEEDS) / len(SEEDS) ** 0.5
    low, high = stats.t.interval(0.95, len(SEEDS) - 1, loc=statistics.fmean(SEEDS), scale=error)
    assert (found.num_seeds, found.num_failed) == (3, 0)
    assert (found.mean, found.low, found.high) == pytest.approx((0.92, low, high), abs=1e-4)
    for degrees, quantile in enumerate(confirm._T, 1):
        assert quantile == pytest.approx(stats.t.ppf(0.975, degrees), abs=6e-4)


def test_group_that_is_not_whole_says_nothing_and_one_with_a_failure_stands_behind():
    waiting = [*TRIALS, trial(9, None, confirms=0, seed=4, state=State.WAITING)]
    assert confirm.confirmed(waiting).keys() == {1}
    assert [each.number for each in compare.ranked(waiting, epochs_of(waiting))] == [1, 0, 2]
    failed = [*TRIALS, trial(9, None, confirms=0, seed=4, state=State.FAILED)]
    assert confirm.confirmed(failed)[0].num_failed == 1
    assert [each.number for each in compare.ranked(failed, epochs_of(failed))] == [1, 0, 2]


def test_seeds_that_were_tried_are_not_tried_again():
    assert confirm.missing_seeds(TRIALS[0], TRIALS, 5) == [4, 5]
    assert confirm.missing_seeds(TRIALS[2], TRIALS, 2) == [1, 2]


@pytest.mark.parametrize("text", ["3", "3x", "0x5", "3x1", "3x31", "x", "-1x5", "3x5x2"])
def test_what_is_no_number_of_leaders_and_seeds_is_refused(text):
    with pytest.raises(UsageError, match=rf"^confirm={text}: expected none, or leaders and seeds as in 3x5"):
        load(["recipe=mlp", f"confirm={text}"])


def test_recipe_without_a_seed_has_none_to_go_on_from(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from recipes.config import Part\nclass Config(Part):\n    lr: float = 0.1\n"
        "def train(config, attempt=None):\n    yield\n"
    )
    with pytest.raises(UsageError, match="confirm=2x3 trains with further seeds; this study has no one seed"):
        load([f"recipe={tmp_path}/mine.py", "lr=0.1,0.2", "confirm=2x3"])


@pytest.fixture
def orch(tmp_path):
    return Orch(tmp_path)


@pytest.mark.slow
def test_leaders_are_trained_with_further_seeds_once_whatever_is_killed(orch):
    arguments = orch.counting("confirm=2x3", trials=4, epochs=3, workers=2, sampler="random", export="best")
    with orch.running(*arguments, "pause_seconds=0.3") as sweep:
        wait_until(lambda: orch.begun().total() >= 15, what="a further seed")  # 12 epochs are those of the trials
        kill(sweep)
    done = orch.here("resume", "s")
    rows = {row["trial"]: row for row in orch.json("compare", "s")}
    drawn = [row for row in rows.values() if row["confirms"] is None]
    further = [row for row in rows.values() if row["confirms"] is not None]
    leaders = sorted(drawn, key=lambda row: -row["value"])[:2]
    assert sorted(row["confirms"] for row in further) == sorted([leader["trial"] for leader in leaders] * 3)
    for leader in leaders:
        group = [row for row in further if row["confirms"] == leader["trial"]]
        configs = [orch.json("show", f"s/{row['trial']}")["config"] for row in group]
        assert sorted(config.pop("seed") for config in configs) == [1, 2, 3]
        own = orch.json("show", f"s/{leader['trial']}")["config"]
        assert own.pop("seed") == 0
        assert configs == [own] * 3
        assert leader["confirmed"]["mean"] == pytest.approx(statistics.fmean(row["value"] for row in group))
    winner = max(leaders, key=lambda row: row["confirmed"]["mean"])
    assert next(iter(rows.values()))["trial"] == winner["trial"]
    assert f"winner    trial {winner['trial']}, " in done.stdout
    assert f"seeds     3 further ones: mean {winner['confirmed']['mean']:.4f}, 95% interval" in done.stdout
    assert orch.json("show", f"s/{winner['trial']}")["onnx"]["error"] is None
    status = orch.json("status", "s")
    assert (status["states"]["complete"], status["confirming"], status["best"]["trial"]) == (4, 6, winner["trial"])
    assert orch.recorded() == {number: [1, 2, 3] for number in range(10)}
    again = orch.here(*arguments, "pause_seconds=0.3")
    assert "is complete: 4 trials" in again.stdout
    extended = orch.here("resume", "s", "trials=6", "confirm=2x4")
    assert "is complete" not in extended.stdout
    rows = orch.json("compare", "s")
    assert sum(row["confirms"] is None for row in rows) == 6
    by_leader = [row for row in rows if row["confirmed"]]
    assert max(row["confirmed"]["num_seeds"] for row in by_leader) == 4
    assert orch.json("status", "s")["confirming"] == sum(row["confirmed"]["num_seeds"] for row in by_leader)


@pytest.mark.slow
def test_paused_trials_are_pruned_before_leaders_are_confirmed(orch):
    arguments = orch.counting("confirm=1x2", trials=9, epochs=9, workers=2, sampler="random", export="none")
    arguments = [key if key != "pruner=none" else "pruner=asha-pause" for key in arguments]
    orch.here(*arguments)
    status = orch.json("status", "s")
    assert (status["states"]["paused"], status["confirming"]) == (0, 2)
    further = [row for row in orch.json("compare", "s") if row["confirms"] is not None]
    assert [(row["state"], row["epochs"]) for row in further] == [("complete", 9)] * 2

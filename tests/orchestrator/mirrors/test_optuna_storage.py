"""What Optuna shows of a study."""

from __future__ import annotations

import math
from datetime import datetime

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from orchestrator.errors import UnavailableError
from orchestrator.mirror import lag, sync
from orchestrator.mirrors.optuna_storage import distribution
from orchestrator.tables import Reason, State
from tests.support.sweeps import expected, in_optuna, value_of


def load(sweep):
    return optuna.load_study(study_name=sweep.name, storage=sweep.settings.optuna_url)


@pytest.mark.parametrize(
    ("searched", "wanted"),
    [
        ({"choices": ["adamw", "sgd"]}, CategoricalDistribution(["adamw", "sgd"])),
        ({"low": 1e-4, "high": 1, "log": True, "step": 0, "integer": False}, FloatDistribution(1e-4, 1, log=True)),
        ({"low": 0.0, "high": 0.5, "step": 0.1}, FloatDistribution(0, 0.5, step=0.1)),
        ({"low": 0.0, "high": 0.5}, FloatDistribution(0, 0.5)),
        ({"low": 16, "high": 128, "log": True, "step": 1, "integer": True}, IntDistribution(16, 128, log=True)),
        ({"low": 16, "high": 128, "log": False, "step": 16, "integer": True}, IntDistribution(16, 128, step=16)),
        ({"low": 1, "high": 6, "integer": True}, IntDistribution(1, 6)),
    ],
)
def test_searched_field_has_optunas_form(searched, wanted):
    assert distribution(searched) == wanted


def test_study_loads_with_the_same_numbers_parameters_and_states(sweep):
    sweep.run(State.COMPLETE, lr=0.01, width=64, optimizer="adamw")
    sweep.run(State.PRUNED, num_epochs=2)
    sweep.run(State.FAILED, num_epochs=1)
    waiting = sweep.start()
    sweep.end(waiting, State.FAILED, trial_state=State.WAITING, reason=Reason.LOST)
    sync(sweep.settings)
    study = load(sweep)
    assert study.direction.name == "MAXIMIZE"
    assert study.metric_names == ["val_accuracy"]
    trials = study.trials
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    assert [(t.number, t.state) for t in trials] == list(enumerate(states))
    assert [t.value for t in trials] == [value_of(0, 3, "val_accuracy"), value_of(1, 2, "val_accuracy"), None, None]
    assert trials[0].params == {"lr": 0.01, "width": 64, "optimizer": "adamw"}
    assert trials[0].distributions["width"] == IntDistribution(16, 128, step=16)
    assert trials[0].user_attrs["config"]["epochs"] == 3
    assert in_optuna(sweep.settings) == expected({0: 3, 1: 2, 2: 1, 3: 0}, "val_accuracy")
    assert study.best_trial.number == 0
    rows = [sweep.record.trial(sweep.study.id, number) for number in range(3)]
    for trial, row in zip(trials, rows, strict=False):
        assert trial.datetime_start == datetime.fromtimestamp(row.started_at)
        assert trial.datetime_complete == datetime.fromtimestamp(row.ended_at)


def test_trial_is_readable_while_it_runs_and_keeps_its_number(sweep):
    first, second = sweep.start(), sweep.start()
    sweep.train(second, 1)
    sync(sweep.settings)
    assert in_optuna(sweep.settings) == expected({0: 0, 1: 1}, "val_accuracy")
    sweep.train(second, 2, 3)
    sweep.end(second)
    sync(sweep.settings)
    assert [t.state for t in load(sweep).trials] == [TrialState.RUNNING, TrialState.COMPLETE]
    sweep.train(first, 1, 2, 3)
    sweep.end(first, State.PRUNED)
    sync(sweep.settings)
    assert in_optuna(sweep.settings) == expected({0: 3, 1: 3}, "val_accuracy")
    assert [t.value for t in load(sweep).trials] == [value_of(0, 3, "val_accuracy"), value_of(1, 3, "val_accuracy")]


def test_trials_that_a_power_cut_took_are_written_again(sweep):
    """SQLite may lose its last transactions, which the cursor has passed."""
    sweep.run()
    running = sweep.start()
    sweep.train(running, 1, 2)
    sync(sweep.settings)
    study = load(sweep)
    with study._storage._backend.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM trial_intermediate_values WHERE trial_id = 2 AND step = 2")
    assert in_optuna(sweep.settings) == expected({0: 3, 1: 1}, "val_accuracy")
    assert sync(sweep.settings)["optuna"] == 1
    assert in_optuna(sweep.settings) == expected({0: 3, 1: 2}, "val_accuracy")


def test_value_that_is_not_finite_is_never_best(sweep):
    sweep.run()
    trial = sweep.start()
    sweep.train(trial, 1)
    sweep.end(trial)
    with sweep.record.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trials SET value = ? WHERE number = 1", (math.inf,))
    sync(sweep.settings)
    assert load(sweep).best_trial.number == 0
    assert load(sweep).trials[1].state is TrialState.FAIL


def test_value_outside_of_its_choices_is_in_the_configuration_only(sweep):
    sweep.run(optimizer="lion")
    sync(sweep.settings)
    (trial,) = load(sweep).trials
    assert trial.params == {"lr": 1e-3, "width": 32}
    assert trial.user_attrs["config"]["optimizer"] == "lion"


def test_trial_that_someone_else_added_stops_this_mirror_with_a_reason(sweep):
    sweep.run()
    sync(sweep.settings)
    load(sweep).add_trial(optuna.trial.create_trial(value=1.0))
    sweep.run()
    with pytest.raises(UnavailableError, match="holds trials that are not orch's"):
        sync(sweep.settings)
    assert lag(sweep.record, sweep.study.id) == {"tensorboard": 0, "optuna": 6, "mlflow": 0}
    optuna.delete_study(study_name="s", storage=sweep.settings.optuna_url)
    sync(sweep.settings)
    assert in_optuna(sweep.settings) == expected({0: 3, 1: 3}, "val_accuracy")

"""Leaderboards and figures of a study: rows in, plain data out."""

from __future__ import annotations

import json

import pytest

from orchestrator import compare
from orchestrator.tables import Epoch, Reason, State, Study, Trial


def trial(number, state=State.COMPLETE, value=None, reason=None, message=None, **config):
    return Trial(
        number=number,
        state=state,
        value=value,
        params=dict(config),
        config={"seed": 0, **config},
        reason=reason,
        message=message,
    )


def epochs(*pairs, seconds=0.5):
    """Epochs with (val_accuracy, val_loss) each."""
    return [
        Epoch(number=number, metrics={"val_accuracy": accuracy, "val_loss": loss}, seconds=seconds)
        for number, (accuracy, loss) in enumerate(pairs, 1)
    ]


@pytest.mark.parametrize(
    ("pairs", "best"),
    [
        ([(0.1, 9), (0.3, 9), (0.2, 1)], 2),
        ([(0.3, 2), (0.3, 1), (0.1, 0)], 2),
        ([(0.3, 1), (0.3, 1)], 1),
    ],
    ids=["accuracy first", "then lower loss", "then the earlier"],
)
def test_best_epoch_is_chosen_by_accuracy_then_loss_then_age(pairs, best):
    assert compare.best_epoch(epochs(*pairs), "val_accuracy").number == best


def test_best_epoch_of_none_is_none():
    assert compare.best_epoch([], "val_accuracy") is None


def test_ranked_are_the_complete_trials_by_value_then_loss_then_number():
    trials = [trial(n, state) for n, state in enumerate([State.COMPLETE] * 5 + [State.PRUNED, State.FAILED])]
    trained = {
        0: epochs((0.5, 1)),
        1: epochs((0.9, 2)),
        2: epochs((0.9, 1), (0.2, 0)),
        3: epochs((0.9, 1)),
        4: epochs((0.7, 1)),
        5: epochs((1.0, 0)),
        6: epochs((1.0, 0)),
    }
    assert [t.number for t in compare.ranked(trials, trained)] == [2, 3, 1, 4, 0]


def test_leaderboard_has_a_row_for_every_trial_in_order_of_state():
    states = [State.FAILED, State.WAITING, State.RUNNING, State.PAUSED, State.PRUNED, State.COMPLETE, State.COMPLETE]
    trials = [trial(number, state) for number, state in enumerate(states)]
    trained = {number: epochs((number / 10, 1)) for number in (0, 4, 5, 6)}
    rows = compare.leaderboard(trials, trained, {})
    assert [row["trial"] for row in rows] == [6, 5, 4, 2, 3, 1, 0]


def test_row_holds_what_the_record_says_and_is_json():
    failed = trial(3, State.FAILED, reason=Reason.OOM, message="too big", lr=0.1)
    complete = trial(2, value=0.9, lr=0.2)
    rows = compare.leaderboard([complete, failed], {2: epochs((0.8, 1), (0.9, 1), seconds=0.1)}, {2: "run"})
    assert json.loads(json.dumps(rows)) == [
        {
            "trial": 2,
            "objective": "val_accuracy",
            "value": 0.9,
            "params": {"lr": 0.2},
            "epochs": 2,
            "seconds": 0.2,
            "state": "complete",
            "reason": None,
            "message": None,
            "run_id": "run",
            "confirms": None,
            "confirmed": None,
            "objectives": {},
            "front": False,
        },
        {
            "trial": 3,
            "objective": "val_accuracy",
            "value": None,
            "params": {"lr": 0.1},
            "epochs": 0,
            "seconds": 0,
            "state": "failed",
            "reason": "oom",
            "message": "too big",
            "run_id": None,
            "confirms": None,
            "confirmed": None,
            "objectives": {},
            "front": False,
        },
    ]


def test_leaderboard_shows_the_fields_that_differ_only():
    rows = compare.leaderboard([trial(0, lr=1, depth=2, flag=True), trial(1, lr=1, depth=3, flag=1, extra="x")], {}, {})
    assert [row["params"] for row in rows] == [
        {"depth": 2, "flag": True, "extra": None},
        {"depth": 3, "flag": 1, "extra": "x"},
    ]


def test_one_is_not_true_though_python_says_so():
    rows = compare.leaderboard([trial(0, flag=True, same=float("nan")), trial(1, flag=1, same=float("nan"))], {}, {})
    assert [row["params"] for row in rows] == [{"flag": True}, {"flag": 1}]


def test_status_counts_every_state_and_names_the_best():
    study = Study(name="s", recipe="cnn", data="digits", spec={"budget": {"trials": 50}})
    trials = [trial(0, value=0.8, lr=1), trial(1, value=0.9, lr=2), trial(2, State.PRUNED), trial(3, State.RUNNING)]
    trained = {0: epochs((0.8, 1)), 1: epochs((0.7, 1), (0.9, 1)), 2: epochs((1.0, 1))}
    assert compare.status(study, trials, trained, {1: "run"}) == {
        "study": "s",
        "recipe": "cnn",
        "data": "digits",
        "total": 50,
        "states": {"waiting": 0, "running": 1, "paused": 0, "complete": 2, "pruned": 1, "failed": 0},
        "confirming": 0,
        "epochs_trained": 4,
        "best": {"trial": 1, "objective": "val_accuracy", "value": 0.9, "params": {"lr": 2}, "run_id": "run"},
        "front": [],
    }


def test_status_before_a_trial_is_complete_has_no_best():
    study = Study(name="s", recipe="cnn", data="digits", spec={"budget": {"trials": 50}})
    assert compare.status(study, [trial(0, State.PRUNED)], {}, {})["best"] is None


def test_field_that_a_trial_did_not_draw_is_empty():
    sgd = trial(0, optimizer="sgd", momentum=0.8, seed=1)
    adamw = trial(1, optimizer="adamw", momentum=0.9, seed=2)
    sgd.params, adamw.params = {"optimizer": "sgd", "momentum": 0.8}, {"optimizer": "adamw"}
    space = {"optimizer": {"choices": ["sgd", "adamw"]}, "momentum": {"low": 0.5, "high": 0.9, "when": {"a": ["b"]}}}
    rows = compare.leaderboard([sgd, adamw], {}, {}, space)
    assert [row["params"] for row in rows] == [
        {"optimizer": "sgd", "momentum": 0.8, "seed": 1},
        {"optimizer": "adamw", "momentum": None, "seed": 2},
    ]

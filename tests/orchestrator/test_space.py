"""Ranges and choices: which are possible."""

from __future__ import annotations

import random

import pytest
from pydantic import TypeAdapter, ValidationError

from orchestrator.space import Choices, Range, Space, describe, draw, in_order, plain, settle


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"low": 2, "high": 1}, "low 2 is not below high 1"),
        ({"low": 1, "high": 1}, "low 1 is not below high 1"),
        ({"low": 0, "high": 1, "log": True}, "a log range cannot start from 0"),
        ({"low": -1.0, "high": 1, "log": True}, "a log range cannot start from -1.0"),
        ({"low": 1, "high": 9, "log": True, "step": 2}, "a log range has no step"),
        ({"low": 1, "high": 9, "step": -1}, "step -1 is negative"),
        ({"low": float("nan"), "high": 1}, "expected a finite number, found nan"),
        ({"low": 0, "high": float("inf")}, "expected a finite number, found inf"),
        ({"low": True, "high": 2}, "expected a finite number, found True"),
        ({"low": "1", "high": 2}, "expected a finite number, found '1'"),
    ],
)
def test_impossible_range_is_refused(fields, complaint):
    with pytest.raises(ValidationError, match=complaint):
        Range(**fields)


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ((), "there are no choices"),
        (("a", "b", "a"), "choices repeat: a, b, a"),
        ((1, [2]), r"found \[2\]"),
        ((1, None), "found None"),
        ((1, float("nan")), "expected a finite number"),
    ],
)
def test_impossible_choices_are_refused(choices, complaint):
    with pytest.raises(ValidationError, match=complaint):
        Choices(choices=choices)


def test_choices_of_one_value_and_many_types_are_apart():
    assert Choices(choices=(1, True, "1", 1.0)).ends() == (1, True, "1", 1.0)


def test_ends_of_a_range_are_its_bounds():
    assert Range(low=2, high=5).ends() == (2, 5)


def test_space_survives_json():
    space = {
        "lr": Range(low=1e-4, high=1e-1, log=True),
        "depth": Range(low=2, high=6, step=2, integer=True),
        "optimizer": Choices(choices=("sgd", "adamw")),
        "batch_norm": Choices(choices=(True, False)),
        "width": Choices(choices=(16, 32)),
    }
    adapter = TypeAdapter(Space)
    again = adapter.validate_json(adapter.dump_json(space))
    assert again == space
    assert [type(choice) for choice in again["width"].choices] == [int, int]
    assert type(again["depth"].low) is int


# -- conditions

CHAIN = {  # in an order that a draw cannot keep to
    "nesterov": Choices(choices=(True, False), when={"momentum": [0.9], "optimizer": "sgd"}),
    "momentum": Choices(choices=(0.5, 0.9), when={"optimizer": ["sgd", "rmsprop"]}),
    "optimizer": Choices(choices=("adamw", "sgd", "rmsprop")),
    "lr": Range(low=1e-4, high=1e-1, log=True),
}


def test_condition_takes_one_value_or_several_and_survives_json():
    assert CHAIN["nesterov"].when == {"momentum": (0.9,), "optimizer": ("sgd",)}
    adapter = TypeAdapter(Space)
    assert adapter.validate_json(adapter.dump_json(CHAIN)) == CHAIN


def test_fields_come_after_those_that_their_conditions_are_about():
    assert in_order(CHAIN) == ["optimizer", "lr", "momentum", "nesterov"]
    flat = {name: Range(low=0, high=1) for name in "cab"}
    assert in_order(flat) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("conditions", "circle"),
    [({"a": "a"}, "a -> a"), ({"a": "b", "b": "c", "c": "b"}, "b -> c -> b"), ({"a": "b", "b": "a"}, "a -> b -> a")],
)
def test_conditions_in_a_circle_are_refused(conditions, circle):
    space = {name: Range(low=0, high=1, when={parent: 1}) for name, parent in conditions.items()}
    with pytest.raises(ValueError, match=f"circle: {circle}$"):
        in_order({**space, "free": Range(low=0, high=1)})


def test_draw_has_the_fields_whose_conditions_hold():
    rng = random.Random(0)
    drawn = [draw(CHAIN, rng) for _ in range(200)]
    for params in drawn:
        assert ("momentum" in params) == (params["optimizer"] != "adamw")
        assert ("nesterov" in params) == (params["optimizer"] == "sgd" and params["momentum"] == 0.9)
    assert {frozenset(params) for params in drawn} == {
        frozenset({"optimizer", "lr"}),
        frozenset({"optimizer", "lr", "momentum"}),
        frozenset({"optimizer", "lr", "momentum", "nesterov"}),
    }


@pytest.mark.parametrize(
    ("searched", "values"),
    [
        (Range(low=2, high=8, step=3, integer=True), {2, 5, 8}),
        (Range(low=1, high=4, log=True, step=1, integer=True), {1, 2, 3, 4}),
        (Range(low=0.0, high=0.3, step=0.1), {0.0, 0.1, 0.2, 0.1 * 3}),
        (Range(low=0, high=1, step=1), {0.0, 1.0}),
        (Choices(choices=("a", 1)), {"a", 1}),
    ],
)
def test_uniform_draw_finds_every_value_and_no_other(searched, values):
    rng = random.Random(0)
    drawn = {searched.draw(rng) for _ in range(200)}
    assert drawn == values
    assert {type(value) for value in drawn} == {type(value) for value in values}
    assert all(searched.takes(value) for value in drawn - {0.1 * 3})


def test_uniform_draw_of_a_log_range_is_even_on_its_scale():
    rng = random.Random(0)
    drawn = [Range(low=1e-4, high=1.0, log=True).draw(rng) for _ in range(1000)]
    assert sum(value < 1e-2 for value in drawn) == pytest.approx(500, abs=60)


def test_conditions_on_given_fields_are_settled():
    without = {name: searched for name, searched in CHAIN.items() if name != "optimizer"}
    assert list(settle(without, {"optimizer": "adamw"})) == ["lr"]
    rms = settle(without, {"optimizer": "rmsprop"})
    assert list(rms) == ["momentum", "lr"]
    assert rms["momentum"].when == {}
    sgd = settle(without, {"optimizer": "sgd"})
    assert sgd["nesterov"].when == {"momentum": (0.9,)}
    narrowed = settle({**CHAIN, "optimizer": Choices(choices=("adamw", "rmsprop"))}, {})
    assert list(narrowed) == ["momentum", "optimizer", "lr"]


def test_condition_is_described_with_its_field():
    assert describe(CHAIN["momentum"].model_dump()) == "0.5, 0.9 when optimizer=sgd|rmsprop"
    assert describe(CHAIN["lr"].model_dump()) == "0.0001 to 0.1 log"
    assert "when" not in plain(CHAIN["lr"])
    assert plain(CHAIN["momentum"])["when"] == {"optimizer": ["sgd", "rmsprop"]}

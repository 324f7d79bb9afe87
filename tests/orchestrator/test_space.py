"""Ranges and choices: which are possible."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from orchestrator.space import Choices, Range, Space


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

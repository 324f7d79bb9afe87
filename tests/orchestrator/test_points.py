"""The values of a space: counted, fitted, and laid out from 0 to 1."""

from __future__ import annotations

import math

import pytest

from orchestrator.points import Points, fitting, from_unit, index_of, nearest, num_values, to_unit, value_at
from orchestrator.space import Choices, Range

STEPPED = Range(low=0.1, high=0.35, step=0.1)
WHOLE = Range(low=8, high=13, step=2, integer=True)
LOG = Range(low=1e-4, high=1e-1, log=True)
LOG_WHOLE = Range(low=8, high=128, step=1, log=True, integer=True)
WORDS = Choices(choices=("sgd", "adamw"))
NUMBERS = Choices(choices=(16, 24, 64))
MIXED = Choices(choices=(True, 1, "1"))
COUNTED = [(STEPPED, 3), (WHOLE, 3), (LOG_WHOLE, 121), (WORDS, 2), (MIXED, 3)]


@pytest.mark.parametrize(("searched", "count"), COUNTED)
def test_each_value_that_can_be_counted_has_its_index(searched, count):
    assert num_values(searched) == count
    values = [value_at(searched, index) for index in range(count)]
    assert [index_of(searched, value) for value in values] == list(range(count))
    assert all(fitting(searched, value) == value for value in values)


def test_range_without_steps_has_no_number_of_values():
    assert num_values(LOG) == math.inf
    assert not Points({"lr": LOG, "optimizer": WORDS}, 0).countable


def test_last_value_of_a_stepped_range_does_not_pass_its_end():
    assert value_at(Range(low=0.1, high=0.3, step=0.1), 2) == 0.3


@pytest.mark.parametrize(
    ("searched", "value", "fits"),
    [
        (LOG, 1e-3, 1e-3),
        (LOG, 1, None),
        (LOG, True, None),
        (LOG, "1e-3", None),
        (LOG, math.nan, None),
        (STEPPED, 0.30000000000000004, pytest.approx(0.3)),
        (STEPPED, 0.25, None),
        (WHOLE, 10, 10),
        (WHOLE, 11, None),
        (WHOLE, 10.0, None),
        (WORDS, "adamw", "adamw"),
        (WORDS, "adam", None),
        (WORDS, None, None),
        (NUMBERS, 24.0, 24),
        (MIXED, True, True),
    ],
)
def test_value_fits_as_the_space_has_it_or_not_at_all(searched, value, fits):
    found = fitting(searched, value)
    assert found == fits
    assert isinstance(found, bool) == isinstance(fits, bool)


@pytest.mark.parametrize(
    ("searched", "value", "found"),
    [
        (LOG, 1e-3, 1e-3),
        (LOG, 5, 1e-1),
        (LOG, 1e-9, 1e-4),
        (STEPPED, 0.24, pytest.approx(0.2)),
        (STEPPED, 9.0, pytest.approx(0.3)),
        (WHOLE, 13, 12),
        (WHOLE, 9.2, 10),
        (WORDS, "lion", "sgd"),
        (NUMBERS, 30, 24),
        (NUMBERS, "many", 16),
    ],
)
def test_nearest_value_lies_in_the_space(searched, value, found):
    assert nearest(searched, value) == found
    assert fitting(searched, nearest(searched, value)) is not None


@pytest.mark.parametrize("searched", [LOG, STEPPED, WHOLE, LOG_WHOLE, Range(low=-1.0, high=3.0)])
def test_places_from_0_to_1_are_values_and_back(searched):
    values = [from_unit(searched, place / 200) for place in range(201)]
    assert values == sorted(values)
    assert all(fitting(searched, value) is not None for value in values)
    assert all(from_unit(searched, to_unit(searched, value)) == pytest.approx(value) for value in values)
    assert {type(value) for value in values} == {int if searched.integer else float}


@pytest.mark.parametrize("searched", [STEPPED, WHOLE, WORDS])
def test_values_of_a_step_or_choice_are_equally_wide(searched):
    values = [from_unit(searched, (place + 0.5) / 300) for place in range(300)]
    assert {values.count(value) for value in values} == {300 // int(num_values(searched))}


def test_order_has_each_configuration_once():
    points = Points({"rate": STEPPED, "width": WHOLE, "optimizer": WORDS}, seed=0)
    listed = list(points.listed())
    assert len({points.key(params) for params in listed}) == len(listed) == 18
    assert listed == list(points.listed())
    assert listed != list(Points({"rate": STEPPED, "width": WHOLE, "optimizer": WORDS}, seed=1).listed())


def test_key_is_one_for_a_stepped_number_however_it_was_rounded():
    points = Points({"rate": STEPPED}, seed=0)
    assert points.key({"rate": 0.1 + 2 * 0.1}) == points.key({"rate": 0.3})
    assert points.key({"rate": 0.2}) != points.key({"rate": 0.3})


def test_fields_whose_condition_does_not_hold_are_no_part_of_a_configuration():
    momentum = Choices(choices=(0.5, 0.9), when={"optimizer": "sgd"})
    points = Points({"optimizer": WORDS, "momentum": momentum}, seed=0)
    listed = {points.key(params) for params in points.listed()}
    assert listed == {(("momentum", 0), ("optimizer", 0)), (("momentum", 1), ("optimizer", 0)), (("optimizer", 1),)}

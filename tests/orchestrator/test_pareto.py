"""Fronts of vectors, against their definition."""

from __future__ import annotations

import random

import pytest

from orchestrator.pareto import dominates, fronts, order


def by_definition(table):
    left, found = dict(table), []
    while left:
        found.append([trial for trial in left if not any(dominates(other, left[trial]) for other in left.values())])
        left = {trial: vector for trial, vector in left.items() if trial not in found[-1]}
    return found


@pytest.mark.parametrize("num_values", [1, 2, 3, 4])
def test_fronts_are_those_of_the_definition_with_equal_values_among_them(num_values):
    rng = random.Random(num_values)
    for _ in range(100):
        vectors = [tuple(rng.choice([rng.random(), rng.randint(0, 3)]) for _ in range(num_values)) for _ in range(30)]
        table = dict(enumerate([*vectors, *vectors[:3]]))
        assert fronts(table) == by_definition(table)


def test_order_goes_front_by_front_and_the_loneliest_first():
    front = {0: (0.0, 10.0), 1: (1.0, 9.0), 2: (5.0, 5.0), 3: (6.0, 4.5), 4: (10.0, 0.0)}
    behind = {5: (4.0, 4.0), 6: (4.0, 4.0), 7: (0.0, 0.0)}
    assert order({**behind, **front}) == [0, 4, 1, 3, 2, 5, 6, 7], "the ends, then 1, 1 and 0.95 apart, then by number"

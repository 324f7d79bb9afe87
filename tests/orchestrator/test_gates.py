from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import binomtest

from orchestrator.gates import (
    SIGNIFICANCE,
    Gate,
    compare_answers,
    compare_errors,
    mcnemar,
    num_shared,
)


@pytest.mark.parametrize(("num_worse", "num_better"), [(0, 0), (1, 0), (0, 7), (5, 5), (9, 1), (40, 21), (300, 260)])
def test_mcnemar_equals_the_exact_binomial_test(num_worse: int, num_better: int) -> None:
    total = num_worse + num_better
    expected = binomtest(num_worse, total, alternative="greater").pvalue if total else 1.0
    assert mcnemar(num_worse=num_worse, num_better=num_better) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_thousands_of_images_is_a_number() -> None:
    assert mcnemar(num_worse=2500, num_better=2500) == pytest.approx(0.5, abs=0.01)
    assert mcnemar(num_worse=3000, num_better=2000) < 1e-30


def test_a_candidate_that_is_right_on_one_image_fewer_is_named_by_its_counts() -> None:
    champion = np.array([True] * 90 + [False] * 10)
    candidate = champion.copy()
    candidate[0] = False
    correct, p = compare_answers(champion, candidate)
    told = correct.to_json()
    difference = told.pop("difference")
    assert told == {"name": "test_correct", "figure": 89, "limit": 90, "passed": False}
    assert difference == {"mean": -0.01, "low": -0.03, "high": 0.0}
    assert p.passed, "one image is no evidence"
    assert str(correct) == (
        "test_correct is 89, at least 90 is asked (difference -0.0100, 95% interval -0.0300 to 0.0000)"
    )


def test_a_candidate_that_fails_where_the_champion_does_not_is_worse_by_mcnemar() -> None:
    champion, candidate = np.array([True] * 5 + [False] * 95), np.array([False] * 5 + [False] * 95)
    _, p = compare_answers(champion, candidate)
    assert p.figure == pytest.approx(1 / 32)
    assert p.limit == SIGNIFICANCE
    assert not p.passed


def test_as_many_right_answers_on_other_images_pass() -> None:
    champion = np.array([True, False] * 20)
    assert all(gate.passed for gate in compare_answers(champion, ~champion))


def test_a_figure_that_is_not_a_number_passes_no_gate() -> None:
    assert not Gate(name="onnx_difference", figure=math.nan, limit=1e-4).passed
    assert not Gate(name="test_correct", figure=math.nan, limit=1, at_least=True).passed


def test_num_shared_counts_pictures_that_another_set_holds() -> None:
    pictures = np.arange(5 * 4, dtype=np.uint8).reshape(5, 1, 2, 2)
    assert num_shared(pictures, []) == 0
    assert num_shared(pictures, [pictures[3:] + 100, pictures[1:3]]) == 2


def test_a_candidate_that_is_further_off_is_named_by_both_errors() -> None:
    champion = np.linspace(0, 1, 20)
    error, p = compare_errors(champion, champion + 0.1)
    assert (error.figure, error.limit, error.passed) == pytest.approx((0.6, 0.5, False))
    assert astuple(error.difference) == pytest.approx((0.1, 0.1, 0.1))
    assert p.figure == pytest.approx(2**-20)
    assert all(gate.passed for gate in compare_errors(champion, champion))


def test_a_candidate_with_one_great_error_less_may_be_worse_on_most_images() -> None:
    champion = np.array([100.0, *np.zeros(10)])
    error, p = compare_errors(champion, np.ones(11))
    assert error.passed
    assert p.name == "sign_test_p"
    assert not p.passed

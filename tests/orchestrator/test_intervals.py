from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.stats import binomtest
from sklearn import metrics as sk

from orchestrator import intervals
from orchestrator.intervals import Interval, auroc, bootstrap, of_classes, of_labels, of_numbers, share
from recipes.data.types import ImageInfo
from recipes.metrics import summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

NUM_IMAGES = 400


def assert_close(
    found: Iterable[tuple[float, float]],
    statistics: Callable[..., Sequence[float]],
    *arrays: np.ndarray[Any, Any],
    times: int = 1000,
) -> None:
    """See that intervals are those of resamples, drawn an image at a time, as nearly as their number allows."""
    generator, size = np.random.default_rng(5), len(arrays[0])
    drawn = []
    for _ in range(times):
        chosen = generator.integers(size, size=size)
        drawn.append(statistics(*(array[chosen] for array in arrays)))
    for interval, (low, high) in zip(found, np.quantile(drawn, [0.025, 0.975], axis=0).T, strict=True):
        assert interval == pytest.approx((low, high), abs=0.12 * (high - low))


def macro(true: np.ndarray[Any, Any], given: np.ndarray[Any, Any]) -> Sequence[float]:
    """Macro precision, recall and F1."""
    *found, _ = sk.precision_recall_fscore_support(true, given, average="macro", zero_division=0)
    return found


@pytest.fixture(scope="module")
def scores() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Logits `(N, 3)` of images, some of them equal, and their classes `(N,)`, of which the last is rare."""
    generator = np.random.default_rng(3)
    true = generator.choice(3, NUM_IMAGES, p=[0.5, 0.4, 0.1])
    return np.round(np.eye(3)[true] * 1.5 + generator.normal(size=(NUM_IMAGES, 3)), 1), true


@pytest.mark.parametrize("right", [0.9, 0.5])
def test_bootstrap_interval_is_that_of_scipy(right: float) -> None:
    generator = np.random.default_rng(1)
    for values in (
        generator.choice([-1.0, 0.0, 1.0], 400, p=[0.1, right - 0.1, 1 - right]),
        generator.normal(size=300),
    ):
        found = bootstrap(values)
        expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=0).confidence_interval
        width = expected.high - expected.low
        assert found.mean == pytest.approx(values.mean())
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.06 * width)


def test_bootstrap_of_many_distinct_values_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=500)
    whole = bootstrap(values)
    monkeypatch.setattr(intervals, "MAX_DRAWN", 500 * 300)
    assert astuple(bootstrap(values)) == pytest.approx(astuple(whole)), "the draws go on where they were"


@pytest.mark.parametrize(("num_right", "total"), [(0, 5), (5, 5), (340, 359), (1, 2)])
def test_interval_of_a_share_is_wilsons(num_right: int, total: int) -> None:
    expected = binomtest(num_right, total).proportion_ci(method="wilson")
    assert astuple(share(num_right, total)) == pytest.approx((num_right / total, expected.low, expected.high), abs=1e-6)


def test_macro_intervals_of_classes_are_those_of_resampled_images(
    scores: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
) -> None:
    logits, true = scores
    given = logits.argmax(1)
    found = of_classes(given, true, 3)
    assert_close(found.values(), macro, true, given, times=500)
    figures = summary(torch.from_numpy(logits), torch.from_numpy(true), info("classification"))
    assert all(low < figures[name] < high for name, (low, high) in found.items())
    many = of_classes(np.tile(given, 100), np.tile(true, 100), 3)
    assert all(many[name][1] - many[name][0] < 0.2 * (found[name][1] - found[name][0]) for name in found)


def test_class_that_no_image_is_of_or_was_taken_for_is_left_out() -> None:
    true = np.array([0, 1] * 50)
    given = np.where(np.arange(100) < 10, 1 - true, true)
    assert of_classes(given, true, 5) == of_classes(given, true, 2)


def test_macro_intervals_of_labels_are_those_of_resampled_images() -> None:
    generator = np.random.default_rng(4)
    true = generator.random((NUM_IMAGES, 3)) < [0.5, 0.2, 0.05]
    given = np.where(generator.random(true.shape) < 0.2, ~true, true)
    found = of_labels(given, true)
    assert list(found) == ["precision", "recall", "f1"]
    assert_close(found.values(), macro, true, given, times=500)


def test_intervals_of_numbers_are_those_of_resampled_images() -> None:
    generator = np.random.default_rng(6)
    true = generator.normal(size=(NUM_IMAGES, 2)) * [1.0, 30.0] + [1000.0, -5.0]
    given = true + generator.normal(size=true.shape) * [0.5, 20.0]
    found = of_numbers(given, true)

    def figures(true: np.ndarray[Any, Any], given: np.ndarray[Any, Any]) -> Sequence[float]:
        errors = sk.mean_absolute_error(true, given), sk.mean_squared_error(true, given) ** 0.5
        return [*errors, sk.r2_score(true, given)]

    assert list(found) == ["mae", "rmse", "r2"]
    assert_close(found.values(), figures, true, given)


def test_numbers_that_are_all_one_explain_nothing() -> None:
    true = np.ones((50, 1))
    assert of_numbers(true + np.linspace(0, 1, 50)[:, None], true)["r2"] == (0, 0)


def test_area_under_the_curve_is_torchmetrics_and_its_interval_nearly_that_of_resampled_images(
    scores: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
) -> None:
    logits, true = scores
    chances = torch.from_numpy(logits).softmax(1)
    found = auroc(chances.numpy(), np.eye(3, dtype=bool)[true])
    assert found is not None
    expected = summary(torch.from_numpy(logits), torch.from_numpy(true), info("classification"))["auroc"]
    assert found.mean == pytest.approx(expected, abs=1e-6)

    def area(of: np.ndarray[Any, Any], classes: np.ndarray[Any, Any]) -> Sequence[float]:
        return [sk.roc_auc_score(classes, of, multi_class="ovr")]

    assert_close([(found.low, found.high)], area, chances.numpy(), true, times=500)


def test_area_under_the_curve_of_labels_is_torchmetrics() -> None:
    generator = np.random.default_rng(7)
    true = generator.random((NUM_IMAGES, 2)) < [0.5, 0.1]
    logits = torch.from_numpy(true * 2.0 + generator.normal(size=true.shape))
    found = auroc(logits.sigmoid().numpy(), true)
    assert found is not None
    expected = summary(logits, torch.from_numpy(true).double(), info("multilabel", 2))["auroc"]
    assert found.mean == pytest.approx(expected, abs=1e-6)
    assert found.low < found.mean < found.high


def test_interval_of_nearly_all_in_order_stays_below_one_and_of_all_there_is_none() -> None:
    true = np.eye(2, dtype=bool)[np.arange(100) % 2]
    sure = true.astype(float)
    assert auroc(sure, true) is None
    sure[0] = sure[0, ::-1]
    found = auroc(sure, true)
    assert isinstance(found, Interval)
    assert 0.9 < found.low < found.mean < found.high < 1
    assert auroc(sure, np.zeros_like(true)) is None, "a class without an image"


def info(task: Any, num_classes: int = 3) -> ImageInfo:
    return ImageInfo(
        channels=1,
        height=1,
        width=1,
        num_classes=num_classes,
        class_names=tuple(map(str, range(num_classes))),
        mean=(0.0,),
        std=(1.0,),
        task=task,
    )

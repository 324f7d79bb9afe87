"""95% intervals of figures on the test images: what other images of their kind might have given. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import exp, sqrt
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T", bound="np.generic")
NUM_RESAMPLES = 2000
MAX_DRAWN = 10_000_000  # counts held at once
NORMAL_QUANTILE = 1.959964  # of 97.5%
MACRO = ("precision", "recall", "f1")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f}, 95% interval {self.low:.4f} to {self.high:.4f}"


def share(num_right: int, total: int) -> Interval:
    """A share with its 95% score interval (Wilson 1927, JASA 22, 209), which holds for few images and for all right."""
    p, z = num_right / total, NORMAL_QUANTILE
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return Interval(mean=p, low=max(0.0, middle - half), high=min(1.0, middle + half))


def bootstrap(values: NDArray[np.float64]) -> Interval:
    """The mean of `values` `(N,)`, one an image, with its 95% percentile interval (Efron and Tibshirani 1993, ch. 13).

    Differences of the same images give a paired interval.
    """
    import numpy as np

    ((low, high),) = _percentiles(*_distinct(values[:, None]), lambda sums: sums / len(values))
    return Interval(mean=float(np.mean(values)), low=low, high=high)


def of_classes(given: NDArray[np.int64], true: NDArray[np.int64], num_classes: int) -> dict[str, tuple[float, float]]:
    """Percentile intervals of macro precision, recall and F1: `given` and `true` are the classes `(N,)` of images.

    Classes that no image is of, or was taken for, are left out.
    """
    import numpy as np

    pairs, counts = _distinct(np.stack([given, true], axis=1))
    taken_for, of = np.eye(num_classes)[pairs.T]
    parts = np.concatenate([taken_for * of, taken_for, of], axis=1)
    return dict(zip(MACRO, _percentiles(parts, counts, partial(_macro, leaves_out=True)), strict=True))


def of_labels(given: NDArray[np.bool_], true: NDArray[np.bool_]) -> dict[str, tuple[float, float]]:
    """Percentile intervals of macro precision, recall and F1 of labels `(N, K)` that images were given and have."""
    import numpy as np

    parts = np.concatenate([given & true, given, true], axis=1).astype(float)
    return dict(zip(MACRO, _percentiles(*_distinct(parts), partial(_macro, leaves_out=False)), strict=True))


def of_numbers(given: NDArray[np.float64], true: NDArray[np.float64]) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the mean absolute error, the root mean squared one, and R², of numbers `(N, K)`."""
    import numpy as np

    errors, about = given - true, true - true.mean(0)
    parts = np.concatenate([np.abs(errors), errors**2, about, about**2], axis=1)

    def figures(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        absolute, squared, mean, mean_squared = np.split(sums / len(true), 4, axis=1)
        spread = mean_squared - mean**2
        explained = np.where(spread > 0, 1 - squared / np.where(spread > 0, spread, 1), 0)
        return np.stack([absolute.mean(1), np.sqrt(squared.mean(1)), explained.mean(1)], axis=1)

    return dict(zip(("mae", "rmse", "r2"), _percentiles(*_distinct(parts), figures), strict=True))


def auroc(scores: NDArray[np.float64], true: NDArray[np.bool_]) -> Interval | None:
    """The mean area under the ROC curves of classes or labels, `(N, K)` each, one against the rest.

    The spread is that of DeLong, DeLong and Clarke-Pearson (1988, Biometrics 44, 837), which needs no resamples; on the
    logit scale the interval stays within 0 and 1 (Pepe 2003, ch. 5). None where there is no spread, as of an area of 1.
    """
    import numpy as np

    areas, spread = [], np.zeros(len(true))
    for column, has in zip(scores.T, true.T, strict=True):
        inside, outside = column[has], column[~has]
        if not (len(inside) and len(outside)):
            return None
        above, below = _share_below(inside, outside), 1 - _share_below(outside, inside)
        areas.append(float(above.mean()))
        spread[has] += (above - areas[-1]) / len(inside)
        spread[~has] += (below - areas[-1]) / len(outside)
    mean, deviation = sum(areas) / len(areas), sqrt(float((spread**2).sum())) / len(areas)
    if not (0 < mean < 1 and deviation):
        return None
    odds, factor = mean / (1 - mean), exp(NORMAL_QUANTILE * deviation / (mean * (1 - mean)))
    return Interval(mean=mean, low=1 / (1 + factor / odds), high=1 / (1 + 1 / (odds * factor)))


def _share_below(scores: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each score, the share of others that lie below it; of equal ones half."""
    import numpy as np

    others = np.sort(others)
    both = np.searchsorted(others, scores) + np.searchsorted(others, scores, side="right")
    return np.asarray(both / (2 * len(others)))


def _macro(sums: NDArray[np.float64], *, leaves_out: bool) -> NDArray[np.float64]:
    """Macro precision, recall and F1 `(R, 3)` of images `(R, 3K)` rightly taken for a class, taken for it, and of it.

    `leaves_out` passes over classes without any.
    """
    import numpy as np

    right, taken, there = np.split(sums, 3, axis=1)
    count = np.maximum(1, (taken + there > 0).sum(1)) if leaves_out else right.shape[1]
    ratios = (right / np.maximum(1, taken), right / np.maximum(1, there), 2 * right / np.maximum(1, taken + there))
    return np.stack([ratio.sum(1) / count for ratio in ratios], axis=1)


def _distinct(rows: NDArray[T]) -> tuple[NDArray[T], NDArray[np.int64]]:
    """The distinct rows, and how many images have each: few, where they are of right and wrong."""
    import numpy as np

    return np.unique(rows, axis=0, return_counts=True)


def _percentiles(
    parts: NDArray[np.float64],
    counts: NDArray[np.int64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> list[tuple[float, float]]:
    """2.5% and 97.5% of each of the statistics `(R, S)` of resampled images: of the sums `(R, P)` of their parts.

    `counts` `(D,)` images have the row of `parts` `(D, P)`. A resample is drawn as how often it has each row, which is
    the same as an image at a time, and far less where rows are few. The draws are the same each time.
    """
    import numpy as np

    generator, size = np.random.default_rng(0), int(counts.sum())
    step = max(1, MAX_DRAWN // len(counts))
    found: list[NDArray[np.float64]] = []
    for start in range(0, NUM_RESAMPLES, step):
        drawn = generator.multinomial(size, counts / size, size=min(step, NUM_RESAMPLES - start))
        found.append(statistic(drawn @ parts))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975], axis=0).tolist()
    return list(zip(low, high, strict=True))

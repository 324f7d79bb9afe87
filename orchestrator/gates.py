"""The gates of a promotion: figures against limits, and the statistics behind them. Pure: numbers in, numbers out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from hashlib import blake2b
from math import comb, sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

SIGNIFICANCE = 0.05
NUM_RESAMPLES = 2000
MAX_DRAWN = 10_000_000  # counts held at once
NORMAL_QUANTILE = 1.959964  # of 97.5%


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f}, 95% interval {self.low:.4f} to {self.high:.4f}"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A figure that must not go above its `limit`, or, where `at_least` is set, not below it.

    No reason lets a model through one that is `firm`. `difference` is the candidate's figure less the champion's, a
    mean over the test images.
    """

    name: str
    figure: float
    limit: float
    at_least: bool = False
    firm: bool = False
    difference: Interval | None = None

    @property
    def passed(self) -> bool:
        """Whether the figure keeps to its limit; one that is not a number does not."""
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        found = {"name": self.name, "figure": self.figure, "limit": self.limit, "passed": self.passed}
        return {**found, "difference": asdict(self.difference)} if self.difference else found

    def __str__(self) -> str:
        asked = f"{'at least' if self.at_least else 'at most'} {self.limit:.6g} is asked"
        told = f" (difference {self.difference})" if self.difference else ""
        return f"{self.name} is {self.figure:.6g}, {asked}{told}"


def compare_answers(champion: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> list[Gate]:
    """Gates on which of the same test images two models get right, `(N,)` each: not fewer, and not worse by McNemar."""
    assert champion.shape == candidate.shape, "both answer the same images"
    p = mcnemar(num_worse=int((champion & ~candidate).sum()), num_better=int((candidate & ~champion).sum()))
    figure, limit = int(candidate.sum()), int(champion.sum())
    difference = bootstrap(candidate.astype(float) - champion)
    return [
        Gate(name="test_correct", figure=figure, limit=limit, at_least=True, difference=difference),
        Gate(name="mcnemar_p", figure=p, limit=SIGNIFICANCE, at_least=True),
    ]


def compare_errors(champion: NDArray[np.float64], candidate: NDArray[np.float64]) -> list[Gate]:
    """Gates on how far two models are off on the same test images, `(N,)` each: not more, and not worse by a sign test.

    The sign test (Dixon and Mood 1946, JASA 41, 557) asks on which images each is the closer one; it is McNemar's.
    """
    assert champion.shape == candidate.shape, "both answer the same images"
    p = mcnemar(num_worse=int((candidate > champion).sum()), num_better=int((candidate < champion).sum()))
    difference = bootstrap(candidate - champion)
    return [
        Gate(name="test_error", figure=float(candidate.mean()), limit=float(champion.mean()), difference=difference),
        Gate(name="sign_test_p", figure=p, limit=SIGNIFICANCE, at_least=True),
    ]


def mcnemar(*, num_worse: int, num_better: int) -> float:
    """One-sided exact p-value that a candidate is worse than the champion (McNemar 1947, Psychometrika 12, 153).

    `num_worse` images only the champion gets right, `num_better` only the candidate. If both were equally good, each
    such image would fall to either with probability one half: the p-value is P(X >= num_worse) for a binomial X.
    """
    total = num_worse + num_better
    # Whole numbers up to the one division: 2**-total is no float for more than a thousand images.
    tail: int = sum(comb(total, count) for count in range(num_worse, total + 1))
    return tail / (1 << total)


def bootstrap(values: NDArray[np.float64]) -> Interval:
    """The mean of `values` `(N,)`, one an image, with its 95% percentile interval (Efron and Tibshirani 1993, ch. 13).

    Differences of the same images give a paired interval. Each resample is drawn as how often each distinct value is in
    it, which is the same and far less to draw where values are few, as those of right and wrong are.
    """
    import numpy as np

    distinct, counts = np.unique(values, return_counts=True)
    ((low,), (high,)) = _percentiles(counts, lambda drawn: (drawn @ distinct / len(values))[:, None])
    return Interval(mean=float(np.mean(values)), low=low, high=high)


def bootstrap_macro(confusion: NDArray[np.int64]) -> dict[str, tuple[float, float]]:
    """95% percentile intervals of the macro means of precision, recall and F1 by resampled images.

    `confusion` `(K, K)` has a row a class and a column for what it was taken for; classes without either are left out.
    """
    ends = _percentiles(confusion.ravel(), lambda drawn: _macro(drawn.reshape(-1, *confusion.shape)))
    return {name: (low, high) for name, low, high in zip(("precision", "recall", "f1"), *ends, strict=True)}


def _macro(confusions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Macro precision, recall and F1 `(R, 3)` of confusion matrices `(R, K, K)`."""
    import numpy as np

    right = np.einsum("rkk->rk", confusions)
    taken, true = confusions.sum(1), confusions.sum(2)
    present = np.maximum(1, ((taken + true) > 0).sum(1))
    ratios = (right / np.maximum(1, taken), right / np.maximum(1, true), 2 * right / np.maximum(1, taken + true))
    return np.stack([ratio.sum(1) / present for ratio in ratios], axis=1)


def _percentiles(
    counts: NDArray[np.int64], statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]]
) -> list[list[float]]:
    """2.5% and 97.5% of statistics `(R, S)` of `R` resampled counts; the draws are the same each time."""
    import numpy as np

    generator, size = np.random.default_rng(0), int(counts.sum())
    step = max(1, MAX_DRAWN // len(counts))
    found: list[NDArray[np.float64]] = []
    for start in range(0, NUM_RESAMPLES, step):
        drawn = generator.multinomial(size, counts / size, size=min(step, NUM_RESAMPLES - start))
        found.append(statistic(drawn))
    ends: list[list[float]] = np.quantile(np.concatenate(found), [0.025, 0.975], axis=0).tolist()
    return ends


def share(num_right: int, total: int) -> Interval:
    """A share with its 95% score interval (Wilson 1927, JASA 22, 209), which holds for few images and for all right."""
    p, z = num_right / total, NORMAL_QUANTILE
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return Interval(mean=p, low=max(0.0, middle - half), high=min(1.0, middle + half))


def num_shared(pictures: NDArray[np.uint8], others: Iterable[NDArray[np.uint8]]) -> int:
    """How many of `pictures` `(N, ...)` are, byte for byte, in one of `others`, `(M, ...)` each."""
    known = {_digest(other) for array in others for other in array}
    return sum(_digest(picture) in known for picture in pictures)


def _digest(picture: NDArray[np.uint8]) -> bytes:
    return blake2b(picture.tobytes(), digest_size=16).digest()

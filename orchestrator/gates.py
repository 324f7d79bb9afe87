"""The gates of a promotion: figures against limits, and the tests behind them. Pure: numbers in, numbers out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from hashlib import blake2b
from math import comb
from typing import TYPE_CHECKING, Any

from orchestrator.intervals import Interval, bootstrap

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

SIGNIFICANCE = 0.05


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


def num_shared(pictures: NDArray[np.uint8], others: Iterable[NDArray[np.uint8]]) -> int:
    """How many of `pictures` `(N, ...)` are, byte for byte, in one of `others`, `(M, ...)` each."""
    known = {_digest(other) for array in others for other in array}
    return sum(_digest(picture) in known for picture in pictures)


def _digest(picture: NDArray[np.uint8]) -> bytes:
    return blake2b(picture.tobytes(), digest_size=16).digest()

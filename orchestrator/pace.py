"""How many epochs trials train: as a pruner may be expected to let them, and as those that ended did. Pure."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

from orchestrator.pruning import AshaPause, Threshold

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from orchestrator.pruning import Pruner

MAX_SIMULATED = 300  # trials; a pruner's share changes little after so many
NUM_ORDERS = 5  # random orders of good and bad trials, whose mean is taken


def epochs_ahead(ended: Mapping[int, int], running: Iterable[int], max_epochs: int) -> list[float]:
    """The epochs that a trial may be expected to train yet, by how many it has trained: from 0 to `max_epochs`.

    `ended` is epochs -> how many trials ended after so many, `running` the epochs of those that have not. Among the
    trials that trained an epoch, those that ended there are the chance to end there (Kaplan and Meier 1958,
    doi 10.1080/01621459.1958.10501452), so that the trials that run on are not left out.
    """
    trained = Counter(ended) + Counter(running)
    ahead = [0.0] * (max_epochs + 1)
    num_reached = sum(count for epochs, count in trained.items() if epochs > max_epochs)
    for done in range(max_epochs - 1, -1, -1):
        num_reached += trained[done + 1]
        chance = ended.get(done + 1, 0) / num_reached if num_reached else 0.0
        ahead[done] = 1 + (1 - chance) * ahead[done + 1]
    return ahead


def expected_share(pruner: Pruner, num_trials: int, max_epochs: int) -> float | None:
    """The share of all epochs that is trained if trials differ at random and each stays as good as it is.

    None of a pruner whose decisions hang on the values themselves.
    """
    if isinstance(pruner, AshaPause):
        return _share_of_rungs(pruner, num_trials, max_epochs)
    if isinstance(getattr(pruner, "wrapped", pruner), Threshold):
        return None
    shares = [_simulated(pruner, min(num_trials, MAX_SIMULATED), max_epochs, seed) for seed in range(NUM_ORDERS)]
    return sum(shares) / len(shares)


def _share_of_rungs(pruner: AshaPause, num_trials: int, max_epochs: int) -> float:
    """Of the trials on a rung, one in `eta` is promoted, but at least one."""
    rungs = (*pruner.decision_epochs(0, max_epochs), max_epochs)
    num_epochs, before, count = 0, 0, num_trials
    for rung in rungs:
        num_epochs += count * (rung - before)
        before, count = rung, max(1, count // pruner.eta)
    return num_epochs / (num_trials * max_epochs)


def _simulated(pruner: Pruner, num_trials: int, max_epochs: int, seed: int) -> float:
    """The share under the pruner's own decisions, one trial after another."""
    rng = random.Random(seed)
    tables: dict[int, dict[int, float]] = {}
    num_epochs = 0
    for trial in range(num_trials):
        value, last = rng.random(), max_epochs
        for epoch in pruner.decision_epochs(trial, max_epochs):
            table = tables.setdefault(epoch, {})
            table[trial] = value
            if not pruner.goes_on(trial, max_epochs, table, [value] * epoch):
                last = epoch
                break
        num_epochs += last
    return num_epochs / (num_trials * max_epochs)


def clock(seconds: float) -> str:
    """A duration as minutes and seconds, or with hours: `4:05`, `2:04:05`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

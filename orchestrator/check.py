"""Whether a recipe can learn one batch by heart, which takes seconds and finds most mistakes in a model or its loss.

(A. Karpathy, "A Recipe for Training Neural Networks", 2019.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator import catalogue
from orchestrator.errors import RefusedError, UsageError
from recipes.config import AugmentConfig, fields, flatten, make

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.study import Study

MAX_STEPS = 300
LEARNT = 0.1  # of the first loss, or of a guess among the classes if that was lower
TRAIN_SHARE = 0.6
# What keeps a model from learning its images by heart, and what the field's value must be.
RESTRAINTS: dict[str, Any] = {
    **flatten(AugmentConfig()),
    "dropout": 0.0,
    "stochastic_depth": 0.0,
    "label_smoothing": 0.0,
    "weight_decay": 0.0,
    "ema": 0.0,
    "balance": "none",
    "patience": 0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """How it went: losses of the first and the last step."""

    steps: int
    first_loss: float
    last_loss: float


def overfit(study: Study) -> Learnt:
    """Train a study's default configuration on one batch until it is learnt by heart.

    Raises:
        UsageError: the recipe has no `limit` and `epochs`, without which it does not train on one batch, or a batch
            is too small for the data's classes.
        RefusedError: it is not learnt in `MAX_STEPS` steps, or diverges; the message has the losses.
    """
    from recipes.data import DataError
    from recipes.training import DivergedError

    recipe = catalogue.load(study.recipe)
    config = make(recipe.config_type, one_batch(study.config({}), fields(recipe.config_type)))
    losses: list[float] = []
    try:
        for epoch in recipe.module.train(config):
            losses.append(epoch.metrics["train_loss"])
            if losses[-1] <= LEARNT * losses[0]:
                return Learnt(steps=epoch.number, first_loss=losses[0], last_loss=losses[-1])
    except DataError as error:
        raise UsageError(f"{error}; a larger batch_size takes more images") from error
    except DivergedError as error:
        raise RefusedError(f"{recipe.name} does not learn one batch by heart: {error}") from error
    raise RefusedError(
        f"{recipe.name} does not learn one batch by heart: its loss went from {losses[0]:.4g} to {losses[-1]:.4g}"
        f" in {len(losses)} steps; the model, its loss or the learning rate is wrong"
    )


def one_batch(values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """These values for a training whose epoch is one step on one batch, with nothing that holds the model back."""
    if missing := [name for name in ("limit", "epochs", "batch_size") if name not in known]:
        raise UsageError(f"the recipe has no {' and no '.join(missing)}; it cannot be trained on one batch")
    limit = int(values["batch_size"] / TRAIN_SHARE)
    return {**values, **{name: value for name, value in RESTRAINTS.items() if name in known}} | {
        "limit": limit,
        "batch_size": limit,
        "epochs": MAX_STEPS,
    }

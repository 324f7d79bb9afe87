"""A recipe of three fields that is never trained: what `coordinator_cost.py` searches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from recipes.config import Part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recipes.loop import Attempt, Epoch


class ModelConfig(Part):
    """What is searched."""

    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    epochs: int = Field(10, gt=0)


class Config(Part):
    """All there is."""

    model: ModelConfig = ModelConfig()


def train(config: Config, attempt: Attempt | None = None) -> Iterator[Epoch]:
    """See `simulated.py`."""
    del config, attempt
    raise AssertionError("its epochs are simulated")

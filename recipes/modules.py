"""What several recipes build their networks of: stochastic depth, columns of tables, weights to start from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recipes.data.types import Column

INIT_STD = 0.02
Init = Annotated[
    Literal["default", "kaiming", "xavier", "normal"],
    Field(
        description="initial weights of convolutions and linear layers: kaiming and xavier by the width of a layer, "
        f"normal with a spread of {INIT_STD} for all, default as PyTorch does"
    ),
]


class StochasticDepth(nn.Module):
    """Leaves a branch out for some of the images in training: (B, ...) to (B, ...), all zeros where it is left out.

    What is kept is divided by the share kept, as in dropout, so that evaluation takes the branch as it is. Draws come
    from PyTorch's global generator, which checkpoints hold. After Huang et al. (arXiv:1603.09382).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to (B, ...)."""
        if not self.training or not self.probability:
            return x
        kept = 1 - self.probability
        return x * x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(kept).div_(kept)

    def extra_repr(self) -> str:
        """The probability, for `print`."""
        return str(self.probability)


class Columns(nn.Module):
    """Rows of a table as they are read to features: (B, F) float, NaN where a value is missing, to (B, E).

    A number gets mean 0 and spread 1, a missing one 0; where the training data have gaps, another feature says so. A
    category is a feature of its own, 1 where it is; a missing or unknown one has zeros in all.
    """

    mean: Tensor
    scale: Tensor
    numbers: Tensor
    gaps: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        numbers = [index for index, column in enumerate(columns) if not column.categories]
        gaps = [index for index in numbers if columns[index].has_gaps]
        self._categories = [(index, len(column.categories)) for index, column in enumerate(columns)]
        self.register_buffer("mean", torch.tensor([columns[index].mean for index in numbers]), persistent=False)
        self.register_buffer("scale", torch.tensor([1 / columns[index].std for index in numbers]), persistent=False)
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.long), persistent=False)
        self.register_buffer("gaps", torch.tensor(gaps, dtype=torch.long), persistent=False)
        self.num_features = len(numbers) + len(gaps) + sum(count for _, count in self._categories)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (B, F) to features (B, E)."""
        scaled = (x[:, self.numbers] - self.mean) * self.scale
        features = [torch.where(scaled.isnan(), 0.0, scaled), x[:, self.gaps].isnan().to(x.dtype)]
        for index, count in self._categories:
            if count:
                features.append((x[:, index : index + 1] == torch.arange(count, device=x.device)).to(x.dtype))
        return torch.cat(features, 1)


def rising(largest: float, num_blocks: int) -> list[float]:
    """Probabilities of leaving a block out, rising evenly from the input's side to `largest` at the last block."""
    return [largest * number / num_blocks for number in range(1, num_blocks + 1)]


def initialise(model: nn.Module, init: Init) -> None:
    """Draw the weights of all convolutions and linear layers anew, their biases zero; `default` leaves all as it is.

    Normalisations stay as they are. After He et al. (arXiv:1502.01852) and Glorot and Bengio (AISTATS 2010).
    """
    if init == "default":
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if init == "kaiming":
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif init == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.normal_(module.weight, std=INIT_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

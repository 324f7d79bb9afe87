"""What several recipes build their networks of: stochastic depth, and the weights that they start from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

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

"""What a model's outputs mean: one class, any number of labels, or numbers; and how well they say it, epoch by epoch.

Shapes: B images in a batch, K outputs; outputs are logits, or numbers of mean 0 and spread 1, `(B, K)`. Targets are
classes `(B,)` int64, or float32 `(B, K)`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from recipes.data import ImageInfo


class Judge(Protocol):
    """Adds up on the device what a pass over a split's images says, and makes metrics of the sums."""

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is added up, of one batch, `(S,)`."""

    def metrics(self, sums: Sequence[float], count: int) -> dict[str, float]:
        """`val_loss` and what ranks epochs, from the sums over all `count` images."""


class Classes:
    """Cross-entropy and the share of right answers."""

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Judge`."""
        loss = cross_entropy(outputs, targets, reduction="sum")
        return torch.stack([loss, (outputs.argmax(1) == targets).sum()])

    def metrics(self, sums: Sequence[float], count: int) -> dict[str, float]:
        """See `Judge`."""
        loss, right = sums
        return {"val_loss": loss / count, "val_accuracy": right / count}


class Labels:
    """Binary cross-entropy, and F1 and accuracy of labels that count as given from a probability of one half."""

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Judge`."""
        loss = binary_cross_entropy_with_logits(outputs, targets, reduction="sum")
        given, true = outputs > 0, targets > 0
        right = (given == true).sum()
        return torch.cat([torch.stack([loss, right]), (given & true).sum(0), given.sum(0), true.sum(0)])

    def metrics(self, sums: Sequence[float], count: int) -> dict[str, float]:
        """See `Judge`; `val_f1` is the mean over the labels, that of a label nobody has or gives being 0."""
        (loss, right), counts = sums[:2], sums[2:]
        size = len(counts) // 3
        both, given, true = counts[:size], counts[size : 2 * size], counts[2 * size :]
        f1 = [2 * b / (g + t) if g + t else 0.0 for b, g, t in zip(both, given, true, strict=True)]
        return {
            "val_loss": loss / count / size,
            "val_accuracy": right / count / size,
            "val_f1": sum(f1) / size,
        }


class Numbers:
    """Squared error, R² and errors in the targets' own units, means over the targets."""

    def __init__(self, info: ImageInfo, targets: Tensor) -> None:
        """`targets` (N, K) are all that will be judged by."""
        self._scales = info.target_std
        exact = targets.double().cpu() if targets.device.type == "mps" else targets.double()
        self._spread = ((exact - exact.mean(0)) ** 2).sum(0).tolist()

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See `Judge`."""
        errors = outputs - targets
        return torch.cat([errors.square().sum(0), errors.abs().sum(0)])

    def metrics(self, sums: Sequence[float], count: int) -> dict[str, float]:
        """See `Judge`; R² is 0 where all targets are equal."""
        size = len(self._scales)
        squares, sizes = sums[:size], sums[size:]
        r2 = [1 - square / spread if spread else 0.0 for square, spread in zip(squares, self._spread, strict=True)]
        variances = [square * scale**2 for square, scale in zip(squares, self._scales, strict=True)]
        return {
            "val_loss": sum(squares) / count / size,
            "val_r2": sum(r2) / size,
            "val_mae": sum(error * scale for error, scale in zip(sizes, self._scales, strict=True)) / count / size,
            "val_rmse": math.sqrt(sum(variances) / count / size),
        }


def judge(info: ImageInfo, targets: Tensor) -> Judge:
    """What judges answers to these targets."""
    match info.task:
        case "classification":
            return Classes()
        case "multilabel":
            return Labels()
        case "regression":
            return Numbers(info, targets)


def answers(outputs: Tensor, info: ImageInfo) -> Tensor:
    """Probabilities `(B, K)` of classes, which sum to one, or of labels, each by itself; numbers as they are."""
    match info.task:
        case "classification":
            return outputs.softmax(1)
        case "multilabel":
            return outputs.sigmoid()
        case "regression":
            return outputs


def standardised(given: Tensor, info: ImageInfo) -> Tensor:
    """What an exported model gives, `(B, K)`, as training has it: numbers in their own units to mean 0 and spread 1."""
    if info.task != "regression":
        return given
    return (given - torch.tensor(info.target_mean)) / torch.tensor(info.target_std)

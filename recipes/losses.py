"""What training minimises. Validation is always judged by plain cross-entropy, so that trials can be compared.

Shapes: B images in a batch, K classes; targets are labels `(B,)` int64 or probabilities `(B, K)` float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, log_softmax, one_hot

if TYPE_CHECKING:
    from torch import Tensor

    from recipes.config import OptimConfig


class Loss:
    """The mean loss of a batch, as an `OptimConfig` says."""

    def __init__(self, config: OptimConfig, labels: Tensor, num_classes: int) -> None:
        """`labels` (N,) are those of the training images, which tell how rare a class is."""
        self._config = config
        self._weights = class_weights(labels, num_classes) if config.balance == "loss" else None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits `(B, K)` and targets to a scalar."""
        smoothing = self._config.label_smoothing
        if self._config.loss == "cross_entropy":
            return cross_entropy(logits, targets, self._weights, label_smoothing=smoothing)
        return focal(logits, targets, self._config.focal_gamma, self._weights, smoothing)


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights `(K,)` in inverse proportion to the number of images, 1 on average over the images; 0 without any."""
    counts = torch.bincount(labels, minlength=num_classes)
    weights = len(labels) / (counts * (counts > 0).sum())
    return torch.where(counts > 0, weights, 0.0)


def focal(logits: Tensor, targets: Tensor, gamma: float, weights: Tensor | None, smoothing: float) -> Tensor:
    """Cross-entropy that leaves aside what is right already: each class's term times (1 - p)^gamma.

    (Lin et al. 2017, arXiv 1708.02002.) With gamma 0 it is torch's `cross_entropy`.
    """
    num_classes = logits.shape[1]
    are_labels = targets.ndim == 1
    shares = one_hot(targets, num_classes).to(logits.dtype) if are_labels else targets
    # As in `cross_entropy`: weighted labels are averaged by their weights, all else over the images.
    total = (shares * weights).sum() if are_labels and weights is not None else len(logits)
    shares = shares * (1 - smoothing) + smoothing / num_classes
    logs = log_softmax(logits, 1)
    terms = shares * (1 - logs.exp()) ** gamma * logs
    return -(terms if weights is None else terms * weights).sum() / total

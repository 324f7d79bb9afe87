"""What training minimises. Validation is judged by one loss a task (`recipes.tasks`), so that trials can be compared.

Shapes: B images in a batch, K outputs; targets are classes `(B,)` int64, or `(B, K)` float: probabilities of classes, 0
and 1 for labels, or numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    l1_loss,
    log_softmax,
    mse_loss,
    one_hot,
    smooth_l1_loss,
)

if TYPE_CHECKING:
    from torch import Tensor

    from recipes.config import OptimConfig
    from recipes.data import ImageInfo
    from recipes.data.types import Task


LOSSES: dict[Task, tuple[str, ...]] = {  # of each task, its usual one first
    "classification": ("cross_entropy", "focal"),
    "multilabel": ("bce",),
    "regression": ("mse", "l1", "smooth_l1"),
}


def check(config: OptimConfig, task: Task) -> None:
    """See that a loss, and what belongs to it, is one of the task.

    Raises:
        ValueError: it is not; one line says what is.
    """
    known = LOSSES[task]
    if config.loss not in ("auto", *known):
        raise ValueError(f"loss={config.loss} is not for task={task}; its losses are {', '.join(known)}")
    if config.balance != "none" and task == "regression":
        raise ValueError(f"balance={config.balance} is for classes and labels, not for task={task}")
    if config.balance == "sampler" and task != "classification":
        raise ValueError(f"balance=sampler needs one class an image; task={task} has balance=loss")


class Loss:
    """The mean loss of a batch, as an `OptimConfig` says."""

    def __init__(self, config: OptimConfig, labels: Tensor, info: ImageInfo) -> None:
        """`labels` are those of the training images, which tell how rare a class is.

        Raises:
            ValueError: as of `check`.
        """
        check(config, info.task)
        self._name = LOSSES[info.task][0] if config.loss == "auto" else config.loss
        self._smoothing, self._gamma = config.label_smoothing, config.focal_gamma
        self._weights = None
        if config.balance == "loss":
            is_class = info.task == "classification"
            self._weights = class_weights(labels, info.num_classes) if is_class else label_weights(labels)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs `(B, K)` and targets to a scalar."""
        match self._name:
            case "cross_entropy":
                return cross_entropy(outputs, targets, self._weights, label_smoothing=self._smoothing)
            case "focal":
                return focal(outputs, targets, self._gamma, self._weights, self._smoothing)
            case "bce":
                targets = targets * (1 - self._smoothing) + self._smoothing / 2
                return binary_cross_entropy_with_logits(outputs, targets, pos_weight=self._weights)
            case "mse":
                return mse_loss(outputs, targets)
            case "l1":
                return l1_loss(outputs, targets)
        return smooth_l1_loss(outputs, targets)


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights `(K,)` in inverse proportion to the number of images, 1 on average over the images; 0 without any."""
    counts = torch.bincount(labels, minlength=num_classes)
    weights = len(labels) / (counts * (counts > 0).sum())
    return torch.where(counts > 0, weights, 0.0)


def label_weights(labels: Tensor) -> Tensor:
    """For labels `(N, K)` of 0 and 1, how many images lack a label for one that has it, `(K,)`; 1 where none has."""
    given = labels.sum(0)
    return torch.where(given > 0, (len(labels) - given) / given, 1.0)


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

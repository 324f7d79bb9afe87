"""How good a classifier's answers are, by torchmetrics; it takes seconds to import, so nothing here is for training.

Shapes: N images, K classes; logits `(N, K)` float, labels `(N,)` int64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from recipes.augment import Batches

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipes.data import ImageInfo, Split

TOP = 5
CALIBRATION_BINS = 15  # as in Guo et al. 2017, arXiv 1706.04599
BATCH_SIZE = 256


@torch.inference_mode()
def logits_of(model: nn.Module, split: Split, info: ImageInfo) -> Tensor:
    """The answers `(N, K)` of a model in eval mode to all images of a split, in order."""
    prepare = Batches(split, info, memory_format=torch.contiguous_format)
    rows = torch.arange(len(split.labels), device=split.labels.device)
    return torch.cat([model(prepare(part)[0]) for part in torch.split(rows, BATCH_SIZE)])


def summary(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss, accuracy and what else is usual, by name; means over classes are macro, those without an image left out.

    `top5_accuracy` is there for more than five classes, `auroc` (one against the rest) where every class has an image.
    """
    from torchmetrics.functional import classification as functional

    num_classes = logits.shape[1]
    probabilities = logits.softmax(1)
    arguments = (probabilities, labels, num_classes)
    found = {
        "loss": cross_entropy(logits, labels),
        "accuracy": (logits.argmax(1) == labels).float().mean(),
        "precision": functional.multiclass_precision(*arguments),
        "recall": functional.multiclass_recall(*arguments),
        "f1": functional.multiclass_f1_score(*arguments),
        "calibration_error": functional.multiclass_calibration_error(*arguments, n_bins=CALIBRATION_BINS),
    }
    if num_classes > TOP:
        found[f"top{TOP}_accuracy"] = functional.multiclass_accuracy(*arguments, top_k=TOP, average="micro")
    if len(torch.unique(labels)) == num_classes:
        found["auroc"] = functional.multiclass_auroc(*arguments)
    return {name: float(value) for name, value in found.items()}


def by_class(logits: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row a class: `class`, `precision`, `recall`, `f1` and the number of its `images`."""
    from torchmetrics.functional import classification as functional

    arguments = (logits.argmax(1), labels, len(class_names))
    columns = {
        "precision": functional.multiclass_precision(*arguments, average=None),
        "recall": functional.multiclass_recall(*arguments, average=None),
        "f1": functional.multiclass_f1_score(*arguments, average=None),
        "images": labels.bincount(minlength=len(class_names)),
    }
    lists = {name: values.tolist() for name, values in columns.items()}
    return [
        {"class": name, **{column: values[index] for column, values in lists.items()}}
        for index, name in enumerate(class_names)
    ]


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """How many images of a class (row) were taken for which (column)."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    matrix: list[list[int]] = multiclass_confusion_matrix(logits.argmax(1), labels, logits.shape[1]).tolist()
    return matrix


def most_confused(matrix: list[list[int]], class_names: tuple[str, ...], count: int) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: class, what it was taken for, and how often."""
    mistakes = [
        (class_names[row], class_names[column], number)
        for row, numbers in enumerate(matrix)
        for column, number in enumerate(numbers)
        if row != column and number
    ]
    return sorted(mistakes, key=lambda mistake: -mistake[2])[:count]

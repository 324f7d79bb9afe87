"""How good a model's answers are, by torchmetrics; it takes seconds to import, so nothing here is for training.

Shapes: N images, K outputs; outputs `(N, K)` float, targets as in `recipes.tasks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from recipes.augment import Batches

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipes.data import ImageInfo, Split

TOP = 5
CALIBRATION_BINS = 15  # as in Guo et al. 2017, arXiv 1706.04599
BATCH_SIZE = 256


@torch.inference_mode()
def outputs_of(model: nn.Module, split: Split, info: ImageInfo) -> Tensor:
    """The answers `(N, K)` of a model in eval mode to all images of a split, in order."""
    prepare = Batches(split, info, memory_format=torch.contiguous_format)
    rows = torch.arange(len(split.labels), device=split.labels.device)
    return torch.cat([model(prepare(part)[0]) for part in torch.split(rows, BATCH_SIZE)])


def summary(outputs: Tensor, targets: Tensor, info: ImageInfo) -> dict[str, float]:
    """Loss and what else is usual for the task, by name; means over classes, labels or numbers are macro."""
    of_task = {"classification": _of_classes, "multilabel": _of_labels, "regression": _of_numbers}[info.task]
    return {name: float(value) for name, value in of_task(outputs, targets, info).items()}


def _of_classes(logits: Tensor, labels: Tensor, info: ImageInfo) -> dict[str, Any]:
    """Classes without an image are left out; `top5_accuracy` is there for more than five classes.

    `auroc` (one against the rest) is there where every class has an image.
    """
    from torchmetrics.functional import classification as functional

    num_classes = info.num_classes
    arguments = (logits.softmax(1), labels, num_classes)
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
    return found


def _of_labels(logits: Tensor, labels: Tensor, info: ImageInfo) -> dict[str, Any]:
    """`accuracy` is of single labels, `exact_match` of images with all labels right.

    `auroc` and `average_precision` are there where every label is given and lacking at least once.
    """
    from torchmetrics.functional import classification as functional

    probabilities, true = logits.sigmoid(), labels.long()
    arguments = (probabilities, true, info.num_classes)
    found = {
        "loss": binary_cross_entropy_with_logits(logits, labels),
        "accuracy": functional.multilabel_accuracy(*arguments, average="micro"),
        "exact_match": functional.multilabel_exact_match(*arguments),
        "precision": functional.multilabel_precision(*arguments),
        "recall": functional.multilabel_recall(*arguments),
        "f1": functional.multilabel_f1_score(*arguments),
        "calibration_error": functional.binary_calibration_error(
            probabilities.flatten(), true.flatten(), n_bins=CALIBRATION_BINS
        ),
    }
    share = labels.mean(0)
    if bool(((share > 0) & (share < 1)).all()):
        found["auroc"] = functional.multilabel_auroc(*arguments)
        found["average_precision"] = functional.multilabel_average_precision(*arguments)
    return found


def _of_numbers(outputs: Tensor, targets: Tensor, info: ImageInfo) -> dict[str, Any]:
    """`loss` is of numbers brought to spread 1, the errors are in the numbers' own units."""
    rows = _by_number(outputs, targets, info)
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in ("mae", "r2")}
    squared = sum(row["rmse"] ** 2 for row in rows) / len(rows)
    return {"loss": mse_loss(outputs, targets), "mae": mean["mae"], "rmse": squared**0.5, "r2": mean["r2"]}


def by_class(outputs: Tensor, targets: Tensor, info: ImageInfo) -> list[dict[str, Any]]:
    """A row a class, label or number, its name as `class`.

    Of classes and labels `precision`, `recall`, `f1` and the number of its `images`; of numbers `mae`, `rmse`, `r2`.
    """
    if info.task == "regression":
        return _by_number(outputs, targets, info)
    from torchmetrics.functional import classification as functional

    size = info.num_classes
    if info.task == "classification":
        kind, given, true = "multiclass", outputs.argmax(1), targets
        images = targets.bincount(minlength=size)
    else:
        kind, given, true = "multilabel", outputs.sigmoid(), targets.long()
        images = true.sum(0)
    columns = {
        name: getattr(functional, f"{kind}_{function}")(given, true, size, average=None).tolist()
        for name, function in (("precision", "precision"), ("recall", "recall"), ("f1", "f1_score"))
    }
    columns["images"] = images.tolist()
    return [
        {"class": name, **{column: values[index] for column, values in columns.items()}}
        for index, name in enumerate(info.class_names)
    ]


def _by_number(outputs: Tensor, targets: Tensor, info: ImageInfo) -> list[dict[str, Any]]:
    from torchmetrics.functional import regression as functional

    rows = []
    for index, (name, scale) in enumerate(zip(info.class_names, info.target_std, strict=True)):
        given, true = outputs[:, index].double() * scale, targets[:, index].double() * scale
        has_spread = len(true) > 1 and bool(true.std() > 0)
        rows.append(
            {
                "class": name,
                "mae": float(functional.mean_absolute_error(given, true)),
                "rmse": float(functional.mean_squared_error(given, true, squared=False)),
                "r2": float(functional.r2_score(given, true)) if has_spread else 0.0,
            }
        )
    return rows


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

"""What a training looks like: TensorBoard's events, and pictures beside the checkpoints.

In an attempt's folder: `tensorboard/` with scalars, histograms of weights and gradients, a batch after augmentation,
the model's graph and the worst mistakes; `curves.png`, `batch.png`, `confusion.png`, `mistakes.png` and `mistakes.csv`.
Mistakes are those of the best epoch's weights on the validation images, where each has one class.
"""

from __future__ import annotations

import csv
import io
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from recipes import data, drawings
from recipes.checkpoint import BEST
from recipes.drawings import short
from recipes.event_files import FOLDER
from recipes.events import Events
from recipes.files import write_whole
from recipes.model_file import read_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray
    from torch import Tensor

    from recipes.config import TrainConfig
    from recipes.data import Dataset, ImageInfo, Split
    from recipes.loop import Attempt
    from recipes.training import Training

CURVES, BATCH = "curves.png", "batch.png"
CONFUSION, MISTAKES, MISTAKES_TABLE = ANSWER_FILES = ("confusion.png", "mistakes.png", "mistakes.csv")
# TensorBoard's tags, in one group: it opens the first groups by itself. Those at the end are drawn when all is over.
BATCH_TAG = "pictures/batch"
AT_END = CONFUSION_TAG, MISTAKES_TAG = ("pictures/confusion", "pictures/mistakes")
NUM_OF_BATCH, BATCH_COLUMNS = 32, 8
NUM_MISTAKES, MISTAKES_COLUMNS = 24, 6
MIXED = 0.01  # share from which a class counts in a blended image


class Pictures:
    """Watches a training whose `history` grows meanwhile; on leaving, draws what is known at its end."""

    def __init__(
        self,
        attempt: Attempt,
        config: TrainConfig,
        training: Training,
        dataset: Dataset,
        history: Sequence[dict[str, Any]],
    ) -> None:
        self._folder, self._config, self._training = attempt.folder, config, training
        self._dataset, self._history = dataset, history
        earlier = attempt.resume_from / FOLDER if attempt.resume_from else None
        self._events = Events(self._folder / FOLDER, earlier, history, AT_END)

    def __enter__(self) -> Self:
        self._training.gradients = {}
        has = {tag for _, tag in self._events.has}
        if not self._dataset.train.is_features:
            pixels = _batch(*self._training.next_batch(), self._dataset.info)
            write_whole(self._folder / BATCH, drawings.png(pixels))
            if BATCH_TAG not in has:
                self._events.image(BATCH_TAG, pixels, 0)
        if "graph" not in has:
            self._events.graph(self._training.model, self._training.example())
        return self

    def epoch(self, record: dict[str, Any]) -> None:
        """Tell of an epoch that has just ended; it is written before the epoch's checkpoint."""
        number, gradients = record["number"], self._training.gradients or {}
        weights = self._training.model.named_parameters()
        self._events.scalars(record["metrics"], number)
        self._events.histograms({f"weights/{name}": weight for name, weight in weights}, number)
        self._events.histograms({f"gradients/{name}": gradient for name, gradient in gradients.items()}, number)
        self._events.flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            is_over = kind is None or issubclass(kind, GeneratorExit)  # as when a trial is stopped early
            if is_over and self._history:
                self._draw_end()
        finally:
            self._events.close()

    def _draw_end(self) -> None:
        write_whole(self._folder / CURVES, drawings.png(drawings.curves(self._history)))
        if self._dataset.info.task != "classification":
            return
        metadata, weights = read_model(self._folder / BEST)
        logits, split = self._training.answers(weights), _split_to_show(self._config, self._dataset)
        for tag, pixels in write_answers(self._folder, logits, split, self._dataset.info.class_names).items():
            self._events.image(tag, pixels, metadata["epoch"])


def _split_to_show(config: TrainConfig, dataset: Dataset) -> Split:
    """The validation images, also where only features of them are trained on."""
    if dataset.val.is_features:
        loaded = data.load(config.dataset)
        if (
            loaded.split_fingerprint == dataset.split_fingerprint
            and loaded.data_fingerprint == dataset.data_fingerprint
        ):
            return loaded.val
    return dataset.val


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image that was taken for another class: its row in the split, and what is said of it."""

    row: int
    name: str
    label: str
    taken_for: str
    probability: float
    loss: float


def mistakes(logits: Tensor, split: Split, class_names: Sequence[str]) -> list[Mistake]:
    """The images of a split whose answers `(N, K)` are wrong, those of the highest loss first."""
    labels, logits = split.labels.cpu(), logits.float().cpu()
    probabilities, answers = logits.softmax(1).max(1)
    losses = cross_entropy(logits, labels, reduction="none")
    wrong = (answers != labels).nonzero().flatten()
    worst = wrong[losses[wrong].argsort(descending=True, stable=True)].tolist()
    return [
        Mistake(
            row=row,
            name=split.name(row),
            label=class_names[int(labels[row])],
            taken_for=class_names[int(answers[row])],
            probability=float(probabilities[row]),
            loss=float(losses[row]),
        )
        for row in worst
    ]


def write_answers(
    folder: Path, logits: Tensor, split: Split, class_names: Sequence[str]
) -> dict[str, NDArray[np.uint8]]:
    """Write `confusion.png`, `mistakes.png` and `mistakes.csv` of answers `(N, K)`; the pictures by their tags.

    Features have no pictures: of their mistakes there is a table alone.

    Raises:
        OSError: they can't be written.
    """
    found = mistakes(logits, split, class_names)
    drawn = {CONFUSION_TAG: drawings.confusion(_confusion(logits, split, len(class_names)), class_names)}
    write_whole(folder / CONFUSION, drawings.png(drawn[CONFUSION_TAG]))
    write_whole(folder / MISTAKES_TABLE, _table(found))
    if not split.is_features:
        shown = found[:NUM_MISTAKES]
        images = list(split.take(torch.tensor([each.row for each in shown], dtype=torch.long)).cpu().numpy())
        captions = [
            f"{short(each.label)}\ntaken for {short(each.taken_for)}\nprobability {each.probability:.2f}"
            for each in shown
        ]
        message = f"no mistakes in {len(split.labels):,} images"
        drawn[MISTAKES_TAG] = drawings.grid(images, captions, MISTAKES_COLUMNS, message)
        write_whole(folder / MISTAKES, drawings.png(drawn[MISTAKES_TAG]))
    return drawn


def _confusion(logits: Tensor, split: Split, num_classes: int) -> NDArray[np.int64]:
    pairs = split.labels.cpu() * num_classes + logits.argmax(1).cpu()
    return np.asarray(pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes).numpy())


def _table(found: Sequence[Mistake]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "class", "taken for", "probability", "loss"])
    writer.writerows(
        [name, *about[:2], *(f"{value:.6g}" for value in about[2:])] for _, name, *about in map(astuple, found)
    )
    return text.getvalue().encode(errors="surrogateescape")  # names of files need not be text


def _batch(images: Tensor, targets: Tensor, info: ImageInfo) -> NDArray[np.uint8]:
    """Images `(B, C, H, W)` as a model gets them, brought back to what they look like, with what they are."""
    images, targets = images[:NUM_OF_BATCH].float().cpu(), targets[:NUM_OF_BATCH].cpu()
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (info.mean, info.std))
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return drawings.grid(list(pixels.numpy()), [_caption(each, info) for each in targets], BATCH_COLUMNS)


def _caption(target: Tensor, info: ImageInfo) -> str:
    """The class of an image, the classes blended in it, its labels, or its numbers."""
    names = [short(name) for name in info.class_names]
    if info.task == "regression":
        scales = zip(target.tolist(), info.target_mean, info.target_std, strict=True)
        return "\n".join(f"{value * std + mean:.4g}" for value, mean, std in scales)
    if info.task == "multilabel":
        return "\n".join(name for name, share in zip(names, target.tolist(), strict=True) if share > 0.5)
    if not target.ndim or float(target.max()) > 1 - MIXED:
        return names[int(target.argmax() if target.ndim else target)]
    shares, classes = target.topk(2)
    parts = zip(shares.tolist(), classes.tolist(), strict=True)
    return "\n".join(f"{share:.0%} {names[label]}" for share, label in parts if share > MIXED)

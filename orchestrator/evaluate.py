"""One trial's best weights on a split of its data, in all the usual figures."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator import catalogue, compare
from orchestrator.errors import UnavailableError, UsageError
from orchestrator.models import accepted_attempt, check_hash
from orchestrator.objectives import of_spec
from orchestrator.recorded import check_trained_here
from orchestrator.store import Record
from recipes.checkpoint import BEST

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from orchestrator.settings import Settings
    from orchestrator.tables import Study, Trial
    from recipes.data import Dataset, ImageInfo, Split
    from recipes.pictures import Mistake

NUM_MISTAKES = 10
SPLITS = ("train", "val", "test")


def evaluate(
    settings: Settings, study: str, number: int | None = None, *, split: str = "val", pictures: Path | None = None
) -> dict[str, Any]:
    """Figures of a trial, or without a number of the study's best: in all, by class, and what is taken for what.

    The confusion matrix and the mistakes are drawn into the folder `pictures`.

    Raises:
        UnknownNameError: no such study.
        UsageError: no complete trial, no such split, files that are not those on record, a task without classes to
            draw mistakes of, or a folder that has such files.
        UnavailableError: the folder can't be written.
    """
    from recipes import metrics

    if split not in SPLITS:
        raise UsageError(f"split {split!r} is none of {', '.join(SPLITS)}")
    if pictures is not None:
        _check_free(pictures)
    trained = load_trained(settings, study, number)
    info, images = trained.info, getattr(trained.dataset, split)
    has_classes = info.task == "classification"
    if pictures is not None and not has_classes:
        raise UsageError(f"mistakes are drawn of classes; {study!r} has task={info.task}")
    outputs = metrics.outputs_of(trained.model, images, info)
    if pictures is not None:
        _draw(pictures, outputs, images, info)
    return {"study": study, "trial": trained.trial, "split": split, **_figures(outputs, images, info)}


def _figures(outputs: Tensor, images: Split, info: ImageInfo) -> dict[str, Any]:
    from recipes import metrics

    confusion = metrics.confusion(outputs, images.labels) if info.task == "classification" else []
    return {
        "images": len(images.labels),
        "metrics": metrics.summary(outputs, images.labels, info),
        "classes": metrics.by_class(outputs, images.labels, info),
        "confusion": confusion,
        "mistakes": metrics.most_confused(confusion, info.class_names, NUM_MISTAKES),
    }


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a trial makes of the validation images: the figures of `evaluate`, and its worst mistakes.

    `pixels` `(C, H, W)` uint8 are those of the mistakes, one each; there are none of rows of a table, and of a task
    without classes there are no mistakes.
    """

    trial: int
    figures: dict[str, Any]
    num_mistakes: int
    mistakes: list[Mistake]
    pixels: list[NDArray[np.uint8]]


def answers(settings: Settings, study: str, number: int, *, most: int) -> Answers:
    """The answers of a trial to the validation images, with its `most` expensive mistakes.

    Raises:
        UsageError: no such complete trial, or files or data that are not those on record.
    """
    import torch

    from recipes import metrics, pictures

    trained = load_trained(settings, study, number)
    info, images = trained.info, trained.dataset.val
    outputs = metrics.outputs_of(trained.model, images, info)
    found = pictures.mistakes(outputs, images, info.class_names) if info.task == "classification" else []
    rows = torch.tensor([each.row for each in found[:most]], dtype=torch.long)
    return Answers(
        trial=trained.trial,
        figures=_figures(outputs, images, info),
        num_mistakes=len(found),
        mistakes=found[:most],
        pixels=[] if images.is_features else list(images.take(rows).cpu().numpy()),
    )


def _check_free(folder: Path) -> None:
    """See that the pictures can be written there, before the work is done."""
    from recipes.pictures import ANSWER_FILES

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    for path in (folder / name for name in ANSWER_FILES):
        if path.exists():
            raise UsageError(f"{path} is there already")


def _draw(folder: Path, logits: Tensor, images: Split, info: ImageInfo) -> None:
    from recipes.pictures import write_answers

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_answers(folder, logits, images, info.class_names)
    except OSError as error:
        raise UnavailableError(f"{folder} cannot be written: {error.strerror}") from error


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trial's best weights in their model, and the data that it was trained on."""

    trial: int
    recipe: str
    model: nn.Module
    info: ImageInfo
    dataset: Dataset


def load_trained(settings: Settings, study: str, number: int | None = None) -> Trained:
    """A trial, or without a number the study's best.

    Raises:
        UnknownNameError: no such study.
        UsageError: no complete trial, one without weights, or files or data that are not those on record.
    """
    from recipes import data
    from recipes.config import dataset_of
    from recipes.model_file import ModelFileError, restore_model

    with closing(Record.open(settings.record_url)) as record:
        row = record.study(study)
        check_trained_here(row)
        trial = _trial(record, row, number)
        attempt = accepted_attempt(record, trial)
        path = settings.attempt_folder(row.name, trial.number, attempt.number) / BEST
        check_hash(path, (attempt.manifest or {}).get(BEST, ""), UsageError)
    recipe = catalogue.load(row.recipe)
    try:
        model, info, _ = restore_model(recipe, path)
        dataset = data.load(dataset_of(trial.config))
    except (ModelFileError, data.DataError) as error:
        raise UsageError(str(error)) from error
    return Trained(trial=trial.number, recipe=row.recipe, model=model, info=info, dataset=dataset)


def _trial(record: Record, study: Study, number: int | None) -> Trial:
    trials = record.trials(study.id)
    if number is None:
        leaders = compare.ranked(trials, record.epochs(study.id), of_spec(study.spec))
        if not leaders:
            raise UsageError(f"study {study.name!r} has no complete trial yet")
        return leaders[0]
    trial = next(trial for trial in trials if trial.number == number)
    if trial.value is None:
        raise UsageError(f"trial {number} of {study.name!r} is {trial.state.value}: it has no weights to evaluate")
    return trial

"""One trial's best weights on a split of its data, in all the usual figures."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from orchestrator import compare
from orchestrator.errors import UsageError
from orchestrator.models import accepted_attempt, check_hash
from orchestrator.store import Record
from recipes.checkpoint import BEST

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.settings import Settings
    from orchestrator.tables import Study, Trial

NUM_MISTAKES = 10
SPLITS = ("train", "val", "test")


def evaluate(settings: Settings, study: str, number: int | None = None, *, split: str = "val") -> dict[str, Any]:
    """Figures of a trial, or without a number of the study's best: in all, by class, and what is taken for what.

    Raises:
        UnknownNameError: no such study.
        UsageError: no complete trial, no such split, or files that are not those on record.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split!r} is none of {', '.join(SPLITS)}")
    with closing(Record.open(settings.record_url)) as record:
        row = record.study(study)
        trial = _trial(record, row, number)
        attempt = accepted_attempt(record, trial)
        path = settings.attempt_folder(row.name, trial.number, attempt.number) / BEST
        check_hash(path, (attempt.manifest or {}).get(BEST, ""), UsageError)
    return {"study": row.name, "trial": trial.number, "split": split, **_figures(row, trial, path, split)}


def _trial(record: Record, study: Study, number: int | None) -> Trial:
    trials = record.trials(study.id)
    if number is None:
        leaders = compare.ranked(trials, record.epochs(study.id))
        if not leaders:
            raise UsageError(f"study {study.name!r} has no complete trial yet")
        return leaders[0]
    trial = next(trial for trial in trials if trial.number == number)
    if trial.value is None:
        raise UsageError(f"trial {number} of {study.name!r} is {trial.state.value}: it has no weights to evaluate")
    return trial


def _figures(study: Study, trial: Trial, path: Path, split: str) -> dict[str, Any]:
    import recipes
    from recipes import data, metrics
    from recipes.config import make
    from recipes.loop import restore_model

    recipe = recipes.load(study.recipe)
    model, info, _ = restore_model(recipe, path)
    images = getattr(data.load(make(recipe.config_type, trial.config).dataset), split)
    logits = metrics.logits_of(model, images, info)
    confusion = metrics.confusion(logits, images.labels)
    return {
        "images": len(images.labels),
        "metrics": metrics.summary(logits, images.labels),
        "classes": metrics.by_class(logits, images.labels, info.class_names),
        "confusion": confusion,
        "mistakes": metrics.most_confused(confusion, info.class_names, NUM_MISTAKES),
    }

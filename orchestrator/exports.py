"""One trial as a file for other programs, and what its form costs in accuracy and gives in size and time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.errors import UsageError
from orchestrator.evaluate import Trained, load_trained

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.settings import Settings

PRECISIONS = {".onnx": ("fp32", "fp16", "int8"), ".pt2": ("fp32",)}
BATCH_SIZES = (1, 64)


def check_target(path: Path, precision: str) -> None:
    """See that such a file can be written there, before the work is done.

    Raises:
        UsageError: another kind of file or precision, a file that is there already, or no folder.
    """
    if path.suffix not in PRECISIONS:
        raise UsageError(f"{path}: a model is written as {' or '.join(PRECISIONS)}, found {path.suffix!r}")
    if precision not in PRECISIONS[path.suffix]:
        known = ", ".join(PRECISIONS[path.suffix])
        raise UsageError(f"precision {precision!r} of a {path.suffix} file is none of {known}")
    if path.exists():
        raise UsageError(f"{path} is there already")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no folder")


def export(settings: Settings, study: str, number: int | None, path: Path, precision: str = "fp32") -> dict[str, Any]:
    """Write a trial, or a study's best, to `path`, and measure the file on all validation images.

    Raises:
        UsageError: as of `check_target` and `load_trained`, or a model that cannot be exported so.
    """
    from recipes.export import ExportError

    check_target(path, precision)
    trained = load_trained(settings, study, number)
    try:
        _write(trained, study, path, precision)
        return {"study": study, "trial": trained.trial, "file": str(path), **_measured(trained, path)}
    except ExportError as error:
        path.unlink(missing_ok=True)
        raise UsageError(str(error)) from error


def _write(trained: Trained, study: str, path: Path, precision: str) -> None:
    from recipes import variants
    from recipes.export import export_onnx

    if path.suffix == ".pt2":
        return variants.write_program(trained.model, trained.info, path)
    about = {"study": study, "trial": str(trained.trial), "recipe": trained.recipe, "precision": precision}
    export_onnx(trained.model, trained.info, path, about)
    if precision == "fp16":
        variants.write_half(path, path)
    elif precision == "int8":
        variants.write_quantised(path, path)
    return None


def _measured(trained: Trained, path: Path) -> dict[str, Any]:
    """Size, accuracy (or what the task has) beside PyTorch's, the largest difference of an answer, time a batch."""
    import torch

    from recipes import metrics, tasks, variants
    from recipes.config import OBJECTIVES

    val, info = trained.dataset.val, trained.info
    run = variants.opened(path)
    found = tasks.standardised(torch.from_numpy(variants.answers_of(run, val.images)), info)
    expected = metrics.outputs_of(trained.model, val, info)
    judge = tasks.judge(info, val.labels)
    objective = OBJECTIVES[info.task]
    scores = [
        judge.metrics(judge.sums(outputs, val.labels).tolist(), len(val.labels))[objective]
        for outputs in (found, expected)
    ]
    return {
        "bytes": path.stat().st_size,
        objective: scores[0],
        f"{objective}_of_pytorch": scores[1],
        "max_difference": (tasks.answers(found, info) - tasks.answers(expected, info)).abs().max().item(),
        **{
            f"milliseconds_of_{size}": variants.latency_milliseconds(run, val.images, size)
            for size in BATCH_SIZES
            if size <= len(val.labels)
        },
    }

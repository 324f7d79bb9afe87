"""A model card (Mitchell et al. 2019, arXiv 1810.03993) in Markdown: what a version is, how good, and where it is from.

Pure: figures in, text out. Names from outside are shown as the text that they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.tables import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from orchestrator.examination import Findings
    from orchestrator.store import Record
    from orchestrator.tables import Attempt, Promotion, Study, Trial

MAX_CLASSES = 20  # rows of the table of classes; MLflow shows 5,000 characters of a card
POWER = "_power_usage_watts"  # how the system metrics of GPUs end that are their power


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the record knows of a trial and of the search that found it."""

    study: Study
    trial: Trial
    attempt: Attempt
    provenance: Mapping[str, Any]
    num_trials: int
    seconds: float  # of the trial's epochs
    study_seconds: float  # of those of all trials
    joules: float | None  # of the trial's GPUs, where they tell their power

    @classmethod
    def of(cls, record: Record, study: Study, trial: Trial, attempt: Attempt) -> Subject:
        """Read it from the record."""
        epochs = record.epochs(study.id)
        own = epochs.get(trial.number, [])
        seconds = sum(epoch.seconds for epoch in own)
        return cls(
            study=study,
            trial=trial,
            attempt=attempt,
            provenance=record.provenance(study, attempt),
            num_trials=sum(
                other.state is not State.WAITING and other.confirms is None for other in record.trials(study.id)
            ),
            seconds=seconds,
            study_seconds=sum(epoch.seconds for each in epochs.values() for epoch in each),
            joules=_joules([sample.metrics for sample in record.samples(trial.id)], seconds),
        )


def _joules(samples: Sequence[Mapping[str, float]], seconds: float) -> float | None:
    """Mean power over a training, of which `samples` are now and then, times its seconds."""
    watts = [[value for name, value in sample.items() if name.endswith(POWER)] for sample in samples]
    told = [sum(each) for each in watts if each]
    return sum(told) / len(told) * seconds if told else None


def write(subject: Subject, found: Findings, entry: Promotion) -> str:
    """The card of a version that `entry` is about to make."""
    parts = (
        f"# {plain(entry.model)}",
        _summary(subject, found),
        _section("Data", _data(subject, found)),
        _section("On the test images", _metrics(found)),
        _section("Gates", _gates(found, entry)),
        _section(_ROWS[found.info.task], _classes(found)),
        _section("What training cost", _cost(subject)),
        _section("Where it is from", _lineage(subject, entry)),
        _section("Limits", _limits(subject, found)),
        _section("How to load it", _usage(found, entry)),
    )
    return "\n\n".join(parts) + "\n"


def plain(text: Any) -> str:
    """A name as Markdown that shows it as it is: no HTML, no link, no column of a table."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(escaped.split()))


_ROWS = {"classification": "Each class", "multilabel": "Each label", "regression": "Each number"}
_SAYS = {"classification": "the class", "multilabel": "the labels", "regression": "the numbers"}


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _summary(subject: Subject, found: Findings) -> str:
    info, what = found.info, "rows of a table" if found.info.columns else "pictures"
    names = ", ".join(map(plain, info.class_names[:MAX_CLASSES]))
    more = f" and {len(info.class_names) - MAX_CLASSES} more" if len(info.class_names) > MAX_CLASSES else ""
    return (
        f"A {plain(subject.study.recipe)} that says {_SAYS[info.task]} of {what}: {names}{more}. "
        f"{found.size_bytes / 1e6:.2f} MB, {found.latency_ms:.2f} ms an image on the CPU that promoted it."
    )


def _data(subject: Subject, found: Findings) -> str:
    identity = subject.study.identity
    counts = ", ".join(f"{count:,} {name}" for name, count in found.num_images.items())
    return (
        f"`{_code(subject.study.data)}`: {counts} images, by split seed {subject.trial.config.get('split_seed', 0)}. "
        f"Fingerprints of the pixels: data `{identity['data']}`, split `{identity['split']}`."
    )


def _metrics(found: Findings) -> str:
    rows = []
    for name, value in found.metrics.items():
        interval = found.intervals.get(name)
        rows.append((name, f"{value:.4f}", f"{interval.low:.4f} to {interval.high:.4f}" if interval else ""))
    return _table(("metric", "value", "95% interval"), rows)


def _gates(found: Findings, entry: Promotion) -> str:
    rows = [
        (
            gate.name,
            f"{gate.figure:.6g}",
            f"{'at least' if gate.at_least else 'at most'} {gate.limit:.6g}",
            "passed" if gate.passed else "**not passed**",
            f"{gate.difference}" if gate.difference else "",
        )
        for gate in found.gates
    ]
    table = _table(("gate", "figure", "asked", "", "less the champion's"), rows)
    return f"{table}\n\nPromoted all the same: {plain(entry.reason)}" if entry.reason else table


def _classes(found: Findings) -> str:
    if found.info.task == "regression":
        return _table(("number", "mae", "rmse", "r2"), [_row(row, ("mae", "rmse", "r2")) for row in found.classes])
    recalls = iter(found.recalls)
    rows = [(row, next(recalls)) for row in found.classes if row["images"]]
    rows.sort(key=lambda pair: pair[1].mean)
    cells = [
        (
            *_row(row, ("precision", "recall")),
            f"{recall.low:.3f} to {recall.high:.3f}",
            f"{row['f1']:.3f}",
            row["images"],
        )
        for row, recall in rows[:MAX_CLASSES]
    ]
    table = _table(("class", "precision", "recall", "its 95% interval", "f1", "images"), cells)
    left = len(rows) - len(cells)
    return f"{table}\n\nThe {left} classes with a better recall are left out." if left else table


def _row(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [plain(row["class"]), *(f"{row[column]:.3f}" for column in columns)]


def _cost(subject: Subject) -> str:
    energy = "not known" if subject.joules is None else f"{subject.joules / 1000:.1f} kJ, by the GPUs' own readings"
    return (
        f"{subject.seconds:.1f} s on {plain(subject.attempt.device)} with {subject.trial.threads} thread(s); "
        f"the search of {subject.num_trials} trial(s) took {subject.study_seconds:.0f} s of training. Energy: {energy}."
    )


def _lineage(subject: Subject, entry: Promotion) -> str:
    commit = subject.provenance.get("commit") or "none"
    changed = ", with changes that were not committed (in the study's run)" if subject.provenance.get("diff") else ""
    return "\n".join(
        (
            f"- run `{entry.run_id}`, seed {subject.trial.config.get('seed')}",
            f"- study `{_code(entry.study)}`, trial {entry.trial}, best epoch {subject.trial.best_epoch}",
            f"- commit `{commit}`{changed}",
            f"- data `{_code(subject.study.data)}`, `{subject.study.identity['data']}`",
            f"- promoted by {plain(entry.who)}; ONNX file of SHA-256 `{entry.sha256}`",
        )
    )


def _limits(subject: Subject, found: Findings) -> str:
    lines = [
        f"- It was chosen among {subject.num_trials} trial(s) by the validation images; the figures above are of test "
        "images, which chose nothing, but come from the same source as those it was trained on. Others may differ.",
        "- It answers whatever it is given, also what shows none of its classes."
        if found.info.task == "classification"
        else "- It answers whatever it is given.",
    ]
    if not found.info.columns:
        size = f"{found.info.width} x {found.info.height}"
        lines.append(f"- Pictures are squashed to {size} pixels, whatever their shape; what that hides is lost.")
    if found.recalls and (worst := min(found.recalls, key=lambda recall: recall.mean)).mean < 1:
        lines.append(f"- Of the weakest class it finds {worst.mean:.0%} ({worst.low:.0%} to {worst.high:.0%}).")
    return "\n".join(lines)


def _usage(found: Findings, entry: Promotion) -> str:
    output = "values" if found.info.task == "regression" else "probabilities"
    kind, axes = ("float32", "N, F") if found.info.columns else ("uint8", "N, H, W, C")
    uri = f"models:/{_code(entry.model)}@{entry.alias}"
    return (
        "```python\n"
        "import mlflow, onnxruntime\n"
        f'folder = mlflow.artifacts.download_artifacts("{uri}")\n'
        'session = onnxruntime.InferenceSession(f"{folder}/model.onnx")\n'
        f'answers = session.run(["{output}"], {{session.get_inputs()[0].name: images}})[0]  # ({axes}) {kind}\n'
        "```\n\n"
        f"Or `orch predict {uri} FILE…`."
    )


def _code(text: str) -> str:
    """A name within backticks or quotes, which it must not end."""
    return " ".join(text.split()).replace("`", "'").replace('"', "'")

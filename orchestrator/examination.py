"""What a trial's ONNX file is worth on the test images: the gates of a promotion, and the figures of its card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import recipes
from orchestrator import intervals, worker
from orchestrator.errors import RefusedError, UsageError
from orchestrator.gates import Gate, compare_answers, compare_errors, num_shared
from orchestrator.intervals import Interval, bootstrap, share
from orchestrator.models import file_of
from recipes.checkpoint import BEST
from recipes.config import OBJECTIVES, dataset_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from orchestrator.budget import Budget
    from orchestrator.inference import Model
    from orchestrator.registry import Registry
    from orchestrator.settings import Settings
    from orchestrator.tables import Export, Promotion, Study, Trial
    from recipes.config import DatasetConfig
    from recipes.data import Dataset, ImageInfo

SEEN, TRAINED_ON = "seen_test_images", "trained_on"  # the gate, and what the ledger keeps with it
MAX_DIFFERENCE = 1e-4  # of the outputs, ONNX against PyTorch


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an examination found; every figure is of the test images."""

    gates: tuple[Gate, ...]
    trained_on: list[dict[str, Any]]  # data and split, also of what the training started from
    score: float  # the objective
    metrics: dict[str, float]
    intervals: dict[str, Interval]  # of some of those metrics
    classes: list[dict[str, Any]]
    recalls: list[Interval]  # of those classes that have images, in their order
    size_bytes: int
    latency_ms: float  # of one image
    num_images: dict[str, int]  # split -> how many
    info: ImageInfo
    example: NDArray[Any]  # a validation image, as the model takes it

    def figures(self) -> dict[str, float]:
        """What the ledger keeps."""
        return {**self.metrics, "size_bytes": self.size_bytes, "latency_ms": self.latency_ms}


class Examination:
    """One trial's ONNX file, to be judged by a study's limits and against what an alias names now."""

    def __init__(
        self, settings: Settings, study: Study, trial: Trial, *, export: Export, folder: Path, limits: Budget
    ) -> None:
        self._settings, self._study, self._trial, self._limits = settings, study, trial, limits
        self._file, self._folder = settings.home / export.file, folder

    def run(self, registry: Registry, champion: Promotion | None, *, insist: bool) -> Findings:
        """Go through all gates.

        Raises:
            RefusedError: a gate is not passed that is firm or, with `insist`, any.
            UsageError: a limit that is not of the study's task.
        """
        self._check_limits()
        dataset = self._dataset
        trained_on = _trained_on(self._trial.config)
        gates = [
            Gate(name="damaged_files", figure=0, limit=0, firm=True),  # or it had ended before
            Gate(name="onnx_difference", figure=self._difference(), limit=MAX_DIFFERENCE, firm=True),
            Gate(name=SEEN, figure=_num_seen(dataset, self._image_size, trained_on), limit=0),
        ]
        _insist(gates, insist=insist)
        if champion:
            gates += self._against(registry, champion, insist=insist)
            _insist(gates, insist=insist)
        findings = self._findings(tuple(gates), trained_on)
        _insist(findings.gates, insist=insist)
        return findings

    # -- what is examined

    @property
    def _image_size(self) -> int:
        return dataset_of(self._trial.config).image_size

    @cached_property
    def _dataset(self) -> Dataset:
        """The data set that the trial was trained on."""
        dataset, identity = _load(dataset_of(self._trial.config)), self._study.identity
        if (dataset.data_fingerprint, dataset.split_fingerprint) != (identity["data"], identity["split"]):
            raise RefusedError(f"not promoted: data {self._study.data!r} is no longer what the study was trained on")
        return dataset

    @cached_property
    def _model(self) -> Model:
        from orchestrator.inference import Model

        return Model(self._file)

    @cached_property
    def _answers(self) -> Tensor:
        return _test_answers(self._model, self._dataset)

    def _difference(self) -> float:
        """The largest difference of outputs on validation images, ONNX against PyTorch."""
        from recipes.export import ExportError, inputs_of, parity
        from recipes.model_file import ModelFileError, restore_model

        pictures = inputs_of(self._dataset.val.first(worker.NUM_PARITY_IMAGES))
        try:
            model, info, _ = restore_model(recipes.load(self._study.recipe), self._folder / BEST)
            return parity(model, info, self._file, pictures)
        except (recipes.RecipeFileError, recipes.UnknownRecipeError) as error:
            raise UsageError(str(error)) from error
        except (ModelFileError, ExportError) as error:
            raise RefusedError(f"not promoted: {error}") from error

    # -- beside the champion

    def _against(self, registry: Registry, champion: Promotion, *, insist: bool) -> list[Gate]:
        """Gates on what both models say of the same test images."""
        try:
            model = self._load_champion(registry, champion)
            seen = _num_seen(self._dataset, self._image_size, trained_on_of(champion))
        except RefusedError:
            if insist:
                raise
            return [Gate(name="champion_judged", figure=0, limit=1, at_least=True)]
        gate = Gate(name="champion_seen_test_images", figure=seen, limit=0)
        return [gate, *_compared(self._dataset, _test_answers(model, self._dataset), self._answers)]

    def _load_champion(self, registry: Registry, champion: Promotion) -> Model:
        from orchestrator.inference import Model

        try:
            model = Model(file_of(self._settings, registry, champion))
        except UsageError as error:
            raise RefusedError(f"the present champion cannot be judged: {error}") from error
        names = self._model.class_names
        if model.class_names != names:
            raise RefusedError(
                f"the present champion tells apart {', '.join(model.class_names)}, "
                f"this one {', '.join(names)}; promote it as a study of another name"
            )
        return model

    # -- by itself

    def _check_limits(self) -> None:
        if dataset_of(self._trial.config).task == "regression":
            for key in ("min_class_recall", "max_calibration_error"):
                if getattr(self._limits, key):
                    raise UsageError(f"{key} is of classes; study {self._study.name!r} has task=regression")

    def _findings(self, gates: tuple[Gate, ...], trained_on: list[dict[str, Any]]) -> Findings:
        from recipes import metrics
        from recipes.export import inputs_of
        from recipes.variants import latency_milliseconds, opened

        dataset, answers, info = self._dataset, self._answers, self._dataset.info
        found = metrics.summary(answers, dataset.test.labels, info)
        classes = metrics.by_class(answers, dataset.test.labels, info)
        findings = Findings(
            gates=gates,
            trained_on=trained_on,
            score=_score(dataset, answers),
            metrics=found,
            intervals=_intervals(answers, dataset, found),
            classes=classes,
            recalls=[] if info.task == "regression" else _recalls(classes),
            size_bytes=self._file.stat().st_size,
            latency_ms=latency_milliseconds(opened(self._file), dataset.val.first(1), 1),
            num_images={name: len(getattr(dataset, name).labels) for name in ("train", "val", "test")},
            info=info,
            example=inputs_of(dataset.val.first(1)),
        )
        return replace(findings, gates=(*gates, *_within(self._limits, findings)))


def trained_on_of(champion: Promotion) -> list[dict[str, Any]]:
    """Data and splits of a version, as they were found when it was promoted."""
    (found,) = (gate[TRAINED_ON] for gate in champion.gates if gate["name"] == SEEN)
    return list(found)


def _insist(gates: Sequence[Gate], *, insist: bool) -> None:
    failed = [str(gate) for gate in gates if not gate.passed and (insist or gate.firm)]
    if failed:
        raise RefusedError(f"not promoted: {'; '.join(failed)}")


def _within(limits: Budget, found: Findings) -> list[Gate]:
    """Gates of the limits that a study has."""
    gates = []
    if limits.min_metric is not None:
        gates.append(Gate(name="test_metric", figure=found.score, limit=limits.min_metric, at_least=True))
    if limits.min_class_recall:
        worst = min(interval.mean for interval in found.recalls)
        gates.append(Gate(name="worst_class_recall", figure=worst, limit=limits.min_class_recall, at_least=True))
    if limits.max_calibration_error:
        error = found.metrics["calibration_error"]
        gates.append(Gate(name="calibration_error", figure=error, limit=limits.max_calibration_error))
    if limits.max_latency_ms:
        gates.append(Gate(name="latency_ms", figure=found.latency_ms, limit=limits.max_latency_ms))
    if limits.max_size_mb:
        gates.append(Gate(name="size_mb", figure=found.size_bytes / 1e6, limit=limits.max_size_mb))
    return gates


def _recalls(classes: Sequence[Mapping[str, Any]]) -> list[Interval]:
    return [share(round(row["recall"] * row["images"]), row["images"]) for row in classes if row["images"]]


def _intervals(outputs: Tensor, dataset: Dataset, found: Mapping[str, float]) -> dict[str, Interval]:
    """Those of the metrics `found` of which an interval is known.

    None is of a calibration error: few images overrate it, and a resample, which has fewer distinct ones, more so.
    """
    import torch
    from torch.nn import functional

    targets, total = dataset.test.labels, len(dataset.test.labels)
    exact: dict[str, Interval | None]
    match dataset.info.task:
        case "classification":
            losses = functional.cross_entropy(outputs, targets, reduction="none")
            classes, size = outputs.argmax(1), outputs.shape[1]
            exact = {name: share(round(found[name] * total), total) for name in found if name.endswith("accuracy")}
            known = functional.one_hot(targets, size).bool()
            exact["auroc"] = intervals.auroc(outputs.softmax(1).numpy(), known.numpy())
            ends = intervals.of_classes(classes.numpy(), targets.numpy(), size)
        case "multilabel":
            losses = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)
            given, true = outputs > 0, targets > 0
            right = given == true
            exact = {"accuracy": bootstrap(right.double().mean(1).numpy())}
            exact["exact_match"] = share(int(right.all(1).sum()), total)
            exact["auroc"] = intervals.auroc(outputs.sigmoid().numpy(), true.numpy())
            ends = intervals.of_labels(given.numpy(), true.numpy())
        case "regression":
            losses = (outputs - targets).square().mean(1)
            exact, scale = {}, torch.tensor(dataset.info.target_std, dtype=torch.float64)
            ends = intervals.of_numbers((outputs * scale).numpy(), (targets * scale).numpy())
    within = {name: Interval(mean=found[name], low=low, high=high) for name, (low, high) in ends.items()}
    every = {"loss": bootstrap(losses.double().numpy()), **exact, **within}
    return {name: interval for name, interval in every.items() if interval is not None}


def _test_answers(model: Model, dataset: Dataset) -> Tensor:
    """Outputs `(N, K)` of a model for all test images, as training has them."""
    import torch

    from recipes.export import inputs_of
    from recipes.tasks import standardised

    return standardised(torch.from_numpy(model.answers(inputs_of(dataset.test.images))), dataset.info)


def _score(dataset: Dataset, outputs: Tensor) -> float:
    """The objective on the test images."""
    from recipes.tasks import judge

    targets, judged = dataset.test.labels, judge(dataset.info, dataset.test.labels)
    metrics = judged.metrics(judged.sums(outputs, targets).tolist(), len(targets))
    return metrics[OBJECTIVES[dataset.info.task]]


def _compared(dataset: Dataset, champion: Tensor, candidate: Tensor) -> list[Gate]:
    """Gates on what two models say of the test images."""
    targets = dataset.test.labels
    match dataset.info.task:
        case "classification":
            return compare_answers(*((outputs.argmax(1) == targets).numpy() for outputs in (champion, candidate)))
        case "multilabel":  # the share of an image's labels that are wrong
            wrong = [((outputs > 0) != (targets > 0)).double().mean(1) for outputs in (champion, candidate)]
            return compare_errors(*(each.numpy() for each in wrong))
        case "regression":
            errors = [(outputs - targets).double().square().mean(1) for outputs in (champion, candidate)]
            return compare_errors(*(each.numpy() for each in errors))


def _load(config: DatasetConfig) -> Dataset:
    """The data set of a configuration.

    Raises:
        RefusedError: it is gone, or no longer what it was.
    """
    from recipes.data import DataError, load

    try:
        return load(config)
    except DataError as error:
        raise RefusedError(f"not promoted: {error}") from error


def _trained_on(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Data and split of a configuration, and those of the model of ours that its training started from."""
    from recipes.model_file import ModelFileError, read_model

    wanted = dataset_of(config)
    dataset = _load(wanted)
    marks = {"data_fingerprint": dataset.data_fingerprint, "split_fingerprint": dataset.split_fingerprint}
    found = [{**wanted.model_dump(), **marks}]
    init = str(config.get("init", ""))
    if init.endswith(".safetensors"):
        try:
            metadata, _ = read_model(Path(init))
        except ModelFileError as error:
            raise RefusedError(f"what the first weights were trained on cannot be told: {error}") from error
        found += _trained_on(metadata["config"])
    return found


def _num_seen(dataset: Dataset, image_size: int, trained_on: Sequence[Mapping[str, Any]]) -> int:
    """How many test images are among those that a model was trained on or chosen by, in this split or another.

    Pictures that it saw at another size are looked at in `image_size`, that of the test images.

    Raises:
        RefusedError: the data of that time are no longer there.
    """
    own, others = (dataset.data_fingerprint, dataset.split_fingerprint), []
    for entry in trained_on:
        if (entry["data_fingerprint"], entry["split_fingerprint"]) == own:
            continue  # of one split, no image is in two parts
        other = _load(dataset_of(entry))
        if other.data_fingerprint != entry["data_fingerprint"]:
            raise RefusedError(f"not promoted: data {entry['data']!r} is no longer what the champion was trained on")
        other = _load(dataset_of({**entry, "image_size": image_size}))
        others += [other.train, other.val]
    return num_shared(dataset.test.images.numpy(), (chunk.numpy() for split in others for chunk in split.chunks()))

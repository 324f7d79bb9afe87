"""From the best trial to `@champion`: the gates, the move of the alias, and the way back.

A move is four steps: the ledger is told that it begins, `@champion` moves, `@previous` moves, the ledger is told that
it is done. A kill between any two leaves `@champion` at the old or the new version, never at none, and the next
promotion or rollback does the rest.
"""

from __future__ import annotations

import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import recipes
from orchestrator import compare, ledger, names, worker
from orchestrator.errors import HeldError, RefusedError, UnavailableError, UsageError
from orchestrator.executors import Exported, ExportSpec
from orchestrator.gates import Gate, compare_answers, compare_errors, num_shared
from orchestrator.leases import Holding, study_lease
from orchestrator.models import accepted_attempt, check_hash, file_of
from orchestrator.objectives import of_spec
from orchestrator.recorded import check_trained_here
from orchestrator.registry import Registry
from orchestrator.store import Record
from orchestrator.tables import Export, Promotion
from recipes.checkpoint import BEST
from recipes.config import OBJECTIVES, dataset_of, objective_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from orchestrator.executors import Decision, Event
    from orchestrator.inference import Model
    from orchestrator.leases import Lease
    from orchestrator.settings import Settings
    from orchestrator.tables import Study, Trial
    from recipes.config import DatasetConfig
    from recipes.data import Dataset

CHAMPION, PREVIOUS = "champion", "previous"
SEEN, TRAINED_ON = "seen_test_images", "trained_on"  # the gate, and what the ledger keeps with it
MAX_DIFFERENCE = 1e-4  # of the outputs, ONNX against PyTorch


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """Where `@champion` is now, and on what figures; `already` if it was there before."""

    model: str
    version: str
    previous: str | None
    metric: str  # such as test_accuracy
    score: float
    gates: tuple[dict[str, Any], ...]
    already: bool = False
    alias: str = CHAMPION

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "model": self.model,
            "version": self.version,
            "alias": self.alias,
            "previous": self.previous,
            self.metric: self.score,
            "gates": list(self.gates),
            "already": self.already,
        }


def promote(settings: Settings, study: str | None = None) -> Promoted:
    """Make the best complete trial of a study the champion of the model of that name, if it passes every gate.

    Raises:
        UsageError: no such study, several and none named, or no complete trial.
        RefusedError: a gate said no.
        HeldError: another process moves this model's champion.
        UnavailableError: MLflow cannot be reached, or the alias was moved by another meanwhile.
    """
    with closing(Record.open(settings.record_url)) as record:
        row = _choose(record, study)
        check_trained_here(row)
        with _moving(record, names.family(row)) as lease:
            return _Promotion(settings, record, lease, row).run()


def rollback(settings: Settings, model: str) -> Promoted:
    """Swap `@champion` and `@previous` of a model.

    Raises:
        UnknownNameError: nothing was promoted under that name.
        UsageError: there is no `@previous`, or its file is not what was promoted.
        HeldError: another process moves this model's champion.
        UnavailableError: MLflow cannot be reached.
    """
    with closing(Record.open(settings.record_url)) as record:
        ledger.entries(record, model)
        with _moving(record, model) as lease:
            registry = Registry(settings)
            finished = _finish_killed_move(record, lease, registry, model)
            if finished is not None and finished.kind == "rollback":
                return _promoted(finished, finished.from_version)
            aliases = registry.aliases(model)
            champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
            if previous is None or previous == champion:
                raise UsageError(f"model {model!r} has no former version to go back to")
            former = ledger.entry(record, model, previous)
            file_of(settings, registry, former)
            entry = ledger.copied(former, kind="rollback", from_version=champion, who=ledger.user())
            _move(record, lease, registry, entry)
            return _promoted(entry, champion)


# -- names and leases


@contextmanager
def _moving(record: Record, model: str) -> Iterator[Lease]:
    """Hold the right to move a model's champion."""
    try:
        holding = Holding(record, f"model:{model}")
    except HeldError as error:
        raise HeldError(f"{error}, which is about to move @{CHAMPION}; look again when it has ended") from error
    with holding as lease:
        yield lease


def _choose(record: Record, name: str | None) -> Study:
    if name is not None:
        return names.named(record, name)
    studies = [study for study in record.studies() if names.is_newest(record, study) and not study.is_archived]
    if len(studies) == 1:
        return studies[0]
    known = ", ".join(study.name for study in studies)
    raise UsageError(f"there are {len(studies)} studies, name one of them: {known}" if known else "there is no study")


# -- moving the alias


def _move(record: Record, lease: Lease, registry: Registry, entry: Promotion) -> None:
    """Do what `entry` says; a kill in between leaves `@champion` where it was or where it is to be."""
    now = registry.aliases(entry.model).get(CHAMPION)
    if now != entry.from_version:
        raise UnavailableError(f"@{CHAMPION} of {entry.model!r} was moved to version {now} meanwhile; start again")
    ledger.begin(record, lease, entry)
    registry.point(entry.model, CHAMPION, entry.to_version)
    _end_move(record, lease, registry, entry)


def _end_move(record: Record, lease: Lease, registry: Registry, entry: Promotion) -> None:
    if entry.from_version is not None:
        registry.point(entry.model, PREVIOUS, entry.from_version)
    ledger.end(record, lease, entry)


def _finish_killed_move(record: Record, lease: Lease, registry: Registry, model: str) -> Promotion | None:
    """Where a move was killed after `@champion` moved, do the rest of it and return its entry."""
    entry = ledger.unfinished(record, model)
    if entry is None or registry.aliases(model).get(CHAMPION) != entry.to_version:
        return None
    _end_move(record, lease, registry, entry)
    return entry


def _promoted(entry: Promotion, previous: str | None, *, already: bool = False) -> Promoted:
    return Promoted(
        model=entry.model,
        version=entry.to_version,
        previous=previous,
        metric=_metric(_trained_on_of(entry)[0]),
        score=entry.test_score,
        gates=tuple({key: gate[key] for key in ("name", "figure", "limit", "passed")} for gate in entry.gates),
        already=already,
    )


# -- the gates


class _Promotion:
    """One promotion under its lease."""

    def __init__(self, settings: Settings, record: Record, lease: Lease, study: Study) -> None:
        self._settings, self._record, self._lease, self._study = settings, record, lease, study
        self._model = names.family(study)  # versions of a study are measured against the same champion
        self._trial = self._best_trial()
        self._attempt = accepted_attempt(record, self._trial)
        self._folder = settings.attempt_folder(study.name, self._trial.number, self._attempt.number)
        self._registry = Registry(settings)

    def run(self) -> Promoted:
        """Go through the gates and move the alias."""
        _finish_killed_move(self._record, self._lease, self._registry, self._model)
        aliases = self._registry.aliases(self._model)
        champion = self._champion(aliases.get(CHAMPION))
        export = self._record.exports(self._study.id).get(self._trial.number)
        if champion and export and champion.sha256 == export.sha256:
            return _promoted(champion, aliases.get(PREVIOUS), already=True)
        self._check_files()
        export = export or self._export()
        check_hash(self._settings.home / export.file, export.sha256, RefusedError)
        gates, test_score = self._examine(export, champion)
        entry = self._register(export, gates, test_score, champion)
        _move(self._record, self._lease, self._registry, entry)
        return _promoted(entry, entry.from_version)

    # -- the candidate

    def _best_trial(self) -> Trial:
        study = self._study
        if ":" in study.name:
            raise UsageError(f"MLflow registers no model with a colon in its name: {study.name!r}")
        trials, epochs = self._record.trials(study.id), self._record.epochs(study.id)
        leaders = compare.ranked(trials, epochs, of_spec(study.spec))
        if not leaders:
            raise UsageError(f"study {study.name!r} has no complete trial yet")
        if "data" not in leaders[0].config:
            raise UsageError(f"recipe {study.recipe} brings its own data: there are no test images to judge it on")
        return leaders[0]

    def _check_files(self) -> None:
        for name, expected in (self._attempt.manifest or {}).items():
            check_hash(self._folder / name, expected, RefusedError)

    def _export(self) -> Export:
        """Write the ONNX file that the sweep did not write."""
        with Holding(self._record, study_lease(self._study.name)) as lease:
            port = _Port()
            spec = ExportSpec(
                study=self._study.name,
                trial=self._trial.number,
                attempt=self._attempt.number,
                recipe=self._study.recipe,
                config=self._trial.config,
                folder=str(self._folder),
            )
            worker.run(spec, port)
            (event,) = port.events
            assert isinstance(event, Exported), "an export ends with its one event"
            if event.error:
                raise RefusedError(f"trial {self._trial.number} cannot be exported: {event.error}")
            export = Export(
                trial_id=self._trial.id,
                file=str((self._folder / event.file).relative_to(self._settings.home)),
                sha256=event.sha256,
                size_bytes=event.size_bytes,
                max_difference=event.max_difference,
                error=None,
                recorded_at=time.time(),
            )
            self._record.add_export(lease, self._trial, export)
            return export

    def _run_id(self) -> str:
        """The MLflow run of the trial; the mirrors are brought up to date if it is not there yet."""
        from orchestrator import mirror

        if self._trial.number not in self._record.run_ids(self._study.id):
            with suppress(UnavailableError):  # it may be another mirror than MLflow
                mirror.sync(self._settings, self._study.name)
        run_id = self._record.run_ids(self._study.id).get(self._trial.number)
        if run_id is None:
            name = self._study.name
            raise UnavailableError(f"MLflow has no run of trial {self._trial.number}; `orch sync {name}` says why")
        return run_id

    # -- the champion

    def _champion(self, version: str | None) -> Promotion | None:
        """The ledger's entry on the present champion, if there is one."""
        entry = ledger.find(self._record, self._model, version) if version else None
        if version and entry is None:
            raise RefusedError(
                f"@{CHAMPION} of {self._model!r} is version {version}, which `orch promote` did not make; "
                "delete or move the alias in MLflow first"
            )
        return entry

    # -- the gates

    def _examine(self, export: Export, champion: Promotion | None) -> tuple[list[dict[str, Any]], float]:
        """All gates as the ledger keeps them, passed, and the objective on the test images.

        Raises:
            RefusedError: a gate is not passed.
        """
        from orchestrator.inference import Model

        dataset, trained_on = self._load_data(), _trained_on(self._trial.config)
        image_size = dataset_of(self._trial.config).image_size
        candidate_file = self._settings.home / export.file
        gates = [
            Gate(name="damaged_files", figure=0, limit=0),  # or it had ended before
            Gate(name="onnx_difference", figure=self._difference(candidate_file, dataset), limit=MAX_DIFFERENCE),
            Gate(name=SEEN, figure=_num_seen(dataset, image_size, trained_on), limit=0),
        ]
        _insist(gates)
        candidate = Model(candidate_file)
        answers = _test_answers(candidate, dataset)
        if champion:
            model = self._load_champion(champion, candidate.class_names)
            seen = _num_seen(dataset, image_size, _trained_on_of(champion))
            gates.append(Gate(name="champion_seen_test_images", figure=seen, limit=0))
            gates += _compared(dataset, _test_answers(model, dataset), answers)
            _insist(gates)
        noted = [{**gate.to_json(), **({TRAINED_ON: trained_on} if gate.name == SEEN else {})} for gate in gates]
        return noted, _score(dataset, answers)

    def _load_data(self) -> Dataset:
        """The data set that the trial was trained on."""
        dataset, identity = _load(dataset_of(self._trial.config)), self._study.identity
        if (dataset.data_fingerprint, dataset.split_fingerprint) != (identity["data"], identity["split"]):
            raise RefusedError(f"not promoted: data {self._study.data!r} is no longer what the study was trained on")
        return dataset

    def _difference(self, onnx_file: Path, dataset: Dataset) -> float:
        """The largest difference of outputs on validation images, ONNX against PyTorch."""
        from recipes.export import ExportError, inputs_of, parity
        from recipes.model_file import ModelFileError, restore_model

        pictures = inputs_of(dataset.val.first(worker.NUM_PARITY_IMAGES))
        try:
            model, info, _ = restore_model(recipes.load(self._study.recipe), self._folder / BEST)
            return parity(model, info, onnx_file, pictures)
        except (recipes.RecipeFileError, recipes.UnknownRecipeError) as error:
            raise UsageError(str(error)) from error
        except (ModelFileError, ExportError) as error:
            raise RefusedError(f"not promoted: {error}") from error

    def _load_champion(self, champion: Promotion, class_names: tuple[str, ...]) -> Model:
        from orchestrator.inference import Model

        try:
            model = Model(file_of(self._settings, self._registry, champion))
        except UsageError as error:
            raise RefusedError(f"the present champion cannot be judged: {error}") from error
        if model.class_names != class_names:
            raise RefusedError(
                f"the present champion tells apart {', '.join(model.class_names)}, "
                f"this one {', '.join(class_names)}; promote it as a study of another name"
            )
        return model

    def _register(
        self,
        export: Export,
        gates: list[dict[str, Any]],
        test_score: float,
        champion: Promotion | None,
    ) -> Promotion:
        """Make the file a version, to which no alias points yet; the ledger's entry for when one does."""
        model, run_id = self._model, self._run_id()
        file = self._settings.home / export.file
        tags = {
            "orch.study": self._study.name,
            "orch.trial": self._trial.number,
            f"orch.{_metric(self._trial.config)}": test_score,
        }
        version = self._registry.register(model, run_id, file, tags)
        return Promotion(
            model=model,
            kind="promote",
            from_version=champion.to_version if champion else None,
            to_version=version,
            study=self._study.name,
            trial=self._trial.number,
            run_id=run_id,
            sha256=export.sha256,
            test_score=test_score,
            gates=gates,
            who=ledger.user(),
            recorded_at=time.time(),
        )


class _Port:
    """Keeps the events of a job that runs in this thread."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def decision(self) -> Decision:
        """Never asked for."""
        raise AssertionError("an export waits for no decision")


def _insist(gates: Sequence[Gate]) -> None:
    failed = [str(gate) for gate in gates if not gate.passed]
    if failed:
        raise RefusedError(f"not promoted: {'; '.join(failed)}")


def _metric(config: Mapping[str, Any]) -> str:
    """What the objective of a configuration is called on the test split."""
    return objective_of(config).replace("val_", "test_")


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


def _trained_on_of(champion: Promotion) -> list[dict[str, Any]]:
    """What `_trained_on` found when the champion was promoted."""
    (found,) = (gate[TRAINED_ON] for gate in champion.gates if gate["name"] == SEEN)
    return list(found)


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

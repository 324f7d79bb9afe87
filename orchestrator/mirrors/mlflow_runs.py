"""MLflow's view of a study: an experiment of its name, a parent run for the study, a child run for each trial.

Runs carry the study's key and the trial's number as tags, by which they are found again after a crash, on another
server or in an emptied one; the record's table of run ids is written from that. All metrics carry the epoch as their
step and the time it was recorded, so that MLflow stores one that is sent again only once.

A trial that ended early is KILLED, as in MLflow's own mirror of Optuna, so that `status = 'FINISHED'` shows those that
are comparable: trained to their end. One that waits for another attempt is SCHEDULED.
"""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

# MLflow reads these when it is imported. What goes wrong is told by us, in a line.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import UnavailableError, UsageError
from orchestrator.mirrors import finite_or_none, study_key
from orchestrator.mirrors.mlflow_files import RunFiles
from orchestrator.mirrors.mlflow_store import (
    TIMEOUT,
    address,
    call_environment,
    is_server,
    opening_store,
    time_for_files,
    wait_for_no_disk,
)
from orchestrator.mirrors.mlflow_tabs import dataset_of, log_model
from orchestrator.mirrors.mlflow_tags import launch_files, study_params, study_tags, trial_tags
from orchestrator.objectives import of_spec, values_at
from orchestrator.tables import PARENT, MirrorRun, State, Trial
from recipes.checkpoint import BEST
from recipes.config import objective_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow.entities import Run

    from orchestrator.mirrors import Place, Progress, Snapshot
    from orchestrator.tables import Epoch, Study

CALL_SECONDS = 5  # a server that is silent for longer is tried again later
# MLflow reads these at each call; what the user has set is left as it is.
CALL_ENVIRONMENT = {
    TIMEOUT: str(CALL_SECONDS),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # a retry would create a run twice if only the answer was late
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

KEY, NUMBER, STATE = "orch.study_id", "orch.trial", "orch.state"  # tags
PARENT_TAG = "mlflow.parentRunId"
MODEL_TAG = "orch.model_id"
PAGE = 1000

_STATUS = {
    State.WAITING: "SCHEDULED",
    State.PAUSED: "SCHEDULED",
    State.RUNNING: "RUNNING",
    State.COMPLETE: "FINISHED",
    State.PRUNED: "KILLED",
    State.FAILED: "FAILED",
}
# What MLflow answers if it will not take something, in contrast to not being able to now.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}

logger = logging.getLogger(__name__)


@dataclass
class _Run:
    """What is known of a run that exists."""

    id: str
    artifact_uri: str
    status: str
    tags: dict[str, str]
    num_params: int = 0
    has_data: bool = False
    last_epoch: int = 0  # sent by this process
    samples: set[float] = field(default_factory=set)  # the same

    @classmethod
    def of(cls, run: Run) -> _Run:
        info, data = run.info, run.data
        has_data = bool(run.inputs and run.inputs.dataset_inputs)
        return cls(info.run_id, info.artifact_uri, info.status, dict(data.tags), len(data.params), has_data)


@dataclass
class _Batch:
    """What one call of `log_batch` sends; MLflow stores parameters, then metrics, then tags."""

    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: Any, seconds: float, step: int = 0) -> None:
        """Add a metric; one that is not a finite number becomes a tag, where MLflow would store 0 or 1.8e308."""
        name = re.sub(r"[^\w\-./: ]", "_", name)
        number = finite_or_none(value)
        if number is None:
            self.tags[f"orch.not_finite.{name}"] = f"{value} at step {step}"
        else:
            self.metrics.append(Metric(name, number, _milliseconds(seconds), step))


class MlflowRuns:
    """The target `mlflow`."""

    def __init__(self, place: Place) -> None:
        self._settings, self._record, self._lease = place.settings, place.record, place.lease
        self._study = place.study
        self._key = study_key(place.study)
        self._uri = place.settings.tracking_uri
        self._client: MlflowClient
        self._experiment_id = ""
        self._runs: dict[int, _Run] = {}
        self._lost: dict[int, str] = {}  # trial -> id of a run that someone deleted
        self._recorded: dict[int, str] = {}
        self._launches: dict[int, dict[str, Any]] = {}  # id -> what it ran with
        self._data = dataset_of(place.study)
        self._best_step: int | None = None  # last step of the parent's best value; None is not known yet
        self._has_doubt = False  # a call to create a run failed, which may yet have made one

    # -- the protocol

    def open(self, progress: Mapping[int, Progress]) -> set[int]:
        """Connect, create the experiment, and find the study's runs; see `Target.open`."""
        with self._translated():
            self._client = self._connect()
            self._experiment_id = self._find_experiment()
            self._find_runs()
            self._save_runs()
            self._best_step = None
            self._launches.clear()
        for number, run_id in self._lost.items():
            self._tell_deleted(number, run_id)
        return {number for number, trial in progress.items() if self._lacks(number, trial)}

    def apply(self, study: Study, trials: Sequence[Snapshot]) -> None:
        """Write what is missing; see `Target.apply`."""
        with self._translated():
            with self._unless_refused(PARENT):
                self._apply_study(study)
            for snapshot in trials:
                with self._unless_refused(snapshot.trial.number):
                    self._apply_trial(study, snapshot)
            if self._best_step is None or any(snapshot.trial.state.finished for snapshot in trials):
                with self._unless_refused(PARENT):
                    self._apply_result(study)
            self._save_runs()

    def close(self) -> None:
        """Copy the workers' logs, mark an unfinished study as stopped, and remove runs that were made twice."""
        with self._translated():
            parent = self._runs.get(PARENT)
            if parent is not None:
                with self._unless_refused(PARENT):
                    self._add_logs(parent)
                    if parent.status == "RUNNING":
                        self._set_status(parent, "KILLED", time.time())
            if self._has_doubt:
                self._find_runs()
                self._save_runs()
                self._has_doubt = False

    def remove(self) -> None:
        """Delete the study's runs and their models; MLflow keeps them restorable until `mlflow gc`."""
        with self._translated():
            self._client = self._connect()
            experiment = self._client.get_experiment_by_name(self._study.name)
            if experiment is None or experiment.lifecycle_stage != LifecycleStage.ACTIVE:
                return
            self._experiment_id = experiment.experiment_id
            for run in self._search(ViewType.ACTIVE_ONLY):
                if model := run.data.tags.get(MODEL_TAG):
                    self._client.delete_logged_model(model)
                self._client.delete_run(run.info.run_id)

    def show(self, *, shown: bool) -> None:
        """Restore the study's experiment and its runs, or delete it as MLflow calls what its lists leave out."""
        with self._translated():
            self._client = self._connect()
            found = self._client.get_experiment_by_name(self._study.name)
            if found is None or (found.lifecycle_stage == LifecycleStage.ACTIVE) == shown:
                return
            if shown:
                self._client.restore_experiment(found.experiment_id)
            else:
                self._client.delete_experiment(found.experiment_id)

    # -- what there is

    def _connect(self) -> MlflowClient:
        if is_server(self._uri):
            return MlflowClient(self._uri)
        try:
            with opening_store(self._settings):
                client = MlflowClient(self._uri)
            wait_for_no_disk(client)
            return client
        except SQLAlchemyError as error:
            raise self._unusable(error) from error

    def _find_experiment(self) -> str:
        name = self._study.name
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                # A server knows where its artifacts go; in a database's URL nothing says so.
                location = None if is_server(self._uri) else self._settings.artifacts.as_uri()
                return str(self._client.create_experiment(name, artifact_location=location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(name)
        assert found is not None, "it exists already"
        self._check_experiment(found.experiment_id, found.lifecycle_stage)
        return str(found.experiment_id)

    def _check_experiment(self, experiment_id: str, stage: str) -> None:
        if stage == LifecycleStage.DELETED:
            raise UnavailableError(
                f"experiment {self._study.name!r} was deleted in MLflow at {self._address}; its results stay in the"
                f" study. To restore it: `MLFLOW_TRACKING_URI={self._address} mlflow experiments restore"
                f" --experiment-id {experiment_id}`"
            )

    def _search(self, view: int) -> Iterator[Run]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], f"tags.`{KEY}` = '{self._key}'", view, PAGE, ["start_time", "run_id"], token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _find_runs(self) -> None:
        """Find the study's runs; of two of one trial only the one that the record knows, or the older, stays."""
        self._recorded = self._record.run_ids(self._study.id)
        self._runs.clear()
        self._lost.clear()
        for found in self._search(ViewType.ALL):
            number, run = int(found.data.tags.get(NUMBER, PARENT)), _Run.of(found)
            if found.info.lifecycle_stage == LifecycleStage.DELETED:
                self._lost[number] = run.id
                continue
            twin = self._runs.setdefault(number, run)
            if twin is not run:
                kept, spare = (run, twin) if run.id == self._recorded.get(number) else (twin, run)
                self._runs[number] = kept
                self._client.delete_run(spare.id)
        self._lost = {number: run_id for number, run_id in self._lost.items() if number not in self._runs}

    def _lacks(self, number: int, trial: Progress) -> bool:
        if not trial.started or number in self._lost:
            return False
        run, parent = self._runs.get(number), self._runs.get(PARENT)
        if run is None or (parent is None and PARENT not in self._lost):
            return True
        return (
            run.tags.get(STATE) != trial.state.value
            or run.status != _STATUS[trial.state]
            or (parent is not None and run.tags.get(PARENT_TAG) != parent.id)
            or (self._data is not None and not run.has_data)
        )

    def _save_runs(self) -> None:
        """Note the ids of new runs, and forget those of lost ones, in the record."""
        now = {number: run.id for number, run in self._runs.items()}
        if now == self._recorded:
            return
        with self._record.write(self._lease) as session:
            for number in self._recorded.keys() - now.keys():
                session.execute(
                    delete(MirrorRun).where(MirrorRun.study_id == self._study.id, MirrorRun.trial == number)
                )
            for number, run_id in now.items():
                if self._recorded.get(number) != run_id:
                    session.merge(MirrorRun(study_id=self._study.id, trial=number, run_id=run_id))
        self._recorded = now

    # -- the study

    def _apply_study(self, study: Study) -> None:
        if PARENT in self._lost:
            return
        tags = study_tags(study, self._key)
        parent = self._runs.get(PARENT) or self._create(PARENT, study.name, study.created_at, tags)
        batch = _Batch(tags=_changed(tags, parent.tags))
        params = study_params(study)
        if parent.num_params < len(params):
            batch.params = params
        self._add_data(parent)
        self._send(parent, batch)
        self._add_launches(parent, study)

    def _add_launches(self, parent: _Run, study: Study) -> None:
        """Write what each launch ran with as files of the parent run: whoever trains a trial again needs it."""
        for launch in self._record.launches(study.id, after=max(self._launches, default=0)):
            tag = f"orch.launch.{launch.id}"
            if tag not in parent.tags:
                with time_for_files():
                    for name, text in launch_files(launch.provenance).items():
                        self._client.log_text(parent.id, text, f"launches/{launch.id}/{name}")
                self._send(parent, _Batch(tags={tag: datetime.fromtimestamp(launch.started_at, UTC).isoformat()}))
            self._launches[launch.id] = launch.provenance

    def _add_data(self, run: _Run) -> None:
        """Write what a run is trained on, before its state says that it has all."""
        if self._data is not None and not run.has_data:
            self._client.log_inputs(run.id, [self._data])
            run.has_data = True

    def _add_logs(self, parent: _Run) -> None:
        """Copy what the workers wrote, of all trials; a run's tag `orch.worker` says whose log has its trial."""
        for file in sorted((self._settings.logs / self._study.name).glob("worker-*.log")):
            self._send(parent, _Batch(tags=self._files(parent).copy_log(file)))

    def _apply_result(self, study: Study) -> None:
        """Write the best value so far, by the number of ended trials, and whether the study is complete."""
        parent = self._runs.get(PARENT)
        if parent is None:
            return
        query = (
            select(Trial.state, Trial.value, Trial.ended_at)
            .where(Trial.study_id == study.id, Trial.state.in_([state for state in State if state.finished]))
            .order_by(Trial.ended_at, Trial.number)
        )
        with self._record.read() as session:
            ended = session.execute(query).all()
        best_name = f"best_{objective_of(study.spec.get('fixed', {}))}"
        if self._best_step is None:
            history = self._client.get_metric_history(parent.id, best_name)
            self._best_step = max((metric.step for metric in history), default=0)
        batch, best = _Batch(), float("-inf")
        for step, (state, value, ended_at) in enumerate(ended, start=1):
            if state is State.COMPLETE and value is not None and value > best:
                best = value
                if step > self._best_step:
                    batch.add(best_name, value, ended_at or study.created_at, step)
        self._send(parent, batch)
        self._best_step = max([self._best_step, *(metric.step for metric in batch.metrics)])
        if len(ended) >= study.spec.get("budget", {}).get("trials", float("inf")):
            self._set_status(parent, "FINISHED", max(ended_at or 0.0 for _, _, ended_at in ended))
        else:
            self._set_status(parent, "RUNNING", None)

    # -- a trial

    def _apply_trial(self, study: Study, snapshot: Snapshot) -> None:
        trial = snapshot.trial
        if trial.started_at is None or trial.number in self._lost:
            return
        launch = self._launches.get(snapshot.attempts[-1].launch or 0) if snapshot.attempts else None
        tags = {**trial_tags(study, snapshot, self._key, launch), PARENT_TAG: self._parent_id()}
        run = self._runs.get(trial.number)
        if run is None:
            run = self._create(trial.number, f"{study.name} #{trial.number}", trial.started_at, _but_state(tags))
        batch = _Batch(tags=_changed(tags, run.tags))
        if run.num_params < len(trial.config):
            batch.params = trial.config
        self._add_data(run)
        self._add_metrics(batch, run, study, snapshot)
        self._add_files(batch, run, study, snapshot)
        self._add_model(batch, run, study, snapshot)
        self._send(run, batch)
        run.samples |= {sample.recorded_at for sample in snapshot.samples}
        run.last_epoch = max([run.last_epoch, *(epoch.number for epoch in snapshot.epochs)])
        self._set_status(run, _STATUS[trial.state], trial.ended_at)

    def _files(self, run: _Run) -> RunFiles:
        return RunFiles(self._client, run.id, run.artifact_uri, run.tags)

    def _parent_id(self) -> str:
        parent = self._runs.get(PARENT)
        return parent.id if parent is not None else self._lost[PARENT]

    def _add_metrics(self, batch: _Batch, run: _Run, study: Study, snapshot: Snapshot) -> None:
        trial = snapshot.trial
        for epoch in snapshot.epochs:
            if epoch.number > run.last_epoch:
                for name, value in epoch.metrics.items():
                    batch.add(name, value, epoch.recorded_at, epoch.number)
        for sample in snapshot.samples:
            if sample.recorded_at not in run.samples:
                step = round(sample.recorded_at - (trial.started_at or 0))  # in seconds: the same whenever it is sent
                for name, value in sample.metrics.items():
                    batch.add(name, value, sample.recorded_at, step)
        if STATE in batch.tags and trial.ended_at is not None and trial.value is not None:
            best = values_at(snapshot.epochs, trial.best_epoch or 0, of_spec(study.spec))
            for name, value in ({objective_of(trial.config): trial.value} | best).items():
                batch.add(f"best_{name}", value, trial.ended_at)
            batch.add("best_epoch", trial.best_epoch, trial.ended_at)
            batch.add("train_seconds", _seconds(snapshot.epochs), trial.ended_at)

    def _add_files(self, batch: _Batch, run: _Run, study: Study, snapshot: Snapshot) -> None:
        """Copy the files that count, and say so in the batch; promotion trusts a run's files only by these tags."""
        trial, export, files = snapshot.trial, snapshot.export, self._files(run)
        last = snapshot.attempts[-1] if snapshot.attempts else None
        if trial.state in {State.COMPLETE, State.PRUNED} and last is not None and BEST in (last.manifest or {}):
            assert last.manifest is not None
            folder = self._settings.attempt_folder(study.name, trial.number, last.number)
            batch.tags |= files.copy(folder / BEST, last.manifest[BEST], "checkpoint")
            batch.tags |= files.copy_others(folder, last.manifest)
        elif trial.state in {State.COMPLETE, State.PRUNED} and trial.is_freed:
            batch.tags |= files.remove_checkpoint()
        if export is not None and export.error is not None:
            batch.tags |= _changed({"orch.onnx_error": export.error}, run.tags)
        elif export is not None:
            copied = files.copy(self._settings.home / export.file, export.sha256, "onnx")
            if copied:
                batch.tags |= copied
                batch.add("onnx_max_difference", export.max_difference, export.recorded_at)

    def _add_model(self, batch: _Batch, run: _Run, study: Study, snapshot: Snapshot) -> None:
        """Make an exported file, once it has arrived whole, a model that MLflow lists; the batch says which."""
        export = snapshot.export
        arrived = export is not None and {**run.tags, **batch.tags}.get("orch.onnx_sha256") == export.sha256
        if export is None or not arrived or MODEL_TAG in run.tags:
            return
        try:
            file = self._settings.home / export.file
            batch.tags[MODEL_TAG] = log_model(self._client, run.id, study, snapshot, file)
        except UsageError as error:
            logger.warning("%s; MLflow lists no model of %s", error, self._what(snapshot.trial.number))

    # -- calls

    def _create(self, number: int, name: str, started_at: float, tags: Mapping[str, str]) -> _Run:
        start_time = _milliseconds(started_at)
        try:
            created = self._client.create_run(self._experiment_id, start_time, dict(tags), name)
        except MlflowException:
            self._has_doubt = True
            raise
        run = self._runs[number] = _Run.of(created)
        return run

    def _send(self, run: _Run, batch: _Batch) -> None:
        if batch.metrics or batch.params or batch.tags:
            params = [Param(name, str(value)) for name, value in batch.params.items()]
            tags = [RunTag(name, value) for name, value in batch.tags.items()]
            self._client.log_batch(run.id, batch.metrics, params, tags, synchronous=True)
            run.num_params = max(run.num_params, len(params))
            run.tags |= batch.tags

    def _set_status(self, run: _Run, status: str, ended_at: float | None) -> None:
        if run.status == status:
            return
        if RunStatus.is_terminated(RunStatus.from_string(status)):
            assert ended_at is not None, "it ended"
            self._client.set_terminated(run.id, status, _milliseconds(ended_at))
        else:
            self._client.update_run(run.id, status)
        run.status = status

    @contextmanager
    def _unless_refused(self, number: int) -> Iterator[None]:
        """Go on if MLflow refuses this run: someone deleted it, or there is something in it that MLflow rejects.

        A run or an experiment that is gone for good is an error like a dead server: `open` finds out and makes it anew.
        """
        try:
            yield
        except MlflowException as error:
            if error.error_code not in _REFUSALS:
                raise
            self._check_refused(number, error)

    def _check_refused(self, number: int, error: MlflowException) -> None:
        experiment = self._client.get_experiment(self._experiment_id)
        self._check_experiment(experiment.experiment_id, experiment.lifecycle_stage)
        run = self._runs.get(number)
        if run is None or self._client.get_run(run.id).info.lifecycle_stage == LifecycleStage.ACTIVE:
            logger.error("MLflow refuses %s: %s", self._what(number), error.message)
            return
        del self._runs[number]
        self._lost[number] = run.id
        self._tell_deleted(number, run.id)

    def _tell_deleted(self, number: int, run_id: str) -> None:
        logger.warning(
            "run %s of %s was deleted in MLflow; its results stay in the study. To restore it:"
            " `MLFLOW_TRACKING_URI=%s mlflow runs restore --run-id %s`, then `orch sync %s`",
            *(run_id, self._what(number), self._address, run_id, self._study.name),
        )

    def _what(self, number: int) -> str:
        return f"study {self._study.name}" if number == PARENT else f"trial {number} of {self._study.name}"

    @property
    def _address(self) -> str:
        return address(self._uri)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with call_environment(CALL_ENVIRONMENT):
            try:
                yield
            except (MlflowException, RequestException, OSError) as error:
                raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> UnavailableError:
        return UnavailableError(f"MLflow at {self._address} is not usable now: {_cause(error)}")


def _cause(error: Exception) -> str:
    """Why a call failed, in a few words and without the user and password that an address may hold."""
    text = str(error)
    if "refused" in text:
        return "connection refused"
    if "timed out" in text.lower() or "timeout" in text.lower():
        return f"no answer within {os.environ[TIMEOUT]} s"
    if answered := re.search(r"too many (\d+) error|error code (\d+)|\b([45]\d\d) (?:Client|Server) Error", text):
        return f"it answers {answered[1] or answered[2] or answered[3]}"
    lines = re.sub(r"//[^/@\s]*@", "//", text).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _changed(wanted: Mapping[str, str], there: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in wanted.items() if there.get(name) != value}


def _but_state(tags: Mapping[str, str]) -> dict[str, str]:
    # The state is the last thing that is written: a run that has it also has what belongs to it.
    return {name: value for name, value in tags.items() if name != STATE}


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _seconds(epochs: Sequence[Epoch]) -> float:
    return sum(epoch.seconds for epoch in epochs)

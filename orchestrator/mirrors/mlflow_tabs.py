"""What MLflow's tabs of data sets and of models show of a study, told from the record: no image is read for it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelStatus, Metric

from orchestrator.mirrors import finite_or_none
from orchestrator.mirrors.mlflow_store import time_for_files
from orchestrator.registry import lay_out

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

    from orchestrator.mirrors import Snapshot
    from orchestrator.tables import Epoch, Study

CONTEXT = "mlflow.data.context"  # which the UI shows beside a data set
DIGEST_PART = 16  # hex digits of each fingerprint: MLflow takes 36 letters in all
MAX_NAME = 500


def dataset_of(study: Study) -> DatasetInput | None:
    """The data that all trials of a study are trained on, by the fingerprints of their pixels and of the split.

    The test images have no part in a run. None of a study that was imported, of whose data nothing is known.
    """
    provenance = study.spec.get("provenance", {})
    fingerprints = {name: provenance.get(name) for name in ("data_fingerprint", "split_fingerprint")}
    if not all(fingerprints.values()):
        return None
    source = {"uri": study.data, "split_seed": study.spec.get("split_seed"), **fingerprints}
    digest = "-".join(str(each)[:DIGEST_PART] for each in fingerprints.values())
    dataset = Dataset(study.data[:MAX_NAME], digest, source_type="local", source=json.dumps(source))
    return DatasetInput(dataset, [InputTag(CONTEXT, "training, validation")])


def log_model(client: MlflowClient, run_id: str, study: Study, snapshot: Snapshot, file: Path) -> str:
    """Make an exported ONNX file a model of its trial's run, readable by MLflow's own tools; return the model's id.

    One that an earlier call left unfinished is gone on with. It is no output of the run in MLflow's sense: that is the
    model which is promoted, and which a version has as its source.

    Raises:
        UsageError: the file is no ONNX model.
    """
    model = _found_or_created(client, run_id, snapshot)
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as folder, time_for_files():
            lay_out(file, Path(folder), run_id=run_id, model_id=model.model_id)
            client.log_model_artifacts(model.model_id, folder)
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_batch(run_id, _metrics(model.model_id, run_id, study, snapshot), synchronous=True)
    return str(model.model_id)


def _found_or_created(client: MlflowClient, run_id: str, snapshot: Snapshot) -> LoggedModel:
    experiment, name = client.get_run(run_id).info.experiment_id, f"trial-{snapshot.trial.number}"
    query = f"source_run_id = '{run_id}' AND name = '{name}'"
    if found := client.search_logged_models([experiment], filter_string=query, max_results=1):
        return found[0]
    params = {field: str(value) for field, value in snapshot.trial.params.items()}
    return client.create_logged_model(experiment, name, run_id, params=params, model_type="onnx")


def _metrics(model_id: str, run_id: str, study: Study, snapshot: Snapshot) -> list[Metric]:
    """Those of the epoch that was exported. The run has them already, to the millisecond, and gets no second ones."""
    given = dataset_of(study)
    data = {"dataset_name": given.dataset.name, "dataset_digest": given.dataset.digest} if given else {}
    return [
        Metric(name, number, round(epoch.recorded_at * 1000), epoch.number, model_id, run_id=run_id, **data)
        for epoch in snapshot.epochs
        if epoch.number == snapshot.trial.best_epoch
        for name, number in _finite(epoch).items()
    ]


def _finite(epoch: Epoch) -> dict[str, float]:
    told = {name: finite_or_none(value) for name, value in epoch.metrics.items()}
    return {name: number for name, number in told.items() if number is not None}

"""MLflow's model registry: versions of ONNX models, their tags, and the aliases that name them.

All of MLflow that promotion needs; its errors leave here as `UnavailableError`. Nothing in a registry can be believed
(it has no password, and takes any path as a version's source): callers compare bytes with the ledger.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import UnavailableError, UsageError
from orchestrator.mirrors.mlflow_store import (
    TIMEOUT,
    address,
    call_environment,
    local_path,
    opening_store,
    time_for_files,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np
    import onnx
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from numpy.typing import NDArray

    from orchestrator.settings import Settings

MODEL_FILE, CARD_FILE = "model.onnx", "MODEL_CARD.md"
STUDY = "orch.study"  # a tag of runs and versions
MAX_DESCRIPTION = 5000  # of a version, in MLflow's tables
# A server that is gone is told in seconds; MLflow by itself tries for four minutes.
CALL_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    TIMEOUT: "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class Registry:
    """The registry of the tracking store that the settings name."""

    def __init__(self, settings: Settings) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import, which reads it
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._uri = settings.tracking_uri
        with opening_store(settings), self._told():
            # Where the registry is a database, MLflow looks a version's source up through its global store.
            mlflow.set_tracking_uri(self._uri)
            self._client = mlflow.MlflowClient(self._uri, self._uri)

    def aliases(self, model: str) -> dict[str, str]:
        """Alias -> version; empty where there is no such model."""
        from mlflow.exceptions import MlflowException

        with self._told():
            try:
                found = self._client.get_registered_model(model)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise
        return {alias: str(version) for alias, version in found.aliases.items()}

    def running_studies(self) -> set[str]:
        """Names of the studies that have runs which are shown as running."""
        with self._told():
            experiments = [found.experiment_id for found in self._client.search_experiments()]
            runs = self._client.search_runs(experiments, "attributes.status = 'RUNNING'") if experiments else []
        return {run.data.tags[STUDY] for run in runs if STUDY in run.data.tags}

    def point(self, model: str, alias: str, version: str) -> None:
        """Move an alias; it names one version before and after, never none."""
        with self._told():
            self._client.set_registered_model_alias(model, alias, version)

    def register(
        self, model: str, run_id: str, onnx_file: Path, tags: Mapping[str, Any], *, card: str, example: NDArray[Any]
    ) -> str:
        """Log an ONNX file as a model of a run, register it as a new version, and return that version.

        The card is among its files, and what the UI shows of the version; `example` is a batch that the model takes.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        with self._told():
            experiment = self._client.get_run(run_id).info.experiment_id
            logged = self._client.create_logged_model(experiment, name="onnx", source_run_id=run_id)
            with tempfile.TemporaryDirectory() as folder:
                lay_out(onnx_file, Path(folder), example, run_id=run_id, model_id=logged.model_id)
                (Path(folder) / CARD_FILE).write_text(card)
                with time_for_files():
                    self._client.log_model_artifacts(logged.model_id, folder)
            self._client.finalize_logged_model(logged.model_id, "READY")
            self._client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
            try:
                self._client.create_registered_model(model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            shown = card if len(card) <= MAX_DESCRIPTION else f"{card[: MAX_DESCRIPTION - 80]}…\n\nWhole: {CARD_FILE}"
            made = self._client.create_model_version(
                model, logged.model_uri, run_id, dict(tags), description=shown, model_id=logged.model_id
            )
            return str(made.version)

    def store(self, run_id: str, name: str, data: bytes) -> None:
        """Make a file an artifact of a run; one of that name is replaced."""
        with tempfile.TemporaryDirectory() as folder, self._told(), time_for_files():
            file = Path(folder) / name
            file.write_bytes(data)
            self._client.log_artifact(run_id, str(file))

    def local_file(self, model: str, version: str) -> Path | None:
        """The ONNX file of a version where artifacts are files of this machine, else None."""
        folder = local_path(self._location(model, version))
        return folder / MODEL_FILE if folder is not None and folder.is_absolute() else None

    def download(self, model: str, version: str, folder: Path) -> Path:
        """Fetch the ONNX file of a version into `folder`."""
        from mlflow.artifacts import download_artifacts

        uri = f"{self._location(model, version)}/{MODEL_FILE}"
        with self._told(), time_for_files():
            return Path(download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=self._uri))

    def card(self, model: str, version: str) -> str:
        """The model card of a version, or what else describes it in MLflow; empty if nothing does."""
        import requests
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        uri = f"{self._location(model, version)}/{CARD_FILE}"
        with self._told(), tempfile.TemporaryDirectory() as folder:
            try:
                file = download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=self._uri)
                return Path(file).read_text(encoding="utf-8")
            except (MlflowException, FileNotFoundError, requests.HTTPError):  # a version of before there were cards
                return self._version(model, version).description or ""

    def _location(self, model: str, version: str) -> str:
        """Where the files of a version are: with the logged model that is its source.

        Raises:
            UsageError: the source is something else, such as a path.
        """
        source = self._version(model, version).source or ""
        match = re.fullmatch(r"models:/(m-[0-9a-f]+)", source)
        if match is None:
            raise UsageError(f"version {version} of model {model!r} has a source that is not ours: {source!r}")
        with self._told():
            return str(self._client.get_logged_model(match[1]).artifact_location)

    def _version(self, model: str, version: str) -> ModelVersion:
        with self._told():
            return self._client.get_model_version(model, version)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tell MLflow's errors in one line, without the password that its address may hold."""
        import requests
        from mlflow.exceptions import MlflowException

        try:
            with call_environment(CALL_ENVIRONMENT):
                yield
        except (MlflowException, requests.RequestException, SQLAlchemyError, OSError) as error:
            text = str(error).replace(self._uri, address(self._uri)).strip()
            reason = (text.splitlines() or [type(error).__name__])[0]
            raise UnavailableError(f"MLflow at {address(self._uri)}: {reason}") from error


def lay_out(onnx_file: Path, folder: Path, example: NDArray[Any] | None = None, *, run_id: str, model_id: str) -> None:
    """Lay out an MLflow model with signature around the very bytes of `onnx_file`; `example` is a batch it takes.

    Raises:
        UsageError: the file is no ONNX model.
    """
    import mlflow.onnx
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from mlflow.models import Model

    try:
        model = onnx.load(onnx_file, load_external_data=False)
    except DecodeError as error:
        raise UsageError(f"{onnx_file} is no ONNX model") from error
    mlflow.onnx.save_model(
        model,
        str(folder),
        mlflow_model=Model(run_id=run_id, model_id=model_id),
        signature=_signature(model),
        input_example=None if example is None else {model.graph.input[0].name: example},
        pip_requirements=[f"{name}=={installed_version(name)}" for name in ("onnx", "onnxruntime")],
        save_as_external_data=False,
    )
    shutil.copyfile(onnx_file, folder / MODEL_FILE)  # MLflow serialised it anew, the ledger has the hash of these


def _signature(model: onnx.ModelProto) -> ModelSignature:
    """The shapes and types of a graph's inputs and outputs in MLflow's words; a dimension that is free is -1."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def specs(values: Iterable[onnx.ValueInfoProto]) -> Schema:
        return Schema([TensorSpec(*_type_and_shape(value), name=value.name) for value in values])

    return ModelSignature(inputs=specs(model.graph.input), outputs=specs(model.graph.output))


def _type_and_shape(value: onnx.ValueInfoProto) -> tuple[np.dtype[Any], tuple[int, ...]]:
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    dimensions = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    return tensor_dtype_to_np_dtype(tensor.elem_type), tuple(dimensions)

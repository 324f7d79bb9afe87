"""The files of a run in MLflow's artifacts: each arrives whole, once, and a tag of the run says which it is.

Whoever trusts a run's files goes by these tags, so that they are returned to be sent after what they speak of.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from orchestrator.errors import UnavailableError
from orchestrator.mirrors.mlflow_store import local_path, time_for_files
from recipes.checkpoint import BEST
from recipes.files import replace_by_link, sha256_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow import MlflowClient

DAMAGED = "missing or damaged"
FREED = "freed"

logger = logging.getLogger(__name__)


class RunFiles:
    """The artifacts of one run; every method returns the tags that the run is to get, none if it has them."""

    def __init__(self, client: MlflowClient, run_id: str, uri: str, tags: Mapping[str, str]) -> None:
        self._client, self._run_id, self._uri, self._tags = client, run_id, uri, tags
        self._local = local_path(uri)

    def copy(self, file: Path, sha256: str, folder: str) -> dict[str, str]:
        """Put a file into a folder of the artifacts.

        Raises:
            UnavailableError: it did not arrive as it was.
        """
        tag = f"orch.{folder}_sha256"
        if self._tags.get(tag) == sha256:
            return {}
        if not _is_whole(file, sha256):
            return {tag: DAMAGED}
        with time_for_files():
            self._put(file, folder)
            if self._sha256_there(f"{folder}/{file.name}") != sha256:
                raise UnavailableError(f"{file} did not arrive whole at {self._uri}")
        return {tag: sha256}

    def copy_others(self, folder: Path, manifest: Mapping[str, str]) -> dict[str, str]:
        """Put what else a trial has left, as pictures and a profile, under `files`."""
        others = {name: sha256 for name, sha256 in manifest.items() if name != BEST}
        tag, digest = "orch.files_sha256", hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
        if not others or self._tags.get(tag) == digest:
            return {}
        for name, sha256 in others.items():
            if not _is_whole(folder / name, sha256):
                digest = DAMAGED
                continue
            with time_for_files():
                self._put(folder / name, str(PurePosixPath("files", name).parent))
        return {tag: digest}

    def copy_log(self, file: Path) -> dict[str, str]:
        """Put a worker's log, which may have grown, under `logs`."""
        tag, size = f"orch.log.{file.stem}", f"{file.stat().st_size} bytes"
        if self._tags.get(tag) == size:
            return {}
        with time_for_files():
            self._client.log_artifact(self._run_id, str(file), "logs")
        return {tag: size}

    def remove_checkpoint(self) -> dict[str, str]:
        """Remove weights that `keep=` frees."""
        tag = "orch.checkpoint_sha256"
        if self._tags.get(tag) == FREED:
            return {}
        if tag in self._tags:
            artifacts = get_artifact_repository(self._uri, self._client.tracking_uri)
            with time_for_files():
                artifacts.delete_artifacts(f"checkpoint/{BEST}")  # type: ignore[no-untyped-call]
        return {tag: FREED}

    def _put(self, file: Path, folder: str) -> None:
        """On this machine a file gets a second name among the artifacts, and takes no more room."""
        if self._local is None or not self._local.is_absolute():
            self._client.log_artifact(self._run_id, str(file), folder)
        else:
            replace_by_link(file, self._local / folder / file.name)

    def _sha256_there(self, path: str) -> str:
        if self._local is not None:
            return sha256_of(self._local / path)
        with tempfile.TemporaryDirectory() as folder:
            return sha256_of(Path(self._client.download_artifacts(self._run_id, path, folder)))


def _is_whole(file: Path, sha256: str) -> bool:
    """Whether a file is there as it was; a note in the log if not."""
    is_whole = file.is_file() and sha256_of(file) == sha256
    if not is_whole:
        logger.warning("%s is %s (SHA-256 %s expected); it is not copied to MLflow", file, DAMAGED, sha256)
    return is_whole

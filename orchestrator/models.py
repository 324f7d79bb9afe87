"""From a promoted model's name to its file.

MLflow's registry says which version a name stands for; the ledger says which bytes that version has.
"""

from __future__ import annotations

import re
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import ledger
from orchestrator.errors import UnknownNameError, UsageError
from orchestrator.registry import Registry
from orchestrator.store import Record
from recipes.checkpoint import BEST
from recipes.files import sha256_of

if TYPE_CHECKING:
    from orchestrator.errors import RefusedError
    from orchestrator.settings import Settings
    from orchestrator.tables import Attempt, Promotion, Trial


def resolve_model(settings: Settings, uri: str) -> Path:
    """The ONNX file that `models:/NAME@ALIAS` or `models:/NAME/VERSION` stands for.

    Raises:
        UsageError: not such a name, nothing of that name, or bytes that are not those that were promoted.
        UnavailableError: MLflow cannot be reached.
    """
    return find(settings, uri)[1]


def find(settings: Settings, uri: str) -> tuple[Promotion, Path]:
    """The ledger's newest entry on the version that a name stands for now, and the ONNX file.

    Raises:
        UsageError: as of `resolve_model`.
        UnavailableError: MLflow cannot be reached.
    """
    with closing(Record.open(settings.record_url)) as record:
        registry, entry = _resolve(settings, record, uri)
        return entry, file_of(settings, registry, entry)


def find_entry(settings: Settings, uri: str) -> Promotion:
    """The entry alone, which takes milliseconds, however large the file.

    Raises:
        UsageError: not such a name, or nothing of that name.
        UnavailableError: MLflow cannot be reached.
    """
    with closing(Record.open(settings.record_url)) as record:
        return _resolve(settings, record, uri)[1]


def resolve_weights(settings: Settings, uri: str) -> Path:
    """The `best.safetensors` of the trial that a promoted model was made of.

    Raises:
        UsageError: as of `resolve_model`, or the trial is no longer there.
        UnavailableError: MLflow cannot be reached.
    """
    with closing(Record.open(settings.record_url)) as record:
        _, entry = _resolve(settings, record, uri)
        study = record.find_study(entry.study)
        trial = record.trial(study.id, entry.trial) if study else None
        export = record.exports(study.id).get(entry.trial) if study else None
        if study is None or trial is None or export is None or export.sha256 != entry.sha256:
            raise UsageError(f"{uri} was trained as trial {entry.trial} of {entry.study!r}, which is no longer there")
        attempt = accepted_attempt(record, trial)
        path = settings.attempt_folder(study.name, trial.number, attempt.number) / BEST
        check_hash(path, (attempt.manifest or {}).get(BEST, ""), UsageError)
        return path


def _resolve(settings: Settings, record: Record, uri: str) -> tuple[Registry, Promotion]:
    match = re.fullmatch(r"models:/(?:([^/]+)/(\d+)|([^/]+)@([^/@]+))", uri)
    if match is None:
        raise UsageError(f"{uri!r} is no model; expected models:/NAME@ALIAS or models:/NAME/VERSION")
    model, version, alias = match[1] or match[3], match[2], match[4]
    ledger.entries(record, model)
    registry = Registry(settings)
    if version is None:
        aliases = registry.aliases(model)
        if alias not in aliases:
            raise UnknownNameError(f"alias of {model}", alias, aliases)
        version = aliases[alias]
    return registry, ledger.entry(record, model, version)


def file_of(settings: Settings, registry: Registry, entry: Promotion) -> Path:
    """The ONNX file of a version: in place if it is on this machine, else from a cache by hash.

    Raises:
        UsageError: it is missing, or has other bytes than were promoted.
        UnavailableError: MLflow cannot be reached.
    """
    path = registry.local_file(entry.model, entry.to_version)
    if path is None:
        path = settings.home / "cache" / "models" / f"{entry.sha256}.onnx"
        if not path.is_file() or sha256_of(path) != entry.sha256:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                registry.download(entry.model, entry.to_version, Path(folder)).replace(path)
    check_hash(path, entry.sha256, UsageError)
    return path


def check_hash(path: Path, expected: str, error_type: type[UsageError | RefusedError]) -> None:
    """Raise an `error_type` unless there is a file at `path` with the SHA-256 `expected`."""
    if not path.is_file():
        raise error_type(f"{path} is missing")
    if (found := sha256_of(path)) != expected:
        raise error_type(f"{path} has SHA-256 {found}, the record says {expected}")


def accepted_attempt(record: Record, trial: Trial) -> Attempt:
    """The attempt whose files count.

    Raises:
        UsageError: its weights were freed.
    """
    if trial.is_freed:
        raise UsageError(f"trial {trial.number} is on record, but its files are not there: {trial.message}")
    return next(attempt for attempt in reversed(record.attempts(trial.id)) if attempt.manifest is not None)

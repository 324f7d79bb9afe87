"""A promoted model as a folder for people who have nothing of ours: ONNX, labels, card, and a script that uses them."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import models
from orchestrator.errors import UnavailableError, UsageError
from orchestrator.inference import Model
from orchestrator.registry import CARD_FILE, MODEL_FILE, Registry
from recipes.files import sync, write_whole

if TYPE_CHECKING:
    from orchestrator.settings import Settings

SCRIPT = Path(__file__).with_name("standalone.py")
NEEDED = ("numpy", "onnxruntime", "pillow")


def check_folder(folder: Path) -> None:
    """See that a folder can be made there, before the work is done.

    Raises:
        UsageError: something is there already, or the folder that it would be in is not.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} is there already" + (" and not empty" if folder.is_dir() else ""))
    if not folder.parent.is_dir():
        raise UsageError(f"{folder.parent} is no folder")


def export_model(settings: Settings, uri: str, folder: Path) -> dict[str, Any]:
    """Write the version that `uri` stands for into `folder`: all of it or nothing, however this ends.

    Raises:
        UsageError: as of `check_folder` and `models.find`.
        UnavailableError: MLflow cannot be reached, or the disk cannot be written.
    """
    folder = folder.resolve()
    check_folder(folder)
    entry, path = models.find(settings, uri)
    files = _files(path, Registry(settings).card(entry.model, entry.to_version))
    if hashlib.sha256(files[MODEL_FILE]).hexdigest() != entry.sha256:
        raise UsageError(f"{path} was changed just now")
    try:
        _write_all(folder, files)
    except OSError as error:
        raise UnavailableError(f"{folder} cannot be written: {error.strerror or error}") from error
    return {"model": entry.model, "version": entry.to_version, "folder": str(folder), "files": list(files)}


def _files(path: Path, card: str) -> dict[str, bytes]:
    model = Model(path)
    about = {
        "task": model.task,
        "names": model.class_names,
        "channels": model.num_channels,
        "columns": [asdict(column) for column in model.columns],
    }
    versions = "".join(f"{name}=={installed_version(name)}\n" for name in NEEDED)
    return {
        MODEL_FILE: path.read_bytes(),
        "labels.json": json.dumps(about, indent=2, ensure_ascii=False).encode(),
        **({CARD_FILE: card.encode()} if card else {}),
        "predict.py": SCRIPT.read_bytes(),
        "requirements.txt": versions.encode(),
    }


def _write_all(folder: Path, files: dict[str, bytes]) -> None:
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        for name, data in files.items():
            write_whole(temporary / name, data)
        temporary.rename(folder)  # also onto an empty folder; refused if somebody filled it meanwhile
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync(folder.parent)

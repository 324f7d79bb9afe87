"""Checkpoints in an attempt's folder: whole or absent, hashed, written on a thread, read without pickle.

An epoch's generation is three files. Each is written under a temporary name, flushed to the disk and renamed:

``epoch-0007.pt``
    plain Python and tensors: everything that training needs to go on with the same bits.
``best-0005.safetensors``
    the weights of the best epoch so far; shared by the generations that name it.
``epoch-0007.json``
    written last, so a generation exists when it does: the history, and names and SHA-256 of the other two.

The two newest generations stay. `best.safetensors` is put beside them when training ends. Reading the history needs
no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor

log = logging.getLogger(__name__)

GENERATIONS = 2
BEST = "best.safetensors"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A checkpoint's JSON, in a folder where the files that it names are whole."""

    folder: Path
    record: dict[str, Any]

    @property
    def files(self) -> list[str]:
        """Its files in the order in which they may appear: the JSON last."""
        return [self.record["best"]["file"], self.record["file"], _record_name(self.record["epoch"])]

    def state(self) -> dict[str, Any]:
        """The training state, on the CPU."""
        import torch

        data = (self.folder / self.record["file"]).read_bytes()
        return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))


def newest(folder: Path) -> Generation | None:
    """The newest generation whose files' SHA-256 hold; what does not hold is named in a warning."""
    for path in sorted(folder.glob("epoch-*.json"), key=lambda path: (len(path.name), path.name), reverse=True):
        try:
            record = _read_record(path)
            for entry in (record["best"], record):
                _check(folder / entry["file"], entry["sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint %s is not whole, the one before is used: %s", path, error)
        else:
            return Generation(folder=folder, record=record)
    return None


def read_history(folder: Path) -> list[dict[str, Any]]:
    """All epochs that the newest whole checkpoint holds: `number`, `metrics`, `seconds`, `is_best` of each."""
    generation = newest(folder)
    return list(generation.record["history"]) if generation else []


def is_checkpoint(path: Path) -> bool:
    """Whether only going on with a training would need this file."""
    return path.name.startswith(("epoch-", "best-"))


def remove_generations(folder: Path) -> None:
    """Remove what only going on would need; `best.safetensors` stays."""
    for path in filter(is_checkpoint, list(folder.iterdir())):
        path.unlink()


def keep_newest(folder: Path) -> None:
    """Remove all generations but the newest whole one: all that a training needs that stands still."""
    generation = newest(folder)
    if generation is None:
        return
    for path in filter(is_checkpoint, list(folder.iterdir())):
        if path.name not in generation.files:
            path.unlink()


def finish(folder: Path, resume_from: Path | None) -> None:
    """End a training where its last checkpoint stands: `best.safetensors` is in `folder` then."""
    with Writer(folder, take_up(folder, resume_from)):
        pass


def take_up(folder: Path, resume_from: Path | None) -> Generation | None:
    """The newest whole generation of `resume_from`, made `folder`'s own; files are linked where the disk can.

    Raises:
        ValueError: `folder` holds another training.
    """
    if resume_from is not None and resume_from.resolve() == folder.resolve():
        return newest(folder)
    if any(folder.glob("epoch-*.json")):
        raise ValueError(f"{folder} already holds a training; take another folder, or go on with resume_from")
    found = newest(resume_from) if resume_from else None
    if found is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    for name in found.files:
        _link(found.folder / name, folder / name)
    _sync_folder(folder)
    return Generation(folder=folder, record=found.record)


class Writer:
    """Writes generations into a folder on a thread, at most one in flight.

    Leaving its block waits for the thread and puts `best.safetensors` in place.
    """

    def __init__(self, folder: Path, generation: Generation | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._kept = [generation] if generation else []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None

    def save(
        self, state: Mapping[str, Any], history: list[dict[str, Any]], *, best_metadata: Mapping[str, str] | None
    ) -> Future[None]:
        """Begin to write the generation of the last epoch of `history`; the future is done when it is durable.

        `state["average"]`, or else `state["model"]`, is stored as the best weights where `best_metadata` is given.

        Raises:
            OSError: the generation before could not be written.
        """
        if self._in_flight:
            self._in_flight.result()
        # Training goes on while the thread writes, so the thread needs a copy of what training changes in place.
        self._in_flight = self._thread.submit(self._write, _on_cpu(state), list(history), best_metadata)
        return self._in_flight

    def _write(
        self, state: dict[str, Any], history: list[dict[str, Any]], best_metadata: Mapping[str, str] | None
    ) -> None:
        last = history[-1]
        weights = state.get("average", state["model"])
        best = self._write_best(weights, last, best_metadata) if best_metadata else self._kept[-1].record["best"]
        name = f"epoch-{last['number']:04}.pt"
        data = _serialised(state)
        write_file(self._folder / name, data)
        record = {
            "epoch": last["number"],
            "file": name,
            "sha256": _sha256(data),
            "bytes": len(data),
            "history": history,
            "best": best,
        }
        record["record_sha256"] = _sha256(_canonical(record))
        write_file(self._folder / _record_name(last["number"]), _canonical(record))
        # The renames become durable here; only then may older generations go.
        _sync_folder(self._folder)
        self._kept = [*self._kept, Generation(folder=self._folder, record=record)][-GENERATIONS:]
        self._prune()

    def _write_best(
        self, tensors: Mapping[str, Tensor], epoch: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> dict[str, Any]:
        import safetensors.torch

        name = f"best-{epoch['number']:04}.safetensors"
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        data = safetensors.torch.save(contiguous, dict(metadata))
        write_file(self._folder / name, data)
        return {"epoch": epoch["number"], "metrics": epoch["metrics"], "file": name, "sha256": _sha256(data)}

    def _prune(self) -> None:
        kept = {name for generation in self._kept for name in generation.files}
        for pattern in ("epoch-*", "best-*"):
            for path in self._folder.glob(pattern):
                if path.name not in kept:
                    path.unlink()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if self._kept:
            _link(self._folder / self._kept[-1].record["best"]["file"], self._folder / BEST)
            _sync_folder(self._folder)
        if kind is None and self._in_flight:
            self._in_flight.result()


def _record_name(number: int) -> str:
    return f"epoch-{number:04}.json"


def _read_record(path: Path) -> dict[str, Any]:
    record = dict(json.loads(path.read_bytes()))
    expected = record["record_sha256"]
    found = _sha256(_canonical({key: value for key, value in record.items() if key != "record_sha256"}))
    if found != expected:
        raise ValueError(f"{path.name} has SHA-256 {found}, its own line says {expected}")
    return record


def _check(path: Path, expected: str) -> None:
    found = _sha256(path.read_bytes())
    if found != expected:
        raise ValueError(f"{path.name} has SHA-256 {found}, its record says {expected}")


def _on_cpu(value: Any) -> Any:
    """A copy of every tensor in a tree of plain Python, strides kept: the fused optimisers walk the raw memory."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value


def _serialised(state: dict[str, Any]) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, allow_nan=False).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Under a temporary name first: a full disk or a crash leaves nothing half written under the final one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _link(source: Path, target: Path) -> None:
    """`target` becomes another name of `source`, or a copy where the disk knows no links."""
    if target.exists() and target.samefile(source):
        return
    temporary = target.with_name(target.name + ".tmp")
    try:
        temporary.hardlink_to(source)
    except OSError:
        write_file(target, source.read_bytes())
    else:
        temporary.replace(target)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

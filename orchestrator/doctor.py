"""`orch doctor`: what is installed, what can be reached, and what was left behind, with what to do about it.

It only looks: nothing is created or ended, and nothing of the record changed but for an older one that is brought up to
date, as by any command.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import shutil
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from sqlalchemy import make_url, select, text
from sqlalchemy.exc import DBAPIError

from orchestrator import mirror
from orchestrator.engines import cause, make_engine
from orchestrator.errors import NothingRecordedError, OrchError, UnavailableError
from orchestrator.leases import RENEW_SECONDS, holder_of, is_gone, study_lease
from orchestrator.mirrors.mlflow_store import address, is_server
from orchestrator.store import Record
from orchestrator.tables import LeaseRow, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from orchestrator.settings import Settings
    from orchestrator.tables import Study

PACKAGES = ("orch", "torch", "torchvision", "onnxruntime", "mlflow", "optuna", "numpy")
IMPORTED = ("torch", "torchvision", "onnxruntime")  # which may be installed and yet not load
SHARED_MEMORY = Path("/dev/shm")
LEAST_FREE = 2_000_000_000  # bytes in the state folder
LEAST_SHARED = 500_000_000
PARTS = ("orchestrator.worker", "orchestrator.forkserver", "orchestrator.mirror", "orchestrator.probe")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was looked at and found; `advice` is there where something needs to be done."""

    what: str
    found: str
    advice: str = ""

    @property
    def is_well(self) -> bool:
        """Whether nothing needs to be done."""
        return not self.advice

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "is_well": self.is_well}


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything, in the order in which one thing needs another."""
    yield from _versions()
    yield from _devices()
    yield from _space(settings)
    yield from _processes()
    try:
        with closing(Record.open(settings.record_url)) as record:
            yield Finding(what="record", found=f"{_address(settings)}: {_studies(len(record.studies()))}")
            yield from _leases(record)
            yield from _left(record, settings)
            yield from _mlflow(settings, record)
    except NothingRecordedError:
        yield Finding(what="record", found=f"{_address(settings)}: nothing yet")
        yield from _mlflow(settings, None)
    except UnavailableError as error:
        yield Finding(
            what="record", found=str(error), advice="see that ORCH_RECORD_URL or ORCH_HOME names what is meant"
        )
        yield from _mlflow(settings, None)
    yield from _optuna(settings)


# -- this machine


def _versions() -> Iterator[Finding]:
    told = {name: _version(name) for name in PACKAGES}
    lacking = [name for name, found in told.items() if not found]
    shown = ", ".join(f"{name} {found or 'missing'}" for name, found in told.items())
    advice = f"pip install {' '.join(lacking)}" if lacking else ""
    yield Finding(what="versions", found=f"python {platform.python_version()}, {shown}", advice=advice)
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:  # a library that does not fit its torch raises nearly anything
            reason = f"{name} cannot be imported: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            yield Finding(what="versions", found=reason, advice=f"pip install --upgrade --force-reinstall {name}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _devices() -> Iterator[Finding]:
    import torch

    from orchestrator.inference import providers

    memory = psutil.virtual_memory()
    cpu = f"{len(os.sched_getaffinity(0))} cores, {_size(memory.available)} of {_size(memory.total)} free"
    yield Finding(what="cpu", found=cpu)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            told = torch.cuda.get_device_properties(index)
            yield Finding(what=f"cuda:{index}", found=f"{told.name}, {_size(told.total_memory)}")
    elif shutil.which("nvidia-smi"):
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        advice = "install a torch for this driver, see https://pytorch.org/get-started/locally"
        yield Finding(what="cuda", found=f"there is a driver, but torch (built for {built}) sees no GPU", advice=advice)
    else:
        yield Finding(what="cuda", found="no GPU")
    yield Finding(what="onnxruntime", found=", ".join(providers()))


def _space(settings: Settings) -> Iterator[Finding]:
    folder = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    found = f"{settings.home}: {_size(free)} free"
    if not os.access(folder, os.W_OK):
        yield Finding(what="disk", found=f"{folder} cannot be written", advice="chown it, or set ORCH_HOME to another")
    else:
        yield Finding(
            what="disk", found=found, advice="" if free >= LEAST_FREE else "`orch gc` frees what is not needed"
        )
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        advice = "" if free >= LEAST_SHARED else "loading=workers needs it: docker run --shm-size=2g, or loading=memory"
        yield Finding(what="shared memory", found=f"{SHARED_MEMORY}: {_size(free)} free", advice=advice)


def _processes() -> Iterator[Finding]:
    """Processes of ours whose parent is gone; they end by themselves within a lease unless they hang."""
    lost = []
    for process in psutil.process_iter(["pid", "ppid", "cmdline"]):
        part = next((part for part in PARTS if part in (process.info["cmdline"] or ())), None)
        if part and _is_init(process.info["ppid"]):
            lost.append(process.info["pid"])
    if lost:
        pids = " ".join(map(str, lost))
        advice = f"if they are there in 15 s from now: kill -9 {pids}"
        yield Finding(what="processes", found=f"{len(lost)} without a parent: {pids}", advice=advice)
    else:
        yield Finding(what="processes", found="none without a parent")


def _is_init(pid: int) -> bool:
    """Whether a process is what orphans are given to."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return pid == 1 or psutil.Process(pid).name() in {"systemd", "init", "launchd"}
    return True


# -- the record


def _leases(record: Record) -> Iterator[Finding]:
    """Leases whose holder is dead, or does not raise their counter."""
    before = _held(record)
    quiet = {name: row for name, row in before.items() if not is_gone(row.holder)}
    if quiet:
        time.sleep(2 * RENEW_SECONDS)
    after = _held(record)
    for name, row in before.items():
        assert row.holder is not None, "it is held"
        now, who = after.get(name), f"process {row.holder['pid']} on {row.holder['host']}"
        if now is None or now.token != row.token:
            continue  # released or taken over meanwhile
        command = f"orch resume {name.partition(':')[2]}" if name.startswith("study:") else "the next command"
        if is_gone(row.holder):
            yield Finding(what="lease", found=f"{name} was held by {who}, which is gone", advice=f"{command} takes it")
        elif now.counter == row.counter:
            told = f"{name} is held by {who}, which gives no sign of life"
            yield Finding(what="lease", found=told, advice=f"if it does not wake: {command} takes it after 15 s")
        else:
            yield Finding(what="lease", found=f"{name} is held by {who}")


def _held(record: Record) -> dict[str, LeaseRow]:
    with record.read() as session:
        return {row.name: row for row in session.scalars(select(LeaseRow)) if row.holder is not None}


def _left(record: Record, settings: Settings) -> Iterator[Finding]:
    """What a study that nobody runs has left undone, and folders of studies that are gone."""
    studies = record.studies()
    for study in studies:
        if study.is_archived or holder_of(record, study_lease(study.name)) is not None:
            continue
        if running := sum(trial.state is State.RUNNING for trial in record.trials(study.id)):
            told = f"{running} trial(s) of {study.name} were running when its process went"
            yield Finding(what="trials", found=told, advice=f"orch resume {study.name}")
        if behind := sum(mirror.lag(record, study.id).values()):
            told = f"{study.name}: {behind} change(s) behind the record"
            yield Finding(what="mirrors", found=told, advice=f"orch sync {study.name}")
    if orphans := _folders_without(studies, settings):
        advice = "orch gc" if len(orphans) > 1 else f"orch gc, or rm -r {orphans[0]}"
        yield Finding(what="folders", found=f"{len(orphans)} of no study: {orphans[0]}", advice=advice)


def _folders_without(studies: Sequence[Study], settings: Settings) -> list[Path]:
    known = {study.name for study in studies}
    places = (settings.home / "trials", settings.logs, settings.tensorboard)
    found = [folder for place in places if place.is_dir() for folder in sorted(place.iterdir())]
    return [folder for folder in found if folder.is_dir() and folder.name not in known]


# -- the stores


def _mlflow(settings: Settings, record: Record | None) -> Iterator[Finding]:
    uri = settings.tracking_uri
    if not is_server(uri) and _is_missing(uri):
        yield Finding(what="MLflow", found=f"{address(uri)}: nothing yet")
        return
    from orchestrator.registry import Registry

    try:
        registry = Registry(settings)
        running = registry.running_studies()
    except OrchError as error:
        yield Finding(what="MLflow", found=str(error), advice="see that MLFLOW_TRACKING_URI and its server are right")
        return
    yield Finding(what="MLflow", found=f"{address(uri)} answers")
    for name in sorted(running if record else ()):
        assert record is not None
        if record.find_study(name) is not None and holder_of(record, study_lease(name)) is None:
            told = f"{name} has runs that are shown as running, and no process"
            yield Finding(what="MLflow", found=told, advice=f"orch resume {name}, or orch sync {name}")


def _optuna(settings: Settings) -> Iterator[Finding]:
    if _is_missing(settings.optuna_url):
        yield Finding(what="Optuna storage", found=f"{settings.optuna_url}: nothing yet")
        return
    engine = make_engine(make_url(settings.optuna_url))
    try:
        with engine.connect() as connection:
            count = connection.scalar(text("SELECT count(*) FROM studies"))
        yield Finding(what="Optuna storage", found=f"{settings.optuna_url}: {_studies(count)}")
    except DBAPIError as error:
        advice = "move it away and `orch sync`: it is made anew from the record"
        yield Finding(what="Optuna storage", found=f"{settings.optuna_url}: {cause(error)}", advice=advice)
    finally:
        engine.dispose()


def _is_missing(url: str) -> bool:
    parsed = make_url(url)
    return parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists()


def _address(settings: Settings) -> str:
    return address(settings.record_url)


def _studies(count: int) -> str:
    return f"{count} {'study' if count == 1 else 'studies'}"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"

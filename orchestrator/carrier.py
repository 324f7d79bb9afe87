"""A worker's jobs where it shares no folder with the coordinator: their files come from a depot and go there.

A job runs in a folder of this machine that goes when the job ends. What an event stands for is at the depot before the
event is sent: an epoch's checkpoint, the files of a manifest, an export.
"""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import worker
from orchestrator.depot import DepotError
from orchestrator.executors import EpochEnded, Event, Exported, ExportSpec, SystemSampled, TrialFailed
from recipes.checkpoint import newest
from recipes.files import sha256_of

if TYPE_CHECKING:
    from orchestrator.depot import Depot
    from orchestrator.executors import Decision, Job, TrialSpec
    from orchestrator.worker import Port

log = logging.getLogger(__name__)


def run(job: Job, port: Port, depot: Depot) -> None:
    """Do a job and report all that happens, its failure too."""
    with tempfile.TemporaryDirectory(prefix="orch-", ignore_cleanup_errors=True) as scratch:
        # The names of trial and attempt stay what they are.
        folder = Path(scratch, *Path(job.folder).parts[-2:])
        try:
            local = _exportable(job, folder, depot) if isinstance(job, ExportSpec) else _resumable(job, folder, depot)
        except Exception as error:
            log.warning("the files of trial %d did not come", job.trial, exc_info=True)
            port.send(worker.failure(job, error))
            return
        worker.run(local, Carrier(port, depot, job, folder))


def _resumable(job: TrialSpec, folder: Path, depot: Depot) -> TrialSpec:
    """The job with what the newest earlier attempt left whose checkpoint is whole."""
    found: tuple[str, ...] = ()
    for earlier in job.earlier_folders:
        target = folder.parent / Path(earlier).name
        if depot.fetch(earlier, target) and newest(target) is not None:
            found = (str(target),)
            break
    return replace(job, folder=str(folder), earlier_folders=found)


def _exportable(job: ExportSpec, folder: Path, depot: Depot) -> ExportSpec:
    """The job with the files of its attempt, which are what its manifest says."""
    is_there = depot.fetch(job.folder, folder)  # else the export will say what it lacks
    manifest = json.loads((folder / worker.MANIFEST_FILE).read_bytes()) if is_there else {}
    for name, expected in manifest.items():
        if (found := sha256_of(folder / name)) != expected:
            raise DepotError(f"{name} has SHA-256 {found}, its manifest says {expected}")
    return replace(job, folder=str(folder))


class Carrier:
    """A port that brings a job's files to the depot before it sends what happened to them."""

    def __init__(self, port: Port, depot: Depot, job: Job, folder: Path) -> None:
        self._port, self._depot, self._job, self._folder = port, depot, job, folder
        self._sent: dict[str, tuple[int, int]] = {}

    def send(self, event: Event) -> None:
        """Report an event; an end whose files cannot be brought is a failure.

        Raises:
            DepotError, OSError: those of an epoch cannot.
        """
        if isinstance(event, SystemSampled):
            return self._port.send(event)
        try:
            if not isinstance(event, TrialFailed) and not (isinstance(event, Exported) and event.error):
                self._depot.send(self._folder, self._job.folder, sent=self._sent)
        except OSError as error:
            if isinstance(event, EpochEnded):
                raise
            log.warning("the files of trial %d were not brought", event.trial, exc_info=True)
            event = worker.failure(self._job, error)
        return self._port.send(event)

    def decision(self) -> Decision:
        """Wait for the answer at a decision epoch."""
        return self._port.decision()

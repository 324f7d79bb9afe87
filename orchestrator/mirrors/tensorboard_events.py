"""TensorBoard's view of a study: a folder a trial, with its metrics a step and its hyperparameters.

Events go into files of our own making through TensorBoard's record writer: its stock writers need TensorFlow or torch,
or a thread a file. A process starts a new file for each trial and first reads what earlier ones hold, so that a kill
between writing and noting it doubles nothing; a record cut off in the middle counts as not written.

What a trial with `pictures=true` has written itself becomes a run of its own below the trial's, once it has ended.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from orchestrator.errors import UnavailableError
from orchestrator.mirrors import study_key
from orchestrator.tables import State
from recipes import event_files
from recipes.config import objective_of
from recipes.files import link_whole, sha256_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from orchestrator.mirrors import Place, Progress, Snapshot
    from orchestrator.tables import Epoch, Study, Trial

MARK = "orch-study.txt"  # says whose events a folder holds
FILE_VERSION = "brain.Event:2"
PICTURES = "pictures"  # the run below a trial's

logger = logging.getLogger(__name__)


@dataclass
class _File:
    """What is in a trial's folder, and the file that this process adds to, once there is something to add."""

    folder: Path
    epochs: set[int] = field(default_factory=set)
    started: bool = False
    ended: bool = False
    output: BinaryIO | None = None

    @classmethod
    def read(cls, folder: Path) -> _File:
        """Find out what the events in `folder` say already."""
        found = cls(folder)
        for event in event_files.read(folder):
            tags = {value.tag for value in event.summary.value}
            found.started |= metadata.SESSION_START_INFO_TAG in tags
            found.ended |= metadata.SESSION_END_INFO_TAG in tags
            if tags and not tags & {metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG}:
                found.epochs.add(event.step)
        return found

    def write(self, events: Sequence[Any]) -> None:
        """Add events, and hand them to the operating system."""
        if not events:
            return
        if self.output is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads files in the order of their names, and goes on to the next for good.
            name = event_files.PATTERN.removesuffix("*")
            name += f"{time.time_ns() / 1e9:020.9f}.{socket.gethostname()}.{os.getpid()}"
            self.output = (self.folder / name).open("xb")
            events = [Event(wall_time=events[0].wall_time, file_version=FILE_VERSION), *events]
        writer = RecordWriter(self.output)
        for event in events:
            writer.write(event.SerializeToString())
        self.output.flush()

    def close(self) -> None:
        """Make what was written last, and give the file back."""
        if self.output is not None:
            os.fsync(self.output.fileno())
            self.output.close()
            self.output = None


class TensorBoardEvents:
    """The target `tensorboard`."""

    def __init__(self, place: Place) -> None:
        self._settings = place.settings
        self._folder = place.settings.tensorboard / place.study.name
        self._key = study_key(place.study)
        self._files: dict[int, _File] = {}

    def open(self, progress: Mapping[int, Progress]) -> set[int]:
        """Make the study's folder, in place of one of another study of its name; see `Target.open`."""
        self.close()
        self._files.clear()
        mark = self._folder / MARK
        try:
            if not mark.exists() or mark.read_text() != self._key:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir(parents=True)
                mark.write_text(self._key)
        except OSError as error:
            raise UnavailableError(f"{self._folder} is not usable: {error.strerror}") from error
        return {number for number, trial in progress.items() if trial.num_epochs and not self._of(number).exists()}

    def apply(self, study: Study, trials: Sequence[Snapshot]) -> None:
        """Write what is missing; see `Target.apply`."""
        try:
            for snapshot in trials:
                self._apply(study, snapshot)
        except OSError as error:
            raise UnavailableError(f"{self._folder} is not usable: {error.strerror}") from error

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def remove(self) -> None:
        """Remove the study's folder."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _of(self, number: int) -> Path:
        return self._folder / f"{number:04d}"

    def _link_pictures(self, study: Study, snapshot: Snapshot) -> None:
        """Show the events of a trial's own that count, beside those of its record."""
        if not snapshot.attempts:
            return
        attempt, number, own = snapshot.attempts[-1], snapshot.trial.number, f"{event_files.FOLDER}/"
        folder = self._settings.attempt_folder(study.name, number, attempt.number)
        for name, sha256 in (attempt.manifest or {}).items():
            if not name.startswith(own):
                continue
            if (folder / name).is_file() and sha256_of(folder / name) == sha256:
                link_whole(folder / name, self._of(number) / PICTURES / name.removeprefix(own))
            else:
                logger.warning("%s is missing or damaged; TensorBoard does not get it", folder / name)

    def _apply(self, study: Study, snapshot: Snapshot) -> None:
        trial = snapshot.trial
        if trial.started_at is None:
            return
        file = self._files.get(trial.number)
        if file is None:
            file = self._files[trial.number] = _File.read(self._of(trial.number))
        missing = [epoch for epoch in snapshot.epochs if epoch.number not in file.epochs]
        events = [] if file.started else [_start(study, trial)]
        events += [_scalars(epoch) for epoch in missing]
        ends = trial.state.finished and not file.ended
        if ends:
            self._link_pictures(study, snapshot)
        events += [_end(trial)] if ends else []
        file.write(events)
        file.started, file.ended = True, file.ended or ends
        file.epochs.update(epoch.number for epoch in missing)
        if file.ended:
            file.close()


def _scalars(epoch: Epoch) -> Any:
    values = [Summary.Value(tag=name, simple_value=value) for name, value in epoch.metrics.items() if value is not None]
    return Event(wall_time=epoch.recorded_at, step=epoch.number, summary=Summary(value=values))


def _start(study: Study, trial: Trial) -> Any:
    info = plugin_data_pb2.SessionStartInfo(
        group_name=f"{study.name} #{trial.number}", start_time_secs=trial.started_at or trial.created_at
    )
    for name, value in (trial.params or trial.config).items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[name].number_value = value
        else:
            info.hparams[name].string_value = str(value)
    return _session(metadata.SESSION_START_INFO_TAG, info.start_time_secs, session_start_info=info)


def _end(trial: Trial) -> Any:
    """How the trial ended, with its value as a metric of the hyperparameters."""
    status = api_pb2.STATUS_FAILURE if trial.state is State.FAILED else api_pb2.STATUS_SUCCESS
    ended_at = trial.ended_at or trial.created_at
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=ended_at)
    event = _session(metadata.SESSION_END_INFO_TAG, ended_at, session_end_info=info)
    if trial.value is not None:
        event.step = trial.best_epoch or 0
        event.summary.value.append(Summary.Value(tag=f"best_{objective_of(trial.config)}", simple_value=trial.value))
    return event


def _session(tag: str, wall_time: float, **info: Any) -> Any:
    content = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**info))
    value = Summary.Value(tag=tag, metadata=content, tensor=metadata.NULL_TENSOR)
    return Event(wall_time=wall_time, summary=Summary(value=[value]))

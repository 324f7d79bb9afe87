"""What a worker wrote while it trained a trial: the part of its log file that is about one attempt."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from orchestrator import names
from orchestrator.errors import UsageError
from orchestrator.executors import BEGINS, begins
from orchestrator.tables import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator.settings import Settings
    from orchestrator.store import Record
    from orchestrator.tables import Attempt, Study, Trial

LOOK_SECONDS = 0.2


def lines(record: Record, settings: Settings, study: Study, number: int, *, follow: bool = False) -> Iterator[str]:
    """The lines of all attempts at a trial, the first first; with `follow`, as they come, until the trial has ended.

    Raises:
        UsageError: the trial has not begun, or its worker's log is not on this machine.
    """
    trial = _trial(record, study, number)
    if not record.attempts(trial.id) and not follow:
        raise UsageError(f"trial {number} of {study.name} has not begun")
    origin, num_earlier = names.origin(record, study, number), 0
    if origin is not None:  # what workers wrote about it before it was taken over is in the logs of that study
        former, former_number = origin
        num_earlier = len(record.attempts(_trial(record, former, former_number).id))
        yield from lines(record, settings, former, former_number)
    for index in itertools.count(num_earlier):
        while len(record.attempts(trial.id)) <= index:
            if not follow or _trial(record, study, number).state.finished:
                return
            time.sleep(LOOK_SECONDS)
        yield from _of_attempt(record, settings, study, trial, index, follow=follow)


def _trial(record: Record, study: Study, number: int) -> Trial:
    trial = record.trial(study.id, number)
    assert trial is not None, "it was found before"
    return trial


def _of_attempt(
    record: Record, settings: Settings, study: Study, trial: Trial, index: int, *, follow: bool
) -> Iterator[str]:
    attempt = record.attempts(trial.id)[index]
    path = _log_file(settings, study, attempt)
    mark, is_here, position = begins(study.name, trial.number, attempt.number), False, 0
    while True:
        runs = record.attempts(trial.id)[index].state is State.RUNNING
        with path.open(errors="replace") as file:
            file.seek(position)
            while (line := file.readline()).endswith("\n"):
                position = file.tell()
                if BEGINS in line:
                    is_here = line.endswith(f"{mark}\n")
                if is_here:
                    yield line.removesuffix("\n")
        if not (follow and runs):
            return
        time.sleep(LOOK_SECONDS)


def _log_file(settings: Settings, study: Study, attempt: Attempt) -> Path:
    host, _, slot = attempt.worker.rpartition("/")
    path = settings.logs / study.name / f"{slot}.log"
    if not path.exists():
        raise UsageError(f"{path} is not here; attempt {attempt.number} ran as {slot} on {host}")
    return path

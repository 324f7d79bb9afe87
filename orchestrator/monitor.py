"""Who is told how a sweep goes, and how it ended."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator import tables
    from orchestrator.executors import EpochEnded, Slot
    from orchestrator.study import Study


class Monitor(Protocol):
    """Who is told how a sweep goes: a live display, or lines of text."""

    def started(self, study: Study, slots: Sequence[Slot], trials: Sequence[tables.Trial]) -> None:
        """A sweep begins; `trials` are those of earlier runs."""

    def trial_started(self, trial: tables.Trial, slot: Slot, num_epochs_done: int) -> None:
        """A trial begins or goes on."""

    def epoch_ended(self, trial: tables.Trial, event: EpochEnded) -> None:
        """A trial has one more epoch."""

    def trial_ended(self, trial: tables.Trial) -> None:
        """A trial ended, is paused, or waits again after a failure."""

    def note(self, text: str) -> None:
        """Something that a user wants to know."""

    def tick(self) -> None:
        """Time passed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of a sweep ended."""

    study: tables.Study
    was_complete: bool  # nothing was left to do
    used_up: bool = False  # the space has no other configurations
    limit: str = ""  # of the budget, which ended the study before its trials were all done
    timed_out: bool
    mirror_lag: int  # changes that the mirrors still lack

"""The trials of a study by number, and in order of number by state, so that none are looked through to find a few."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import UserDict
from typing import TYPE_CHECKING

from orchestrator.tables import State, Trial

if TYPE_CHECKING:
    from collections.abc import Container


class Roster(UserDict[int, Trial]):
    """Trial number -> the trial as it is now; whenever it changes it is put here anew."""

    def __init__(self) -> None:
        self._numbers: dict[State, list[int]] = {state: [] for state in State}
        super().__init__()

    def __setitem__(self, number: int, trial: Trial) -> None:
        if number in self:
            del self[number]
        insort(self._numbers[trial.state], number)
        super().__setitem__(number, trial)

    def __delitem__(self, number: int) -> None:
        numbers = self._numbers[self[number].state]
        del numbers[bisect_left(numbers, number)]
        super().__delitem__(number)

    def in_state(self, state: State) -> list[Trial]:
        """All in this state, by number."""
        return [self[number] for number in self._numbers[state]]

    def first(self, state: State, *, but: Container[int] = ()) -> Trial | None:
        """The one in this state whose number is lowest, and none of the numbers `but`."""
        return next((self[number] for number in self._numbers[state] if number not in but), None)

    def count(self, state: State) -> int:
        """How many are in this state."""
        return len(self._numbers[state])

    @property
    def num_finished(self) -> int:
        """How many will never run again."""
        return sum(len(numbers) for state, numbers in self._numbers.items() if state.finished)

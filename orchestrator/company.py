"""Which trials train beside others on one device, and which must have theirs to themselves.

A trial that runs out of memory beside others may be their victim. It waits, runs again with nothing else on its device,
and only what it runs out of then is its own.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.executors import Slot


class Company:
    """The trials that run, by the memory they fill (`Slot.memories`).

    `victims` are the numbers of trials that have run out of memory: where they wait, it is for a device of their own.
    """

    def __init__(self, victims: Iterable[int]) -> None:
        self.victims = set(victims)
        self._slots: dict[int, Slot] = {}  # trial -> where it runs
        self._users: defaultdict[tuple[str, str], set[int]] = defaultdict(set)  # memory -> the trials that fill it
        self._beside: set[int] = set()  # trials that were not alone all the time
        self._taken: dict[int, Slot] = {}  # trial -> the slot whose device it has to itself

    def join(self, trial: int, slot: Slot, *, alone: bool = False) -> None:
        """A trial begins on a slot; `alone`, nothing else may begin on its device until it ends."""
        for memory in slot.memories:
            there = self._users[memory]
            if len(there) == 1:  # of more, all know that they are beside others
                self._beside |= there
            if there:
                self._beside.add(trial)
            there.add(trial)
        self._slots[trial] = slot
        if alone:
            assert trial not in self._beside, "others are there"
            self._taken[trial] = slot

    def leave(self, trial: int) -> bool:
        """A trial's attempt has ended; whether another was beside it at any time."""
        slot = self._slots.pop(trial)
        for memory in slot.memories:
            self._users[memory].discard(trial)
        self._taken.pop(trial, None)
        was_beside = trial in self._beside
        self._beside.discard(trial)
        return was_beside

    def open(self, slots: Iterable[Slot], *, but: Slot | None = None) -> list[Slot]:
        """Those of some slots whose device nobody has to itself, nor is to get (`but`)."""
        taken = {memory for slot in [*self._taken.values(), *([but] if but else [])] for memory in slot.memories}
        return [slot for slot in slots if taken.isdisjoint(slot.memories)]

    def emptiest(self, slots: Sequence[Slot]) -> tuple[Slot, bool]:
        """Of some slots the first beside which the fewest run, and whether that is none."""
        slot = min(slots, key=self._num_users)
        return slot, self._num_users(slot) == 0

    def _num_users(self, slot: Slot) -> int:
        return len(set().union(*(self._users[memory] for memory in slot.memories)))

"""Trials by state, kept in order."""

from __future__ import annotations

import random

from orchestrator.roster import Roster
from orchestrator.tables import State, Trial


def test_trials_by_state_are_those_of_a_look_through_all():
    chance, roster = random.Random(0), Roster()
    for step in range(500):
        number = chance.randrange(step // 3 + 1)
        roster[number] = Trial(number=number, state=chance.choice(list(State)))
        if chance.random() < 0.05:
            del roster[number]
        for state in State:
            found = [roster[number] for number in sorted(roster) if roster[number].state is state]
            assert roster.in_state(state) == found
            assert roster.first(state) is (found[0] if found else None)
            assert roster.count(state) == len(found)
        assert roster.num_finished == sum(trial.state.finished for trial in roster.values())

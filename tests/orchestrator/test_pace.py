from __future__ import annotations

from collections import Counter

import pytest

from orchestrator import pruning
from orchestrator.pace import clock, epochs_ahead, expected_share


def test_trial_has_all_epochs_ahead_where_none_was_stopped():
    assert epochs_ahead({}, [], 4) == [4, 3, 2, 1, 0]
    assert epochs_ahead(Counter([4, 4, 4]), [1, 2], 4) == [4, 3, 2, 1, 0]


def test_epochs_ahead_of_those_that_ended_are_their_mean():
    ended = Counter([1, 1, 1, 4])
    assert epochs_ahead(ended, [], 4)[0] == pytest.approx(7 / 4)
    assert epochs_ahead(ended, [], 4)[1:] == [3, 2, 1, 0], "who got past the first epoch went on to the end"


def test_trials_that_run_on_count_as_far_as_they_came():
    # One of four ended after the first epoch, the mean of what has ended would be 1.
    assert epochs_ahead(Counter([1]), [2, 2, 3], 5)[0] == pytest.approx(1 + 3 / 4 * 4)
    # Who has not reached an epoch says nothing of how many end there.
    assert epochs_ahead(Counter([2]), [0, 0, 0], 4)[:2] == [2, 1]


def test_share_of_a_pruner_is_what_its_decisions_leave():
    assert expected_share(pruning.make("none"), 50, 15) == 1
    assert expected_share(pruning.make("asha-pause"), 81, 27) == pytest.approx((81 + 27 * 2 + 9 * 6 + 3 * 18) / 81 / 27)
    asha = expected_share(pruning.make("asha"), 300, 27)
    assert 1 / 9 + 2 / 9 / 3 + 2 / 3 / 9 < asha < 0.4, "of the first trials more go on than a third"
    assert expected_share(pruning.make("percentile:90"), 100, 20) > expected_share(pruning.make("median"), 100, 20)
    assert asha < expected_share(pruning.make("patient:20:asha"), 300, 27) <= 1


@pytest.mark.parametrize("pruner", ["threshold:0.5", "patient:3:threshold:0.5"])
def test_share_of_a_pruner_that_looks_at_the_values_is_unknown(pruner):
    assert expected_share(pruning.make(pruner), 50, 15) is None


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (65.9, "1:05"), (3599, "59:59"), (7265, "2:01:05")])
def test_durations_are_shown_as_clocks(seconds, shown):
    assert clock(seconds) == shown

"""When a study has had enough: by its result, by its epochs, by its failures, by time without progress."""

from __future__ import annotations

import pytest

from orchestrator.budget import Budget
from orchestrator.limits import reached
from orchestrator.tables import Reason, State, Trial
from tests.support.orch import Orch


def trial(number, state=State.COMPLETE, value=0.5, reason=None):
    value = value if state in {State.COMPLETE, State.PRUNED} else None
    return Trial(number=number, state=state, value=value, reason=reason, ended_at=float(number))


ONE_OF_EACH = [
    trial(0, value=0.7),
    trial(1, State.PRUNED, 0.9),
    trial(2, State.FAILED, reason=Reason.ERROR),
    trial(3, value=0.6),
    trial(4, State.FAILED, reason=Reason.OOM),
    trial(5, State.RUNNING),
]


@pytest.mark.parametrize(
    ("limits", "reason", "ends_well"),
    [
        ({"target_value": 0.7}, "trial 0 has val_accuracy 0.7000, and target_value=0.7 is reached", True),
        ({"target_value": 0.71}, None, None),  # the better one was pruned, and has no weights to promote
        ({"max_epochs_total": 20}, "20 epochs are trained, all that max_epochs_total=20 allows", True),
        ({"max_epochs_total": 21}, None, None),
        ({"patience": 2}, "2 trials in a row were no better than trial 0, as patience= says", True),
        ({"patience": 3}, None, None),
        ({"max_failures": 1}, "1 trial(s) failed, all that max_failures= allows", False),
        ({"max_failures": 2}, None, None),  # memory teaches the sampler, and says nothing of the code
        ({}, None, None),
    ],
)
def test_limit_is_reached_exactly_there(limits, reason, ends_well):
    limit = reached(Budget(**limits), ONE_OF_EACH, 20, "val_accuracy")
    assert (limit and limit.reason, limit and limit.ends_well) == (reason, ends_well)
    assert Budget(**limits).has_limits == bool(limits)


@pytest.fixture
def orch(tmp_path):
    return Orch(tmp_path)


@pytest.mark.slow
def test_nothing_is_trained_beyond_the_most_epochs_and_a_larger_number_goes_on(orch):
    arguments = orch.counting(trials=4, epochs=3, workers=2, sampler="random", pause_seconds=0.1)
    done = orch.here(*arguments, "max_epochs_total=7")
    assert "7 epochs are trained, all that max_epochs_total=7 allows; what is not finished waits" in done.stdout
    recorded = orch.recorded()
    assert sum(map(len, recorded.values())) == 7
    again = orch.here(*arguments, "max_epochs_total=7")
    assert "study s has ended: 7 epochs are trained" in again.stdout
    assert orch.recorded() == recorded
    orch.here("resume", "s", "max_epochs_total=0")
    assert orch.recorded() == {number: [1, 2, 3] for number in range(4)}


@pytest.mark.slow
def test_target_ends_the_study_with_its_leader_exported(orch):
    done = orch.here(*orch.counting(trials=6, epochs=2, workers=1, sampler="random", target_value="0.1", export="best"))
    assert "and target_value=0.1 is reached" in done.stdout
    assert "ONNX      differs from PyTorch" in done.stdout
    assert "next      orch ui  ·  orch promote s" in done.stdout
    assert orch.recorded() == {0: [1, 2]}


@pytest.mark.slow
def test_failing_study_stops_after_so_many_and_says_so_in_its_exit_code(orch):
    arguments = orch.counting(trials=9, epochs=2, workers=1, sampler="random", fault="raise", fault_epoch=1, retries=0)
    for _ in range(2):  # the second finds that nothing has changed
        done = orch.here(*arguments, "max_failures=2", code=4)
        assert "2 trial(s) failed, all that max_failures= allows" in done.stdout
        assert orch.json("status", "s")["states"]["failed"] == 2
        assert orch.begun().total() == 2

"""A study whose record is in PostgreSQL, while the server crashes and comes back."""

from __future__ import annotations

import time

import pytest

from orchestrator.store import Record
from tests.support import postgres
from tests.support.orch import Orch, wait_until

NUM_TRIALS, NUM_EPOCHS = 8, 3


@pytest.fixture(scope="module")
def server():
    with postgres.running() as found:
        yield found


@pytest.fixture
def orch(server, tmp_path):
    with server.database() as url:
        found = Orch(tmp_path)
        found.environment["ORCH_RECORD_URL"] = url
        yield found


def recorded(orch: Orch) -> dict[int, list[int]]:
    record = Record.open(orch.environment["ORCH_RECORD_URL"])
    try:
        study = record.study("s")
        epochs = record.epochs(study.id)
        return {trial.number: [e.number for e in epochs.get(trial.number, [])] for trial in record.trials(study.id)}
    finally:
        record.close()


@pytest.mark.slow
def test_crashed_server_that_comes_back_loses_no_result(server, orch):
    arguments = orch.counting(trials=NUM_TRIALS, epochs=NUM_EPOCHS, pause_seconds=0.5)
    with orch.running(*arguments) as sweep:
        for number in (3, 9):
            wait_until(lambda number=number: sum(orch.begun().values()) >= number, what="epochs")
            server.stop("immediate")
            time.sleep(2.0)
            server.start()
        out, err = sweep.communicate(timeout=120)
        assert sweep.returncode == 0, f"{out}\n{err}"
    assert recorded(orch) == {trial: list(range(1, NUM_EPOCHS + 1)) for trial in range(NUM_TRIALS)}
    assert set(orch.begun().values()) == {1}, "no epoch is trained twice"
    assert "is complete" in orch(*arguments).stdout

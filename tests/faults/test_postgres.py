"""A study whose record, or whose MLflow, is in PostgreSQL, while the server crashes and comes back."""

from __future__ import annotations

import contextlib
import time

import pytest
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
from sqlalchemy import create_engine

from orchestrator.errors import UnavailableError
from orchestrator.mirror import sync
from orchestrator.store import Record
from tests.support import postgres
from tests.support.mlflow_server import tracking_server
from tests.support.orch import Orch, wait_until
from tests.support.sweeps import Sweep, expected, in_mlflow, runs_of, settings_of

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
    assert "is complete" in orch.here(*arguments).stdout


# -- MLflow


@contextlib.contextmanager
def mlflow_in(server, folder, *, behind_server):
    """The tracking URI of an empty store in PostgreSQL: the database's own, or that of an `mlflow server` over it."""
    url = server.create(f"mlflow_{'server' if behind_server else 'direct'}")
    if not behind_server:
        yield url
        return
    with tracking_server(folder, url) as address:
        yield address


@pytest.mark.slow
@pytest.mark.parametrize("behind_server", [False, True])
def test_mlflow_whose_database_crashes_in_mid_sweep_has_every_run_and_step_once(
    server, tmp_path, behind_server, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # of the test's own looks at it
    with mlflow_in(server, tmp_path, behind_server=behind_server) as uri:
        orch, settings = Orch(tmp_path), settings_of(tmp_path / "mlruns", uri)
        orch.environment["MLFLOW_TRACKING_URI"] = uri
        arguments = orch.counting(trials=NUM_TRIALS, epochs=NUM_EPOCHS, pause_seconds=1.0, export="best")
        with orch.running(*arguments, "hold_trial=6", "hold_epoch=2") as sweep:
            for count in (2, 12):
                wait_until(lambda count=count: num_steps(orch, settings) >= count, what="steps in MLflow")
                server.stop("immediate")
                time.sleep(2.0)
                server.start()
            orch.let_go()
            out, err = sweep.communicate(timeout=200)
            assert sweep.returncode == 0, f"{out}\n{err}"
        assert set(orch.begun().values()) == {1}
        orch("sync", "s")
        with orch.record() as record:
            study = record.study("s")
            epochs, run_ids = record.epochs(study.id), record.run_ids(study.id)
        _, runs = runs_of(settings)
        assert {number: run.info.run_id for number, run in runs.items()} == run_ids
        assert {number: run.info.status for number, run in runs.items()} == dict.fromkeys(
            range(-1, NUM_TRIALS), "FINISHED"
        )
        assert in_mlflow(settings) == {
            number: [(epoch.number, epoch.metrics["val_loss"]) for epoch in found] for number, found in epochs.items()
        }
        assert orch.json("promote", "s")["version"] == "1"
        assert "s3cret" not in (orch.home / "logs" / "s" / "mirror.log").read_text()


def num_steps(orch, settings):
    """How many steps MLflow holds; none while it is away, or before the mirror has made its tables."""
    with contextlib.suppress(Exception), orch.record() as record:
        if record.run_ids(record.study("s").id):
            return sum(map(len, in_mlflow(settings).values()))
    return 0


@pytest.mark.slow
def test_mlflow_store_that_was_half_made_is_finished_and_one_that_is_away_is_told_at_once(server, tmp_path):
    """MLflow makes its first tables in one transaction and the rest in another; a kill in between leaves the first."""
    url = server.create("mlflow_half")
    settings = settings_of(tmp_path, url)
    sweep = Sweep(settings)
    try:
        sweep.run()
        engine = create_engine(url)
        InitialBase.metadata.create_all(engine)
        engine.dispose()
        sync(settings)
        assert in_mlflow(settings) == expected({0: 3})
        server.stop("immediate")
        try:
            away = settings_of(tmp_path, server.url("other"))
            began = time.monotonic()
            with pytest.raises(UnavailableError, match=r"MLflow at postgresql://orch:\*\*\*@127.0.0.1") as caught:
                sync(away)
            assert time.monotonic() - began < 10
            assert "\n" not in str(caught.value)
        finally:
            server.start()
    finally:
        sweep.close()

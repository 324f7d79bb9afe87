"""Studies that are put away: where they no longer show, and that they come back whole."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from mlflow import MlflowClient

from orchestrator import control, names
from orchestrator.errors import HeldError, UnavailableError, UsageError
from orchestrator.leases import Holding, study_lease
from orchestrator.mirror import sync
from orchestrator.models import resolve_model
from orchestrator.promote import promote
from orchestrator.recorded import archive
from orchestrator.settings import HOME_VARIABLE
from orchestrator.store import Record
from tests.support.orch import Orch
from tests.support.ports import free_ports
from tests.support.sweeps import Sweep, expected, in_mlflow
from tests.support.trained import STRONG, add_study


@pytest.fixture
def two(prepared):
    """Studies `s` and `newer`, both mirrored and neither running."""
    for name in ("s", "newer"):
        with contextlib.closing(Sweep(prepared, name)) as sweep:
            sweep.run()
    sync(prepared)
    return prepared


def experiments(settings):
    return {found.name for found in MlflowClient(settings.tracking_uri).search_experiments()} - {"Default"}


@pytest.mark.slow
def test_archived_study_is_in_no_list_and_comes_back_whole(two, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(two.home))
    orch = Orch(two.home.parent)
    before, values = orch.json("compare", "newer"), in_mlflow(two, name="newer")
    assert orch("archive", "newer").stdout == "newer is archived; `orch archive newer --restore` undoes it\n"
    assert [row["study"] for row in orch.json("ls")] == ["s"]
    assert [row["study"] for row in orch.json("ls", "--archived")] == ["newer"]
    assert orch.json("status")["study"] == "s", "the newest that is listed"
    assert experiments(two) == {"s"}
    assert orch.json("compare", "newer") == before
    assert set(sync(two).values()) == {0}, "it is in nobody's way"
    with pytest.raises(UsageError, match="study 'newer' is archived; `orch archive newer --restore` brings it back"):
        sync(two, "newer")
    archive(two, "newer")

    assert orch("archive", "newer", "--restore").stdout == "newer is back\n"
    assert [row["study"] for row in orch.json("ls")] == ["s", "newer"]
    assert experiments(two) == {"s", "newer"}
    assert in_mlflow(two, name="newer") == values == expected({0: 3})
    sync(two)
    assert in_mlflow(two, name="newer") == values


def test_archived_study_changes_by_nothing_but_being_restored(two):
    archive(two, "s")
    with contextlib.closing(Record.open(two.record_url)) as record:
        row = record.study("s")
        for change in (
            lambda: names.check_open(record, row),
            lambda: control.extend(record, "s", ["trials=+1"]),
            lambda: control.retry(record, "s"),
        ):
            with pytest.raises(UsageError, match="study 's' is archived"):
                change()


def test_study_that_runs_or_whose_mlflow_is_away_is_not_archived(two, monkeypatch):
    away = replace(two, tracking_uri=f"http://127.0.0.1:{free_ports()}")
    with pytest.raises(UnavailableError, match="MLflow at"):
        archive(away, "s")
    monkeypatch.setattr("orchestrator.leases.is_gone", lambda holder: holder is None)
    with contextlib.closing(Record.open(two.record_url)) as record:
        with Holding(record, study_lease("s")), pytest.raises(HeldError):
            archive(two, "s")
        assert not record.study("s").is_archived
    assert experiments(two) == {"s", "newer"}


@pytest.mark.slow
def test_promoted_model_of_an_archived_study_is_there_all_the_same(prepared, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(prepared.home))
    add_study(prepared, [STRONG], name="digits")
    promote(prepared, "digits")
    found = resolve_model(prepared, "models:/digits@champion")
    archive(prepared, "digits")
    assert experiments(prepared) == {"digits"}, "what MLflow does not list, `mlflow gc` removes"
    assert resolve_model(prepared, "models:/digits@champion") == found
    assert promote(prepared, "digits").already

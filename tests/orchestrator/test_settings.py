"""Where state lives."""

from __future__ import annotations

import pytest
from sqlalchemy import make_url

from orchestrator.settings import Settings
from orchestrator.store import Record


def test_state_lives_in_mlruns_here_and_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ORCH_HOME", raising=False)
    settings = Settings.from_environment()
    assert settings.home == tmp_path / "mlruns"
    assert settings.attempt_folder("s", 7, 2) == tmp_path / "mlruns" / "trials" / "s" / "0007" / "2"
    assert list(tmp_path.iterdir()) == []


def test_environment_wins_and_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCH_HOME", "elsewhere")
    monkeypatch.setenv("ORCH_RECORD_URL", "postgresql://host/name")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    settings = Settings.from_environment()
    assert settings.home == tmp_path / "elsewhere"
    assert (settings.record_url, settings.tracking_uri) == ("postgresql://host/name", "http://host:5000")


@pytest.mark.parametrize("name", ["with space", "50%25", "what?", "a#b", "é", "user:x@y"])
def test_folder_may_have_any_name(name, tmp_path, monkeypatch):
    home = tmp_path / name
    monkeypatch.setenv("ORCH_HOME", str(home))
    settings = Settings.from_environment()
    Record.open(settings.record_url, create=True).close()
    assert [path.name for path in home.iterdir()] == ["orch.db"]
    for url in (settings.tracking_uri, settings.optuna_url):
        assert make_url(url).database.startswith(f"{home}/")


def test_folder_with_usual_letters_stands_in_addresses_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "my état"))
    assert Settings.from_environment().tracking_uri == f"sqlite:///{tmp_path}/my état/mlflow.db"

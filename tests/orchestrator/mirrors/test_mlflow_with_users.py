"""A tracking server that wants a password and keeps its artifacts in an object store, all by MLflow's own settings."""

from __future__ import annotations

import shutil
from contextlib import closing

import boto3
import pytest

from orchestrator.errors import UnavailableError
from orchestrator.mirror import sync
from orchestrator.models import resolve_model
from orchestrator.promote import promote
from orchestrator.settings import HOME_VARIABLE
from orchestrator.store import Record
from recipes.files import sha256_of
from tests.support import object_store
from tests.support.mlflow_server import tracking_server
from tests.support.sweeps import runs_of, settings_of
from tests.support.trained import STRONG, add_study

pytestmark = pytest.mark.slow
PASSWORD = "s3cret-of-the-admin"  # which MLflow wants to be long


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A study, and a server of which this process has the user's name but not yet the password."""
    monkeypatch.chdir(tmp_path)  # MLflow keeps its users where it is started
    with object_store.running(tmp_path) as (address, _):
        for name, value in {**object_store.CREDENTIALS, "MLFLOW_S3_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="bucket")
        secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": "any"}
        options = ["--app-name", "basic-auth", "--no-serve-artifacts", "--default-artifact-root", "s3://bucket/runs"]
        with tracking_server(tmp_path, options=options, environment=secrets) as uri:
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # nothing here tries again what took too long
            monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "mlruns"))
            found = settings_of(tmp_path / "mlruns", uri)
            add_study(found, [STRONG])
            yield found


def test_runs_files_and_versions_go_to_a_server_with_users_and_an_object_store(settings, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-but-long-enough")
    with pytest.raises(UnavailableError) as refused:
        promote(settings)
    assert settings.tracking_uri in str(refused.value)
    assert "wrong" not in str(refused.value)

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert sync(settings) is not None
    _, runs = runs_of(settings, "cnn-digits")
    assert runs[0].info.artifact_uri.startswith("s3://bucket/runs/")
    assert runs[0].data.tags["orch.checkpoint_sha256"]

    promoted = promote(settings)
    assert promoted.version == "1"
    with closing(Record.open(settings.record_url)) as record:
        expected = record.exports(record.study("cnn-digits").id)[0].sha256
    shutil.rmtree(settings.home / "trials")  # what is used comes from the store
    assert sha256_of(resolve_model(settings, "models:/cnn-digits@champion")) == expected

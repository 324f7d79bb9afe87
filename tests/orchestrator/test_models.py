from __future__ import annotations

import contextlib
import re
import shutil
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from orchestrator.errors import UnavailableError, UnknownNameError, UsageError
from orchestrator.models import resolve_model, resolve_weights
from orchestrator.predictions import predict
from orchestrator.promote import promote
from orchestrator.registry import Registry
from orchestrator.store import Record
from recipes.config import DatasetConfig
from recipes.data import load
from tests.support.mlflow_server import tracking_server
from tests.support.ports import free_ports
from tests.support.trained import STRONG, add_study, copy_home, delete_study

if TYPE_CHECKING:
    from pathlib import Path

NAME = "cnn-digits"
CHAMPION = f"models:/{NAME}@champion"


@contextlib.contextmanager
def flipped_byte(path: Path):
    data = path.read_bytes()
    path.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    yield
    path.write_bytes(data)


def write_digits(folder: Path, count: int) -> tuple[list[Path], list[str]]:
    """PNG files of the first test images, and their classes."""
    test = load(DatasetConfig()).test
    paths = [folder / f"{number}.png" for number in range(count)]
    for path, image in zip(paths, test.images, strict=False):
        Image.fromarray(image[0].numpy()).save(path)
    return paths, [str(int(label)) for label in test.labels[:count]]


def test_predict_names_class_and_probability_of_each_file(promoted, tmp_path):
    paths, classes = write_digits(tmp_path, 100)
    rows = predict(promoted, CHAMPION, paths).rows
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert sum(row["class"] == label for row, label in zip(rows, classes, strict=True)) >= 95
    assert all(0.1 < row["probability"] <= 1 for row in rows)
    assert rows[0].keys() == {"path", "class", "probability"}


def test_predict_takes_the_images_of_folders_and_leaves_out_what_is_told(promoted, tmp_path):
    (tmp_path / "folder" / "deeper").mkdir(parents=True)
    paths, _ = write_digits(tmp_path / "folder" / "deeper", 3)
    bad, told, counted = tmp_path / "folder" / "b.png", [], []
    bad.write_text("no image")
    (tmp_path / "folder" / "notes.txt").write_text("not called like one")

    def follow(found, total):
        counted.append(total)
        return found

    with pytest.raises(UsageError, match=r"b\.png is not a whole"):
        predict(promoted, CHAMPION, [tmp_path / "folder"])
    rows = predict(promoted, CHAMPION, [tmp_path / "folder"], on_bad=told.append, follow=follow).rows
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert len(told) == 1
    assert str(bad) in str(told[0])
    assert counted == [4]


def test_alias_and_version_are_the_same_file(promoted):
    assert resolve_model(promoted, CHAMPION) == resolve_model(promoted, f"models:/{NAME}/1")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "cnn-digits",
        "models:/",
        f"models:/{NAME}",
        f"models:/{NAME}/",
        f"models:/{NAME}/x",
        "models:/a/b@c",
        "/etc/passwd",
    ],
)
def test_what_is_no_model_uri_is_told_what_one_is(promoted, uri):
    with pytest.raises(UsageError, match=re.escape("expected models:/NAME@ALIAS or models:/NAME/VERSION")):
        resolve_model(promoted, uri)


def test_unknown_names_are_told_the_nearest(promoted):
    with pytest.raises(UnknownNameError, match="unknown model 'cnn-digit'; did you mean 'cnn-digits'"):
        resolve_model(promoted, "models:/cnn-digit@champion")
    with pytest.raises(UnknownNameError, match="unknown alias of cnn-digits 'champ'; did you mean 'champion'"):
        resolve_model(promoted, f"models:/{NAME}@champ")
    with pytest.raises(UsageError, match=r"version 7 .* those are: 1"):
        resolve_model(promoted, f"models:/{NAME}/7")


def test_a_registry_entry_that_points_at_a_local_path_is_not_followed(promoted_home, tmp_path, monkeypatch):
    settings = copy_home(promoted_home, tmp_path, monkeypatch)
    shutil.copy(resolve_model(settings, CHAMPION), tmp_path / "model.onnx")
    client = MlflowClient(settings.tracking_uri)
    version = client.create_model_version(NAME, str(tmp_path)).version
    client.set_registered_model_alias(NAME, "tempting", version)
    with pytest.raises(UsageError, match="is none that `orch promote` made"):
        resolve_model(settings, f"models:/{NAME}@tempting")


def test_a_version_made_anew_under_a_number_of_the_ledger_is_not_followed(promoted_home, tmp_path, monkeypatch):
    """Whoever deletes a model in MLflow starts its versions at 1 again."""
    settings = copy_home(promoted_home, tmp_path, monkeypatch)
    client = MlflowClient(settings.tracking_uri)
    client.delete_registered_model(NAME)
    client.create_registered_model(NAME)
    client.create_model_version(NAME, str(tmp_path))
    with pytest.raises(UsageError, match="has a source that is not ours"):
        resolve_model(settings, f"models:/{NAME}/1")


def test_a_flipped_byte_of_a_promoted_model_is_named(promoted):
    path = resolve_model(promoted, CHAMPION)
    with flipped_byte(path), pytest.raises(UsageError, match=rf"{path} has SHA-256 \w{{64}}, the record says \w{{64}}"):
        resolve_model(promoted, CHAMPION)
    assert resolve_model(promoted, CHAMPION) == path


def test_the_registry_keeps_the_very_bytes_of_a_file(promoted, tmp_path):
    """A field that is there twice is valid, but nobody would write it again so."""
    file = tmp_path / "x.onnx"
    original = resolve_model(promoted, CHAMPION).read_bytes()
    assert original[0] == 0x08, "the field ir_version"
    file.write_bytes(original[:2] + original)
    registry = Registry(promoted)
    with closing(Record.open(promoted.record_url)) as record:
        run_id = record.run_ids(record.study(NAME).id)[0]
    example = np.zeros((1, 8, 8, 1), np.uint8)
    version = registry.register("twice", run_id, file, {}, card="# twice", example=example)
    assert registry.local_file("twice", version).read_bytes() == file.read_bytes()


def test_weights_are_those_of_the_promoted_trial(promoted):
    path = resolve_weights(promoted, CHAMPION)
    assert path == promoted.attempt_folder(NAME, 0, 1) / "best.safetensors"
    with flipped_byte(path), pytest.raises(UsageError, match="has SHA-256"):
        resolve_weights(promoted, CHAMPION)


def test_weights_of_a_trial_that_was_deleted_are_not_those_of_its_successor(promoted_home, tmp_path, monkeypatch):
    settings = copy_home(promoted_home, tmp_path, monkeypatch)
    delete_study(settings)
    with pytest.raises(UsageError, match="trained as trial 0 of 'cnn-digits', which is no longer there"):
        resolve_weights(settings, CHAMPION)
    add_study(settings, [{**STRONG, "seed": 1}])
    with pytest.raises(UsageError, match="no longer there"):
        resolve_weights(settings, CHAMPION)
    assert resolve_model(settings, CHAMPION).is_file()


@pytest.mark.slow
def test_with_a_server_models_are_fetched_once_and_checked(promoted_home, tmp_path, monkeypatch):
    copied = copy_home(promoted_home, tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # a machine that is busy with other tests is slow
    add_study(copied, [STRONG], name="remote")
    with tracking_server(tmp_path) as address:
        settings = replace(copied, tracking_uri=address)
        assert promote(settings, "remote").version == "1"
        path = resolve_model(settings, "models:/remote@champion")
        assert path.parent == copied.home / "cache" / "models"
        assert path.read_bytes() == (settings.attempt_folder("remote", 0, 1) / "model.onnx").read_bytes()
        # Beside it lies the model of the trial's run, which has no card.
        (card,) = (tmp_path / "server-artifacts").rglob("models/**/MODEL_CARD.md")
        stored = card.with_name("model.onnx")
        with flipped_byte(stored):
            assert resolve_model(settings, "models:/remote@champion") == path, "from the cache"
            path.unlink()
            with pytest.raises(UsageError, match="has SHA-256"):
                resolve_model(settings, "models:/remote@champion")
        assert resolve_model(settings, "models:/remote@champion") == path


@pytest.mark.slow
def test_a_dead_server_is_told_within_seconds_and_without_its_password(promoted):
    gone = replace(promoted, tracking_uri=f"http://me:secret@127.0.0.1:{free_ports()}")
    started = time.monotonic()
    with pytest.raises(UnavailableError, match=r"MLflow at http://127\.0\.0\.1") as error:
        resolve_model(gone, CHAMPION)
    assert "secret" not in str(error.value)
    assert time.monotonic() - started < 10

"""Trials with `pictures=true`: where their files are to be seen, and the same for any trial afterwards."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, EventAccumulator

from orchestrator.errors import UnavailableError, UsageError
from orchestrator.evaluate import evaluate
from orchestrator.mirror import sync
from orchestrator.settings import HOME_VARIABLE
from recipes.pictures import ANSWER_FILES
from recipes.speed import SPEED_METRICS
from tests.support.orch import Orch
from tests.support.sweeps import settings_of
from tests.support.trained import STRONG, make_home

STUDY = "cnn-digits"
FILES = {"curves.png", "batch.png", *ANSWER_FILES}


@pytest.fixture(scope="module")
def drawn_home(empty_home, tmp_path_factory):
    """A state folder with a study of one trial with pictures and one without."""
    trials = [{**STRONG, "pictures": True, "profile": True}, STRONG]
    return make_home(tmp_path_factory.mktemp("drawn") / "mlruns", empty_home, trials, export=False)


@pytest.fixture
def drawn(drawn_home, tmp_path):
    shutil.copytree(drawn_home, tmp_path / "mlruns")
    return settings_of(tmp_path / "mlruns")


def run_of(settings, trial):
    client = MlflowClient(settings.tracking_uri)
    experiment = client.get_experiment_by_name(STUDY)
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`orch.trial` = '{trial}'")
    return run


def artifacts_of(settings, trial):
    """Name -> file, of all artifacts of a trial's run."""
    folder = Path(run_of(settings, trial).info.artifact_uri.removeprefix("file://"))
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def tensorboard_of(settings, *below):
    folder = settings.tensorboard.joinpath(STUDY, *below)
    return EventAccumulator(str(folder), {HISTOGRAMS: 0}).Reload()


def test_tensorboard_gets_the_trial_s_own_events_once_and_counts_epochs_as_before(drawn):
    sync(drawn)
    (linked,) = (drawn.tensorboard / STUDY / "0000" / "pictures").iterdir()
    inode = linked.stat().st_ino
    (mirrored,) = (drawn.tensorboard / STUDY / "0000").glob("events*")
    os.truncate(mirrored, mirrored.stat().st_size - 1)  # killed as it wrote that the trial had ended
    for _ in range(2):
        with closing(sqlite3.connect(drawn.home / "orch.db")) as connection, connection:
            connection.execute("UPDATE cursors SET seq = 0")  # all is applied anew
        sync(drawn)
    (again,) = (drawn.tensorboard / STUDY / "0000" / "pictures").iterdir()
    assert again.stat().st_ino == inode
    own = tensorboard_of(drawn, "0000", "pictures")
    histograms = own.Tags()["histograms"]
    assert histograms
    assert all([event.step for event in own.Histograms(tag)] == [1, 2] for tag in histograms)
    assert set(own.Tags()["images"]) == {"pictures/batch", "pictures/confusion", "pictures/mistakes"}
    for trial in ("0000", "0001"):
        mirrored = tensorboard_of(drawn, trial)
        assert [scalar.step for scalar in mirrored.Scalars("val_loss")] == [1, 2]
        assert mirrored.Tags()["histograms"] == []
    assert not (drawn.tensorboard / STUDY / "0001" / "pictures").exists()


def test_mlflow_gets_all_files_of_the_manifest_and_the_speed(drawn):
    sync(drawn)
    found = artifacts_of(drawn, 0)
    folder = drawn.attempt_folder(STUDY, 0, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert FILES | {"trace.json", "operators.txt", "best.safetensors"} <= manifest.keys()
    assert found.keys() == {"checkpoint/best.safetensors"} | {
        f"files/{name}" for name in manifest if name != "best.safetensors"
    }
    assert all(file.read_bytes() == (folder / name.partition("/")[2]).read_bytes() for name, file in found.items())
    assert artifacts_of(drawn, 1).keys() == {"checkpoint/best.safetensors"}
    metrics = run_of(drawn, 1).data.metrics
    assert metrics["images_per_second"] > 0
    assert metrics["step_seconds"] > 0
    assert set(SPEED_METRICS) - {"peak_memory_bytes"} <= set(tensorboard_of(drawn, "0001").Tags()["scalars"])


def test_file_that_is_damaged_is_not_shown_and_holds_nothing_up(drawn, caplog):
    folder = drawn.attempt_folder(STUDY, 0, 1)
    (events,) = (folder / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:-1])
    (folder / "mistakes.csv").unlink()
    sync(drawn)
    assert not (drawn.tensorboard / STUDY / "0000" / "pictures").exists()
    found = artifacts_of(drawn, 0)
    assert "files/mistakes.png" in found
    assert "files/mistakes.csv" not in found
    run = run_of(drawn, 0)
    assert (run.info.status, run.data.tags["orch.files_sha256"]) == ("FINISHED", "missing or damaged")
    assert "TensorBoard does not get it" in caplog.text


def test_any_trial_and_split_can_be_drawn_afterwards(drawn, monkeypatch, tmp_path):
    monkeypatch.setenv(HOME_VARIABLE, str(drawn.home))
    found = evaluate(drawn, STUDY, 1, split="test", pictures=tmp_path / "new" / "folder")
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == set(ANSWER_FILES)
    rows = list(csv.DictReader((tmp_path / "new" / "folder" / "mistakes.csv").open(newline="")))
    assert len(rows) == round(359 * (1 - found["metrics"]["accuracy"]))
    assert all(row["file"].startswith("digits #") for row in rows)
    evaluate(drawn, STUDY, 0, pictures=tmp_path / "val")
    attempt = drawn.attempt_folder(STUDY, 0, 1)
    first, second = (
        list(csv.reader((folder / "mistakes.csv").open(newline=""))) for folder in (tmp_path / "val", attempt)
    )
    assert [row[:3] for row in first] == [row[:3] for row in second], "as the training itself has drawn it"
    with Image.open(tmp_path / "val" / "confusion.png") as ours, Image.open(attempt / "confusion.png") as theirs:
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", ANSWER_FILES)
def test_nothing_is_overwritten(two_trials, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=f"{name} is there already"):
        evaluate(two_trials, STUDY, pictures=tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_folder_that_cannot_be_written_is_one_line(two_trials, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is not a folder"):
        evaluate(two_trials, STUDY, pictures=tmp_path / "file")
    with pytest.raises(UnavailableError, match=r"file/below cannot be written: Not a directory$"):
        evaluate(two_trials, STUDY, pictures=tmp_path / "file" / "below")
    with pytest.raises(UsageError, match="split 'all' is none of"):
        evaluate(two_trials, STUDY, split="all", pictures=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_sweep_with_pruning_leaves_pictures_of_every_trial(tmp_path):
    orch = Orch(tmp_path)
    keys = ["recipe=mlp", "trials=8", "epochs=9", "workers=2", "pictures=true", "export=none", "sampler=random"]
    orch("sweep", *keys, "width=8", "depth=1", "lr=tag(log,interval(1e-5,1e-2))")
    states = orch.json("status", "mlp-digits")["states"]
    assert states["pruned"] >= 2
    assert states["pruned"] + states["complete"] == 8
    for row in orch.json("compare", "mlp-digits"):
        shown = orch.json("show", f"mlp-digits/{row['trial']}")
        assert shown["files"].keys() >= FILES
        below = EventAccumulator(str(orch.home / "tensorboard" / "mlp-digits" / f"{row['trial']:04}" / "pictures"))
        scalars = below.Reload().Scalars("val_loss")
        assert [scalar.step for scalar in scalars] == [epoch["number"] for epoch in shown["epochs"]]
    again = orch.here("evaluate", "mlp-digits", "--pictures", str(tmp_path / "drawn"))
    assert again.stdout.endswith(f"written   {tmp_path / 'drawn'}\n")
    assert (
        "is there already" in orch.here("evaluate", "mlp-digits", "--pictures", str(tmp_path / "drawn"), code=2).stderr
    )

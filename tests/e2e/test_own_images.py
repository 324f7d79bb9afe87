"""A folder of real photographs, from sweep to prediction, as the README tells it."""

from __future__ import annotations

import csv

import pytest

from tests.support import databases, photos
from tests.support.orch import Orch

SWEEP = ("recipe=cnn", "image_size=32", "trials=2", "epochs=1", "seed=1")


@pytest.mark.slow
def test_folder_of_photographs_is_swept_promoted_and_predicted(tmp_path):
    folder = photos.write(tmp_path / "photos", 40)
    orch = Orch(tmp_path)
    databases.put_into(orch.home)
    orch.here("sweep", "data=folder:photos", *SWEEP)
    (study,) = orch.json("ls")
    assert study["data"] == f"folder:{folder}"
    promoted = orch.json("promote", study["study"])
    assert 0 <= promoted["test_accuracy"] <= 1
    files = [str(path) for path in sorted(folder.rglob("0*.png"))]
    found = orch.json("predict", f"models:/{study['study']}@champion", *files)
    assert [prediction["path"] for prediction in found] == files
    assert {prediction["class"] for prediction in found} <= set(photos.CLASSES)
    init = f"init=models:/{study['study']}@champion"
    orch.here("train", "recipe=transfer", init, "features=last", "data=folder:photos", "image_size=32", "epochs=1")
    promoted_trial = study["best"]["trial"]
    (own,) = (row for row in orch.json("ls") if row["recipe"] == "transfer")
    trained = orch.json("show", f"{own['study']}/0")["config"]["init"]
    assert trained.endswith(f"trials/{study['study']}/{promoted_trial:04d}/1/best.safetensors")


@pytest.mark.slow
def test_same_photographs_by_table_are_another_study_of_equal_data(tmp_path):
    folder = photos.write(tmp_path / "photos", 20)
    with (tmp_path / "photos.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows([path.relative_to(tmp_path), path.parent.name] for path in sorted(folder.rglob("*.png")))
    orch = Orch(tmp_path)
    for data in ("folder:photos", "csv:photos.csv"):
        orch.here("train", f"data={data}", *(key for key in SWEEP if not key.startswith("trials")))
    first, second = orch.json("ls")
    assert first["study"] != second["study"]
    assert first["best"]["value"] == second["best"]["value"]


@pytest.mark.slow
def test_bad_picture_ends_with_exit_code_2_and_leaves_nothing(tmp_path):
    folder = photos.write(tmp_path / "photos", 5)
    (folder / "china" / "cut.png").write_bytes((folder / "china" / "00.png").read_bytes()[:-100])
    orch = Orch(tmp_path)
    done = orch.here("sweep", "data=folder:photos", *SWEEP, code=2)
    assert "1 of 11 images cannot be read, the first is china/cut.png" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not orch.home.exists()

"""A user's own table, and pictures with several labels or numbers: from sweep to prediction."""

from __future__ import annotations

import csv

import pytest
from mlflow import MlflowClient
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits

from tests.support import databases
from tests.support.cards import assert_intervals
from tests.support.orch import Orch


def write_table(path, header, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


@pytest.fixture
def orch(tmp_path):
    return Orch(tmp_path)


@pytest.fixture
def diabetes(tmp_path):
    """442 patients: ten columns, one of them words, and how far the disease went within a year."""
    found = load_diabetes(scaled=False)
    rows = [
        ["" if age > 75 else age, "f" if sex == 1 else "m", *others, target]
        for (age, sex, *others), target in zip(found.data.tolist(), found.target.tolist(), strict=True)
    ]
    write_table(tmp_path / "diabetes.csv", [*found.feature_names, "progression"], rows)


def card_of(orch, name):
    return MlflowClient(f"sqlite:///{orch.home}/mlflow.db").get_model_version_by_alias(name, "champion").description


@pytest.mark.slow
def test_table_of_numbers_is_swept_promoted_and_predicted(orch, diabetes, tmp_path):
    keys = ("recipe=mlp", "data=csv:diabetes.csv", "task=regression", "study=diabetes")
    databases.put_into(orch.home)
    orch.here("sweep", *keys, "trials=4", "epochs=12", "loss=mse,smooth_l1")
    (study,) = orch.json("ls")
    assert study["best"]["objective"] == "val_r2"
    found = orch.json("evaluate", "diabetes")
    assert found["metrics"]["r2"] == pytest.approx(study["best"]["value"], abs=1e-5)
    promoted = orch.json("promote", "diabetes")
    assert promoted["test_r2"] > 0.3
    assert_intervals(card_of(orch, "diabetes"))
    rows = orch.json("predict", "models:/diabetes@champion", "diabetes.csv")
    with (tmp_path / "diabetes.csv").open() as file:
        targets = [float(row["progression"]) for row in csv.DictReader(file)]
    mean = sum(targets) / len(targets)
    error = sum((row["progression"] - target) ** 2 for row, target in zip(rows, targets, strict=True))
    assert 1 - error / sum((target - mean) ** 2 for target in targets) > 0.3
    orch.here("sweep", *keys, "trials=6", "epochs=12", "loss=mse,smooth_l1")  # more trials of the same study
    again = orch.json("promote", "diabetes") if orch.json("ls")[0]["best"] != study["best"] else promoted
    assert again["test_r2"] >= promoted["test_r2"] or again["already"]


@pytest.mark.slow
def test_pictures_with_several_labels_are_swept_promoted_and_predicted(orch, tmp_path):
    digits = load_digits()
    (tmp_path / "png").mkdir()
    rows = []
    for number, (pixels, digit) in enumerate(zip(digits.images[:400], digits.target[:400], strict=True)):
        Image.fromarray((pixels * 15.9375).astype("uint8")).save(tmp_path / "png" / f"{number}.png")
        labels = [name for name, has in (("even", digit % 2 == 0), ("round", digit in (0, 6, 8, 9))) if has]
        rows.append([f"png/{number}.png", "|".join(labels)])
    write_table(tmp_path / "digits.csv", ["file", "labels"], rows)
    databases.put_into(orch.home)
    orch.here("sweep", "recipe=cnn", "data=csv:digits.csv", "task=multilabel", "trials=2", "epochs=6", "study=labels")
    (study,) = orch.json("ls")
    assert study["best"]["objective"] == "val_f1"
    assert orch.json("promote", "labels")["test_f1"] > 0.8
    assert_intervals(card_of(orch, "labels"), "average_precision", "calibration_error")
    found = orch.json("predict", "models:/labels@champion", *(f"png/{number}.png" for number in range(40)))
    right = [set(row["labels"].split("|")) == set(rows[number][1].split("|")) for number, row in enumerate(found)]
    assert sum(right) > 30
    assert orch.json("evaluate", "labels")["metrics"]["exact_match"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("recipe=cnn",), "diabetes.csv is a table, for recipe=mlp"),
        (("recipe=mlp", "flip=0.5"), "flip changes images, and this is a table"),
        (("recipe=mlp", "label_smoothing=0.1"), "label_smoothing is for classes and labels"),
        (("recipe=mlp", "loss=mse,bce"), "loss=bce is not for task=regression; its losses are mse, l1, smooth_l1"),
    ],
)
def test_what_does_not_fit_the_table_is_one_line(orch, diabetes, keys, message):
    done = orch.here("sweep", *keys, "data=csv:diabetes.csv", "task=regression", "trials=2", code=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (orch.home / "orch.db").exists()

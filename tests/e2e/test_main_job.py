"""The main job with the installed `orch`: sweep, compare, promote, predict, and what each prints as JSON."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image

from recipes.config import DatasetConfig
from recipes.data import load
from tests.support.orch import Orch


@pytest.mark.slow
def test_sweep_is_compared_promoted_and_used(tmp_path):
    orch = Orch(tmp_path)
    shown = orch("sweep", "recipe=mlp", "trials=6", "epochs=4", "export=top:2").stdout
    assert "winner" in shown
    assert "orch promote mlp-digits" in shown

    status = orch.json("status")
    assert (status["study"], status["recipe"], status["data"], status["total"]) == ("mlp-digits", "mlp", "digits", 6)
    assert status["states"]["complete"] + status["states"]["pruned"] == 6
    rows = orch.json("compare", "mlp-digits")
    assert [row["value"] for row in rows] == sorted((row["value"] for row in rows), reverse=True)
    best = status["best"]
    assert (best["trial"], best["value"]) == (rows[0]["trial"], rows[0]["value"])
    assert best["run_id"]
    assert "lr" in best["params"]

    again = json.loads(orch("reproduce", "mlp-digits", "--json").stdout)
    assert (again["trial"], again["verdict"]) == (f"mlp-digits/{best['trial']}", "same bits")
    assert again["epochs"] == rows[0]["epochs"]
    assert set(again["same"]) == {"code", "packages", "data", "seed", "threads", "device"}
    ran_with = orch.json("show", str(best["trial"]))["ran_with"]
    assert ran_with["command"] == "orch sweep recipe=mlp trials=6 epochs=4 export=top:2"

    tried = json.loads(orch("promote", "--dry-run", "max_size_mb=1", "--json").stdout)
    assert (tried["version"], tried["gates"][-1]["name"]) == (None, "size_mb")
    refused = orch("promote", "mlp-digits", "min_metric=1", code=3)
    assert "test_metric is 0." in refused.stderr

    promoted = json.loads(orch("promote", "--confirm", "2", "--json").stdout)
    confirmed = [row for row in orch.json("compare", "mlp-digits") if row["confirmed"]]
    assert [row["confirmed"]["num_seeds"] for row in confirmed] == [2] * len(confirmed)
    assert len(confirmed) == min(3, status["states"]["complete"])
    (move,) = json.loads(orch("history", "mlp-digits", "--json").stdout)
    best_mean = max(confirmed, key=lambda row: row["confirmed"]["mean"])
    assert (move["trial"], move["to"], move["score"]) == (best_mean["trial"], "1", promoted["test_accuracy"])
    assert "champion" in orch("history", "mlp-digits").stdout
    assert (promoted["model"], promoted["version"], promoted["alias"]) == ("mlp-digits", "1", "champion")
    assert promoted["test_accuracy"] > 0.5
    assert all(gate["passed"] and {"name", "figure", "limit"} <= gate.keys() for gate in promoted["gates"])

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    test = load(DatasetConfig()).test
    for number in range(30):
        Image.fromarray(test.images[number, 0].numpy()).save(pictures / f"{number:02}.png")
    (pictures / "broken.png").write_text("no image")
    model = "models:/mlp-digits@champion"
    refused = orch("predict", model, "pictures", "--output", "p.csv", code=2)
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "p.csv").exists()
    done = orch("predict", model, "pictures", "--output", "p.csv", "--skip-bad")
    assert done.stdout == "written   p.csv: 30 image(s)\n"
    assert "1 file(s) left out; the first: pictures/broken.png" in done.stderr
    with (tmp_path / "p.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    found = json.loads(orch("predict", model, "pictures", "--skip-bad", "--json").stdout)
    assert [row["class"] for row in found] == [row["class"] for row in written]
    right = [row["class"] == str(int(label)) for row, label in zip(found, test.labels, strict=False)]
    assert sum(right) >= 15

    assert "is complete" in orch("sweep", "recipe=mlp", "trials=6", "epochs=4", "export=top:2").stdout

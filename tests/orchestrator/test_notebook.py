"""The same words in Python: a script's process, and a notebook with a kernel of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import orchestrator
from orchestrator.errors import UsageError
from tests.support.orch import COUNTING

SWEEP = f"""
import orchestrator
study = orchestrator.sweep(
    recipe={COUNTING!r}, study="s", hidden=[4, 8], lr="interval(1e-3,1e-2)", trials=3, epochs=2, workers=2,
    sampler="random", pruner="none", export="none", default_first=True,
)
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "mlruns"))
    return os.environ | {"PYTHONPATH": str(Path.cwd())}


@pytest.mark.slow
def test_sweep_of_a_script_is_that_of_the_command_line(environment, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SWEEP + "print(study)\n")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    study = orchestrator.open_study()
    assert "s: 3 trials on 2 worker(s)" in done.stdout
    assert done.stdout.splitlines()[-1] == repr(study)
    assert repr(study).startswith("<study s: 3 of 3 trials ended, best val_accuracy 0.")
    best, table = study.best, study.to_pandas()
    assert best["value"] == table["value"].max() == table["value"][0]
    assert (best["trial"], best["config"]["lr"]) == (table["trial"][0], table["params.lr"][0])
    assert all(Path(best["folder"], name).exists() for name in best["files"])
    first = next(row for row in study.trials if row["trial"] == 0)
    assert first["params"]["lr"] == 3e-3, "the recipe's own, as default_first=True says"
    assert study.status["states"]["complete"] == 3


@pytest.mark.slow
def test_resumed_study_has_more_trials_and_mistakes_are_errors_of_ours(environment, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SWEEP + "study = orchestrator.resume('s', trials=4)\nassert len(study.trials) == 4\n")
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, check=True, capture_output=True)
    with pytest.raises(UsageError, match="unknown key 'wdth'; did you mean 'width'"):
        orchestrator.sweep(recipe="cnn", wdth=4)
    with pytest.raises(UsageError, match="unknown study 'x'"):
        orchestrator.open_study("x")


@pytest.mark.slow
def test_notebook_shows_the_sweep_in_place_and_leaves_its_end(environment, tmp_path):
    cells = [SWEEP, "study", "len(study.to_pandas())"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute(env=environment)
    swept, shown, counted = (cell["outputs"] for cell in notebook.cells)
    views = [output for output in swept if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert views, swept
    state = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    drawn = str([model["state"]["outputs"] for model in state.values() if "outputs" in model["state"]])
    assert "3 finished, 0 pruned, 0 failed of 3" in drawn
    assert "<study s: 3 of 3 trials ended" in shown[0]["data"]["text/plain"]
    assert counted[0]["data"]["text/plain"] == "3"

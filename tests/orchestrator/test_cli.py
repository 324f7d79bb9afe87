"""The command line: bad input is one line, exit code 2, and nothing written; --json is pure JSON.

Tests run `main` in this process, which is quick, and many of them, among the slow ones, the installed `orch`.
"""

from __future__ import annotations

import io
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from orchestrator.tables import MirrorRun, Reason, State
from tests.support.orch import Orch
from tests.support.sweeps import Sweep, settings_of

NAME = "<b>[red]x[|red]<|b> :smile:"  # a name in which other programs see more than text


class Here(Orch):
    """The same commands in this process."""

    def __call__(self, *arguments, code=0, **_):
        return self.here(*arguments, code=code)


MISSING_RECIPE = "recipe= is missing; known: mlp, cnn, resnet, vit, transfer, or a path to a .py file"


@pytest.fixture
def installed(tmp_path):
    return Orch(tmp_path)


@pytest.fixture(params=["here", pytest.param("installed", marks=pytest.mark.slow)])
def orch(request, tmp_path):
    return Here(tmp_path) if request.param == "here" else Orch(tmp_path)


here_only = pytest.mark.parametrize("orch", ["here"], indirect=True)  # of many cases that differ in little


@pytest.fixture
def recorded(orch):
    """Two studies in a record that nothing mirrors; the second has a complete, a pruned and a failed trial."""
    home = settings_of(orch.home)
    Sweep(home, name="cnn-digits").close()
    sweep = Sweep(home, name=NAME)
    sweep.run()
    sweep.run(State.PRUNED, num_epochs=1)
    failed = sweep.start(lr=0.5)
    sweep.end(failed, State.FAILED, reason=Reason.ERROR, message="ValueError: \x1b[31mno", traceback="one\ntwo\n")
    with sweep.record.write() as session:
        session.add(MirrorRun(study_id=sweep.study.id, trial=0, run_id="ab12"))
    sweep.close()
    return orch


def contents(folder):
    """All files below a folder; SQLite's are compared by what they say."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "orch.db" not in path.name}
    with closing(sqlite3.connect(folder / "mlruns" / "orch.db")) as connection:
        return files, list(connection.iterdump())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "recipe=cn"], "unknown recipe 'cn'; did you mean 'cnn'?"),
        (["sweep", "trials=3"], MISSING_RECIPE),
        (["sweep", "recipe=mine.py"], "does not exist"),
        (["status"], "no study has been recorded"),
        (["resume", "cnn-digits"], "no study has been recorded"),
        (["promote"], "no study has been recorded"),
        (["rollback", "cnn-digits"], "no study has been recorded"),
        (["ui"], "no study has been recorded"),
        (["sync"], "no study has been recorded"),
        (["delete", "cnn-digits", "--yes"], "no study has been recorded"),
        (["predict", "models:/cnn-digits@champion", "a.png"], "no study has been recorded"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(orch, arguments, message):
    done = orch(*arguments, code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("orch: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert list(orch.folder.iterdir()) == []


def test_installed_command_refuses_in_one_line(installed):
    done = installed("sweep", "trials=3", code=2)
    assert (done.stdout, done.stderr) == ("", f"orch: {MISSING_RECIPE}\n")


@here_only
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("data=digitz", "unknown data 'digitz'; did you mean 'digits'?"),
        ("lrr=1", "unknown key 'lrr'; did you mean 'lr'?"),
        ("trials=0", "trials=0"),
        ("workers=-1", "workers=-1: expected auto or a number of at least 1"),
        ("epochs=0", "epochs=0"),
        ("pruner=asho", "unknown pruner 'asho'; did you mean 'asha'?"),
        ("lr=interval(1,0.1)", "low 1.0 is not below high 0.1"),
        ("lr=tag(log,interval(0,1))", "cannot start from 0.0"),
        ("device=cuda:99", "'cuda:99' is not there"),
        ("study=a/b", "study name 'a/b'"),
    ],
)
def test_bad_key_of_a_sweep_is_one_line_and_nothing_is_written(orch, key, message):
    done = orch("sweep", "recipe=mlp", key, code=2)
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert list(orch.folder.iterdir()) == []


@here_only
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "cnn-digit"], "unknown study 'cnn-digit'; did you mean 'cnn-digits'?"),
        (["compare", "zzz"], "unknown study 'zzz'; known: "),
        (["resume", "cnn-digit"], "unknown study 'cnn-digit'"),
        (["delete", "cnn-digit", "--yes"], "unknown study 'cnn-digit'"),
        (["sync", "cnn-digit"], "unknown study 'cnn-digit'"),
        (["promote", "cnn-digit"], "unknown study 'cnn-digit'"),
        (["show", "7"], "unknown trial of "),
        (["show", "cd34"], "unknown trial 'cd34'; expected NUMBER, STUDY/NUMBER or an MLflow run id"),
        (["rollback", "cnn-digits"], "unknown model 'cnn-digits'"),
        (["predict", "models:/cnn-digits@champion", "a.png"], "unknown model 'cnn-digits'"),
        (["predict", "cnn-digits", "a.png"], "'cnn-digits' is no model; expected models:/NAME@ALIAS"),
        (["ui", "--port", "70000"], "70000"),
        (["status", "\x1b[31m\nred"], "unknown study '\\x1b[31m\\nred'"),
    ],
)
def test_unknown_names_are_one_line_and_change_nothing(recorded, arguments, message):
    before = contents(recorded.folder)
    done = recorded(*arguments, code=2)
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.removesuffix("\n").isprintable()
    assert contents(recorded.folder) == before


@here_only
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space:\n  lr: [1,\n", "studies/mlp.yaml, line 3: expected"),
        ("fixed:\n  lr: 1\n  lr: 2\n", "studies/mlp.yaml, line 3: found duplicate key"),
        ("fixed: !!python/object/apply:os.abort []\n", "studies/mlp.yaml, line 1: could not determine a constructor"),
        ("fixed: &a [*a]\n", "studies/mlp.yaml, line 1: anchors and aliases are not taken"),
    ],
)
def test_bad_study_file_is_one_line_and_nothing_is_written(orch, text, message):
    (orch.folder / "studies").mkdir()
    (orch.folder / "studies" / "mlp.yaml").write_text(text)
    done = orch("sweep", "recipe=mlp", code=2)
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.removesuffix("\n").isprintable()
    assert [path.name for path in orch.folder.iterdir()] == ["studies"]


def test_record_that_cannot_be_reached_is_one_line_within_ten_seconds_without_its_password(orch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        orch.environment["ORCH_RECORD_URL"] = f"postgresql://me:s3cret@127.0.0.1:{unused.getsockname()[1]}/d"
        began = time.monotonic()
        done = orch("status", code=5)
    assert time.monotonic() - began < 10
    assert "postgresql://me:***@127.0.0.1" in done.stderr
    assert "s3cret" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_corrupt_record_is_named_and_untouched(orch):
    orch.home.mkdir()
    content = b"no database at all " * 1000
    (orch.home / "orch.db").write_bytes(content)
    for command in (["status"], ["resume", "s"], ["promote"], ["delete", "s", "--yes"]):
        assert "orch.db is not usable: file is not a database" in orch(*command, code=5).stderr
    assert [(path.name, path.read_bytes()) for path in orch.home.iterdir()] == [("orch.db", content)]


@pytest.mark.slow
def test_study_that_runs_is_neither_run_twice_nor_deleted(orch):
    sweep = Sweep(settings_of(orch.home), name="s")
    try:
        done = orch("delete", "s", "--yes", code=5)
    finally:
        sweep.close()
    assert f"study:s is held by process {os.getpid()} on {socket.gethostname()}" in done.stderr
    assert orch.json("status", "s")["study"] == "s"


@pytest.mark.parametrize("answer", ["n\n", "", "\n"])
def test_delete_asks_first(recorded, monkeypatch, answer):
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    refused = recorded("delete", "cnn-digits", code=2)
    assert refused.stdout.strip() == ""
    assert "Delete cnn-digits with 0 trials?" in refused.stderr
    assert refused.stderr.endswith("orch: cnn-digits was not deleted\n")
    assert {row["study"] for row in recorded.json("ls")} == {"cnn-digits", NAME}


def test_hostile_names_and_messages_stay_text_wherever_they_are_shown(recorded):
    for command in (["ls"], ["status"], ["status", NAME], ["show", f"{NAME}/0"], ["show", "ab12"]):
        out = recorded(*command).stdout
        assert NAME in out
        assert out.replace("\n", "").isprintable()
    shown = recorded("show", "2").stdout
    assert "ValueError: \\x1b[31mno" in shown
    assert "\x1b" not in shown


def test_json_of_a_record_is_whole_and_alone(recorded):
    params = {"lr": 0.001, "width": 32, "optimizer": "sgd"}
    best = {"trial": 0, "objective": "val_accuracy", "value": 0.503, "params": params, "run_id": "ab12"}
    assert recorded.json("status") == {
        "study": NAME,
        "recipe": "cnn",
        "data": "digits",
        "total": 4,
        "states": {"waiting": 0, "running": 0, "paused": 0, "complete": 1, "pruned": 1, "failed": 1},
        "confirming": 0,
        "epochs_trained": 4,
        "best": best,
        "front": [],
        "process": None,
    }
    assert recorded.json("status", "cnn-digits")["best"] is None
    assert [row["study"] for row in recorded.json("ls")] == ["cnn-digits", NAME]
    rows = recorded.json("compare")
    assert [(row["trial"], row["state"], row["epochs"], row["params"]) for row in rows] == [
        (0, "complete", 3, {"lr": 0.001}),
        (1, "pruned", 1, {"lr": 0.001}),
        (2, "failed", 0, {"lr": 0.5}),
    ]
    assert recorded.json("compare", "cnn-digits") == []
    shown = recorded.json("show", "2")
    assert (shown["reason"], shown["message"]) == ("error", "ValueError: \x1b[31mno")
    assert [epoch["number"] for epoch in recorded.json("show", "ab12")["epochs"]] == [1, 2, 3]


def test_help_imports_nothing_heavy():
    code = "import sys; from orchestrator.cli import app; sys.argv[1:] = ['--help']\n"
    code += "try: app()\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    modules = set(done.stdout.split("\n")[-2].split())
    assert "orchestrator.cli" in modules
    assert not modules & {"torch", "mlflow", "optuna", "sklearn", "sqlalchemy", "pydantic", "rich"}
    for command in ("sweep", "resume", "train", "status", "compare", "promote", "rollback", "predict", "sync", "ui"):
        assert f"  {command} " in done.stdout


@pytest.mark.slow
def test_json_is_all_that_is_on_standard_output(installed):
    orch = installed
    orch(*orch.counting(trials=2, epochs=1))
    status = orch.json("status", "s")
    assert {"study", "recipe", "data", "total", "states", "epochs_trained", "best"} <= set(status)
    assert set(status["states"]) == {"waiting", "running", "paused", "complete", "pruned", "failed"}
    assert set(status["best"]) == {"trial", "objective", "value", "params", "run_id"}
    assert status["best"]["run_id"]
    rows = orch.json("compare", "s")
    assert rows[0]["trial"] == status["best"]["trial"]
    assert orch.json("show", status["best"]["run_id"])["trial"] == status["best"]["trial"]
    assert json.dumps(orch.json("ls")[0]) == json.dumps(status)
    assert "did you mean" not in orch.here("show", "s/7", code=2).stderr
    assert "unknown study 'cnn'" in orch.here("compare", "cnn", code=2).stderr


@here_only
def test_recipes_are_listed_shown_and_copied(orch):
    assert [row["recipe"] for row in orch.json("recipes", "ls")] == ["mlp", "cnn", "resnet", "vit", "transfer"]
    assert "lr" in [row["field"] for row in orch.json("recipes", "show", "cnn")]
    assert "A plain convolutional network" in orch("recipes", "ls").stdout
    assert "learning rate" in orch("recipes", "show", "cnn").stdout
    assert orch("recipes", "cp", "cnn", "my_cnn.py").stdout.splitlines()[-1] == "next      orch sweep recipe=my_cnn.py"
    refused = orch("recipes", "cp", "cnn", "my_cnn.py", code=2)
    assert refused.stderr == "orch: my_cnn.py is there already\n"

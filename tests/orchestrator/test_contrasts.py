"""Runs, trials and studies beside each other: what differs, who is better, and their curves in letters."""

from __future__ import annotations

import csv
import io
import re

import pytest

import orchestrator
from orchestrator import contrasts, views
from orchestrator.curves import draw
from orchestrator.errors import UsageError
from orchestrator.settings import HOME_VARIABLE
from orchestrator.tables import PARENT, MirrorRun, State
from tests.orchestrator.test_cli import Here
from tests.support.sweeps import Sweep, settings_of

HOSTILE = "<b>x|[red]"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two studies: `one` with three trials, of an older orch, and a later one with packages and a difference."""
    folder = tmp_path_factory.mktemp("contrasts")
    settings = settings_of(folder / "mlruns")
    one = Sweep(settings, "one")
    one.run(lr=0.01)
    one.run(State.PRUNED, num_epochs=2, lr=0.02)
    one.start(lr=0.01)
    with one.record.write() as session:
        session.add(MirrorRun(study_id=one.study.id, trial=1, run_id="ab12"))
        session.add(MirrorRun(study_id=one.study.id, trial=PARENT, run_id="cd34"))
    one.close()
    for name, diff, torch in (("two", "--- a\n-x\n+y", "2.15"), (HOSTILE, "--- a\n-x\n+z", "2.14")):
        sweep = Sweep(settings, name)
        more = {"commit": name[0], "diff": diff, "packages": {"torch": torch, "numpy": "2.0"}}
        spec = {**sweep.study.spec, "provenance": {**sweep.study.spec["provenance"], **more}}
        spec["budget"] = {**spec["budget"], "sampler": "tpe" if name == "two" else "qmc"}
        sweep.record.update_study(sweep.lease, sweep.study.id, spec)
        sweep.run(lr=0.02)
        sweep.run(lr=0.03)
        sweep.close()
    return folder


@pytest.fixture
def orch(home, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(home / "mlruns"))
    return Here(home)


def test_two_trials_of_a_study_differ_in_their_fields_alone(orch):
    found = orch.json("compare", "one/0", "ab12")
    assert [side["name"] for side in found["sides"]] == ["one/0", "one/1"]
    assert (found["config"], found["study"], found["provenance"], found["texts"]) == ({"lr": [0.01, 0.02]}, {}, {}, {})
    assert found["curves"]["val_accuracy"] == [[0.501, 0.502, 0.503], [0.511, 0.512]]


@pytest.mark.parametrize(("one", "other"), [(1, True), (0, False), (1, 1.0), ("1", 1), (None, "None"), ([1], (1,))])
def test_values_that_python_calls_equal_or_prints_alike_still_differ(one, other):
    none = dict.fromkeys(("trial", "state", "run_id"))
    sides = [
        contrasts.Side(
            name=name,
            whole_study=False,
            **none,
            objective="val_accuracy",
            config={"field": value},
            study={},
            provenance={},
            figures={},
            curves={},
        )
        for name, value in (("a", one), ("b", other))
    ]
    assert contrasts.contrast(sides)["config"] == {"field": [one, other]}


def test_better_one_is_marked_by_what_the_metric_is_about(orch):
    metrics = orch.json("compare", "two/0", "two/1")["metrics"]
    assert metrics["val_accuracy"] == {"values": [0.503, 0.513], "better": "max", "best": [1]}
    assert metrics["val_loss"] == {"values": [0.25, 0.2], "better": "min", "best": [1]}
    assert metrics["epochs"] == {"values": [3, 3], "better": None, "best": []}
    assert re.search(r"val_accuracy +0\.503 +0\.513\*\n", orch("compare", "two/0", "two/1").stdout)


def test_whole_studies_stand_with_their_best_trial_and_what_they_were_made_with(orch):
    found = orch.json("compare", "two", HOSTILE)
    assert [(side["study"], side["trial"]) for side in found["sides"]] == [(True, 1), (True, 1)]
    assert found["study"] == {"budget.sampler": ["tpe", "qmc"]}
    assert found["provenance"] == {"commit": ["t", "<"], "packages.torch": ["2.15", "2.14"]}
    assert found["texts"]["diff"][HOSTILE][-3:] == [" -x", "-+y", "++z"]
    assert found["metrics"]["complete"]["values"] == [2, 2]


def test_what_an_older_study_did_not_record_is_no_difference(orch):
    found = orch.json("compare", "cd34", "two")
    assert found["sides"][0] == {"name": "one", "study": True, "trial": 0, "state": "complete", "run_id": "cd34"}
    assert found["provenance"] == {"commit": ["c0ffee", "t"]}
    assert found["texts"] == {}


def test_trials_of_one_study_may_have_run_with_different_code(tmp_path):
    sweep = Sweep(settings_of(tmp_path / "mlruns"))
    for commit in ("old", "new"):
        launch = sweep.record.add_launch(sweep.lease, sweep.study.id, {"commit": commit, "packages": {"torch": commit}})
        params = {"lr": 0.1}
        trial = sweep.record.add_trial(sweep.lease, sweep.study.id, params=params, config=params, threads=1)
        sweep.record.start_attempt(sweep.lease, trial, "host/cpu0", launch=launch.id)
    found = views.contrast(sweep.record, ["s/0", "s/1"])
    sweep.close()
    assert found["provenance"] == {"commit": ["old", "new"], "packages.torch": ["old", "new"]}
    assert found["config"] == found["study"] == {}


def test_names_and_texts_stay_text_in_a_terminal(orch):
    out = orch("compare", "two", HOSTILE, "one/2").stdout
    assert HOSTILE in out
    assert out.replace("\n", "").isprintable()
    assert "git diff t <" in out


def test_csv_of_several_has_a_column_each(orch):
    lines = list(csv.reader(io.StringIO(orch("compare", "one/0", "two/1", "--csv").stdout)))
    assert lines[0] == ["part", "name", "one/0", "two/1"]
    assert ["config", "lr", "0.01", "0.03"] in lines
    assert ["curves", "val_loss@3", "0.25", "0.2"] in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one/0"], "one/0 is one trial; name another to compare it with"),
        (["ab12"], "one/1 is one trial"),
        (["one/0", "one/9"], "unknown trial of one '9'; known: 0, 1, 2"),
        (["one", "tow"], "unknown study 'tow'; did you mean 'two'?"),
        (["one", "two", "--sort", "lr"], "--sort, --filter and --columns are of one study's table"),
        (["one", "--csv", "--json"], "choose one"),
        (["one"] * 27, "at most 26 things"),
        (["one", "--filter", "lr >"], "expected: lr >«"),
        (["one", "--columns", "trial,lrr"], "unknown column 'lrr'; did you mean 'lr'?"),
    ],
)
def test_what_cannot_be_compared_is_one_line(orch, arguments, message):
    done = orch("compare", *arguments, code=2)
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert done.stdout == ""


def test_table_of_a_study_is_filtered_sorted_and_has_the_columns_that_are_named(orch):
    lines = orch("compare", "one", "--filter", "epochs>0", "--sort=-lr", "--columns", "trial,lr,val_loss").stdout.split(
        "\n"
    )
    assert [line.split() for line in lines if line.strip() and "─" not in line] == [
        ["trial", "lr", "val_loss"],
        ["1", "0.02", "0.25"],
        ["0", "0.01", "0.25"],
    ]
    assert orch.json("compare", "one", "--columns", "trial,state", "--sort", "-trial")[0] == {
        "trial": 2,
        "state": "running",
    }
    assert orch("compare", "one", "--csv").stdout.splitlines()[:2] == [
        "trial,val_accuracy,lr,epochs,seconds,state,reason,run_id",
        "0,0.503,0.01,3,1.5,complete,,",
    ]


def test_notebook_has_the_same(home, orch):
    assert orchestrator.contrast("one/0", "one/1") == orch.json("compare", "one/0", "one/1")
    assert [row["trial"] for row in orchestrator.open_study("one").select("lr<0.02", sort="-trial")] == [2, 0]
    with pytest.raises(UsageError, match="unknown column"):
        orchestrator.open_study("one").select("lrr=1")


# -- parts


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("val_accuracy", "max"),
        ("images_per_second", "max"),
        ("val_r2", "max"),
        ("train_loss", "min"),
        ("latency_ms", "min"),
        ("peak_memory_bytes", "min"),
        ("step_seconds", "min"),
        ("num_parameters", None),
        ("lr", None),
    ],
)
def test_direction_is_that_of_a_metrics_name(name, better):
    assert contrasts.direction(name) == better


def test_curves_have_their_ends_where_their_values_are():
    lines = draw([[0.0, 1.0, 2.0], [2.0, float("nan")]], "title", height=3)
    assert lines[0] == "title"
    first, middle, last = (line.partition("│")[2] for line in lines[1:4])
    assert lines[1].startswith("2 │")
    assert (first[0], first[-1]) == ("B", "A")
    assert middle[len(first) // 2] == "A"
    assert last[0] == "A"
    assert draw([[1.0], []], "one value is no curve") == []


def test_curves_that_meet_say_so():
    assert draw([[0.0, 1.0], [0.0, 0.5]], "", height=3)[3].partition("│")[2][0] == "*"

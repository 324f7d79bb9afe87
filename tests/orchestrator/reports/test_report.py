"""`orch report` of studies of all kinds: what the page says, where it goes, and what is one line."""

from __future__ import annotations

import html as html_module
import json
import os
import re
import shlex
import sys
from dataclasses import replace

import optuna
import pytest
from mlflow.artifacts import download_artifacts
from sqlalchemy import insert

from orchestrator import cli
from orchestrator.errors import UnavailableError, UnknownNameError, UsageError
from orchestrator.importing import import_study
from orchestrator.mirror import sync
from orchestrator.notebook import open_study
from orchestrator.reports import retyped
from orchestrator.reports.report import report
from orchestrator.study import load
from orchestrator.tables import ARCHIVED, Epoch, Reason, State, Trial
from tests.support.ports import free_ports
from tests.support.sweeps import Sweep, runs_of, settings_of, value_of

HOSTILE = '<img src=x onerror="alert(1)">'
OBJECTIVES = [{"name": "val_accuracy", "direction": "max"}, {"name": "train_loss", "direction": "min"}]


def respecify(sweep, **changed):
    """Write other words into a study's row."""
    sweep.study.spec = {**sweep.study.spec, **changed}
    sweep.record.update_study(sweep.lease, sweep.study.id, sweep.study.spec)


def sections(html):
    return re.findall(r'<section id="([\w-]+)">', html)


# -- what the page says


def test_page_of_a_study_has_every_section_and_the_figures_of_the_record(varied, write):
    html = write(varied.settings)
    assert sections(html) == [
        *("leaderboard", "history", "curves", "importance", "parallel", "slices"),
        *("winner", "timeline", "failures", "reproduce"),
    ]
    assert f"<b>{value_of(7, 3, 'val_accuracy'):.4f}</b><span>val_accuracy of the winner, trial 7</span>" in html
    for tile in ("<b>11</b><span>trials", "<b>8</b><span>complete", "<b>1</b><span>pruned", "<b>1</b><span>failed"):
        assert tile in html
    assert "1 trial(s) have not ended" in html
    assert "ValueError: no" in html
    assert "best.safetensors" in html, "the winner's files are not weights, and the page says so"


def test_page_needs_nothing_else_and_lets_no_other_script_run(varied, write):
    html = write(varied.settings)
    assert not re.findall(r"<(?:link|iframe|object|embed)\b|\bsrc=(?!\"data:)", html.partition("<script>")[0])
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    assert html.count("plotly.js v") == 1, "its script is there once"


def test_names_made_of_html_are_escaped_everywhere(prepared, write):
    sweep = Sweep(prepared, name=HOSTILE)
    respecify(sweep, space={HOSTILE: {"choices": [HOSTILE, "b"]}}, constraints=[HOSTILE])
    for number in range(6):
        sweep.run(**{HOSTILE: (HOSTILE, "b")[number % 2]})
    sweep.end(sweep.start(**{HOSTILE: "b"}), State.FAILED, reason=Reason.ERROR, message=HOSTILE)
    sweep.close()
    html = write(prepared)
    assert "<img" not in html.partition("<script>")[0], "there are no pictures in this one"
    assert f"<title>{html_module.escape(HOSTILE)} ·" in html
    told = html.partition('<script id="charts" type="application/json">')[2].partition("</script>")[0]
    assert "<" not in told
    assert "&lt;img src=x" in json.dumps(json.loads(told))


def test_study_of_one_trial_has_a_page(sweep, write):
    sweep.run()
    html = write(sweep.settings)
    assert sections(html) == ["leaderboard", "history", "curves", "slices", "winner", "timeline", "reproduce"]


def test_study_of_which_all_trials_failed_says_so(sweep, write):
    for _ in range(3):
        sweep.run(State.FAILED, num_epochs=0)
    html = write(sweep.settings)
    assert "All trials failed." in html
    assert sections(html) == ["leaderboard", "timeline", "failures", "reproduce"]
    assert '<td class="number">3</td><td>ValueError: no</td>' in html


def test_study_without_a_complete_trial_has_curves_and_no_winner(sweep, write):
    sweep.run(State.PRUNED, num_epochs=2)
    sweep.train(sweep.start(), 1)
    html = write(sweep.settings)
    assert "No trial is complete, so there is no winner." in html
    assert {"history", "curves", "parallel", "slices"} < set(sections(html))


def test_study_that_has_not_begun_has_a_page(sweep, write):
    html = write(sweep.settings)
    assert "No trial has begun." in html
    assert sections(html) == ["reproduce"]


def test_losses_that_are_not_finite_are_left_out(sweep, write):
    trial = sweep.start()
    sweep.train(trial, 1)
    sweep.train(trial, 2, val_accuracy=float("nan"), train_loss=float("inf"))
    sweep.end(trial, State.FAILED, reason=Reason.DIVERGED, message="its loss is nan")
    sweep.run()
    html = write(sweep.settings)
    told = html.partition('<script id="charts" type="application/json">')[2].partition("</script>")[0]
    json.loads(told, parse_constant=pytest.fail)


def test_several_objectives_have_a_front(sweep, write):
    respecify(sweep, objectives=OBJECTIVES)
    for number in range(5):
        sweep.run(lr=10.0 ** -(1 + number))
    html = write(sweep.settings)
    assert "fronts" in sections(html)
    assert "on the Pareto front" in html
    assert "train_loss (less is better)" in html


def test_archived_study_says_so(sweep, write):
    sweep.run()
    respecify(sweep, **{ARCHIVED: 1.8e9})
    assert "Archived on 2027-01-15" in write(sweep.settings, "s")


def test_imported_study_has_charts_but_no_files_and_no_command(tmp_path, write):
    url = f"sqlite:///{tmp_path / 'old.db'}"
    study = optuna.create_study(storage=url, study_name="old", direction="maximize")
    fixed = optuna.distributions.FloatDistribution(0.5, 0.5)
    study.add_trials(
        optuna.trial.create_trial(
            params={"x": number / 6, "same": 0.5},
            distributions={"x": optuna.distributions.FloatDistribution(0, 1), "same": fixed},
            value=number / 6,
        )
        for number in range(6)
    )
    settings = settings_of(tmp_path / "mlruns")
    import_study(settings, url, "old")
    html = write(settings)
    assert {"history", "curves", "importance", "parallel", "slices"} < set(sections(html))
    assert "taken in from Optuna&#x27;s study old" in html
    assert "orch sweep" not in html
    assert "was imported" in html, "instead of the winner's answers"


def test_winner_is_asked_the_validation_images_and_its_mistakes_are_pictures(two_trials, find, write):
    found = find(two_trials, "cnn-digits")
    html = write(two_trials, "cnn-digits")
    answers = found.answers
    assert (answers.trial, answers.figures["images"]) == (1, 360)
    assert answers.num_mistakes == round(360 * (1 - answers.figures["metrics"]["accuracy"]))
    assert [pixels.shape for pixels in answers.pixels] == [(1, 8, 8)] * answers.num_mistakes
    assert html.count('<img class="tiny" alt="" src="data:image/png;base64,') == answers.num_mistakes > 0
    first = answers.mistakes[0]
    assert f"<b>{first.label}</b> taken for <b>{first.taken_for}</b>" in html
    assert "chart-confusion" in html


# -- how to have it again


def test_command_of_the_page_is_the_same_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "mlruns"))
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "cnn.yaml").write_text(
        "fixed: {epochs: 3, milestones: '0.25 0.75', momentum: 0.5}\n"
        "space:\n  optimizer: [sgd, adamw]\n  lr: {low: 1e-4, high: 1e-1, log: true}\n"
        "  momentum: {low: 0.5, high: 0.99, when: {optimizer: sgd}}\n  width: {low: 16, high: 64, step: 8}\n"
        "constraints: [width * depth <= 128]\n"
    )
    keys = ["trials=7", "sampler=random", "split_seed=3", "seed=4", "objectives=val_accuracy:max,num_parameters:min"]
    study = load(["recipe=cnn", "study=a b", *keys])
    row = type("Row", (), {"spec": study.model_dump(mode="json"), "recipe": "cnn", "data": "digits", "name": "a b"})
    (tmp_path / retyped.study_file_name(row)).write_text(retyped.study_file(row))
    program, word, *typed = shlex.split(retyped.study_command(row))
    assert (program, word) == ("orch", "sweep")
    again = load(typed)
    assert again.identity == study.identity
    assert (again.name, again.seed, again.budget.trials, again.sampler) == ("a b", 4, 7, "random")

    config = study.config({"optimizer": "sgd", "lr": 0.0123, "momentum": 0.9, "width": 24})
    trial = type("Row", (), {"config": config})
    _, word, *typed = shlex.split(retyped.train_command(row, trial))
    assert word == "train"
    single = load(typed, single=True)
    assert {**single.fixed, "data": "digits"} == {**config, "data": "digits"}


def test_command_of_the_page_has_the_limits_and_gates_of_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    limits = ["target_value=0.9", "patience=5", "max_epochs_total=90", "max_failures=2", "confirm=2x3", "pruner=median"]
    gates = ["min_metric=0.8", "min_class_recall=0.7", "max_calibration_error=0.1", "max_latency_ms=5", "max_size_mb=2"]
    study = load(["recipe=cnn", "study=s", "trials=7", "sampler=random", *limits, *gates, "workers=1"])
    row = type("Row", (), {"spec": study.model_dump(mode="json"), "recipe": "cnn", "data": "digits", "name": "s"})
    again = load(shlex.split(retyped.study_command(row))[2:])
    assert again.budget == study.budget.model_copy(update={"workers": 0})


# -- where it goes


def test_report_becomes_an_artifact_of_the_studys_run(varied, tmp_path):
    sync(varied.settings)
    file = tmp_path / "r.html"
    for _ in range(2):  # the second takes the place of the first
        written = report(varied.settings, "s", file)
    client, runs = runs_of(varied.settings)
    assert written.run_id == runs[-1].info.run_id
    assert written.not_stored == ""
    assert [each.path for each in client.list_artifacts(written.run_id)] == ["report.html"]
    there = download_artifacts(run_id=written.run_id, artifact_path="report.html", tracking_uri=client.tracking_uri)
    with open(there, "rb") as stored:  # noqa: PTH123
        assert stored.read() == file.read_bytes()


def test_report_is_written_where_mlflow_is_away(varied, tmp_path):
    sync(varied.settings)
    away = replace(varied.settings, tracking_uri=f"http://127.0.0.1:{free_ports()}")
    written = report(away, "s", tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size == written.size_bytes > 4_000_000
    assert written.run_id is None
    assert "MLflow at http://127.0.0.1" in written.not_stored
    assert "\n" not in written.not_stored


def test_study_that_is_not_mirrored_is_told_how(varied, tmp_path):
    assert "orch sync" in report(varied.settings, "s", tmp_path / "r.html").not_stored


def test_former_report_stays_whole_when_a_new_one_cannot_be_written(varied, tmp_path, monkeypatch):
    file = tmp_path / "r.html"
    file.write_text("the former one")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match=r"r\.html cannot be written: No space left"):
        report(varied.settings, "s", file)
    assert file.read_text() == "the former one"
    assert [path.name for path in tmp_path.glob("r.html*")] == ["r.html"]


def test_target_that_is_no_file_is_refused_before_the_work(varied, tmp_path):
    for target, message in ((tmp_path, "is a folder"), (tmp_path / "no" / "r.html", "is no folder")):
        with pytest.raises(UsageError, match=message):
            report(varied.settings, "s", target)
    with pytest.raises(UnknownNameError, match="unknown study 'x'"):
        report(varied.settings, "x", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("name", ["é" * 120, "..", "<b>"])
def test_file_has_the_studys_name_as_far_as_it_fits(prepared, tmp_path, monkeypatch, name):
    Sweep(prepared, name=name).close()
    monkeypatch.chdir(tmp_path)
    file = report(prepared).file
    assert file.parent.resolve() == tmp_path
    assert file.is_file()
    assert file.name == f"{name[:100]}-report.html"


def test_command_and_python_say_where_it_is(varied, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCH_HOME", str(varied.settings.home))

    def orch(*arguments):
        monkeypatch.setattr(sys, "argv", ["orch", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr()

    told = orch("report", "s", "--out", "page.html")
    assert re.fullmatch(r"written   page\.html: \d\.\d MB\n", told.out)
    assert told.err.count("\n") == 1
    assert "not stored in MLflow" in told.err
    found = json.loads(orch("report", "--json").out)
    assert (found["study"], found["file"], found["run_id"]) == ("s", "s-report.html", None)
    assert open_study("s").report(tmp_path / "third.html") == tmp_path / "third.html"
    assert {path.name for path in tmp_path.glob("*.html")} == {"page.html", "s-report.html", "third.html"}


@pytest.mark.slow
def test_ten_thousand_trials_make_a_page_of_a_size_that_opens(prepared, write):
    sweep = Sweep(prepared, trials=10_000)
    trial = sweep.start()
    sweep.end(trial, State.PRUNED, best_epoch=1)
    sweep.train(trial, 1, 2, 3)
    with sweep.record.write() as session:
        _multiply(session, trial, 10_000)
    sweep.close()
    html = write(prepared)
    assert "1,500 of 10,000 trials are shown" in html
    assert "150 of 10,000 curves are shown" in html
    assert "The first 100 of 10,000 trials." in html
    assert len(html) < 7_000_000


def _multiply(session, trial, count):
    """As many rows like this one, of its trial and epochs."""
    columns = [column.name for column in Trial.__table__.columns]
    row = {name: getattr(trial, name) for name in columns}
    row |= {"state": State.PRUNED, "best_epoch": 3}
    made = [{**row, "id": trial.id + at, "number": at, "value": 0.5 + at / 30_000} for at in range(1, count)]
    session.execute(insert(Trial), made)
    metrics = [{"val_accuracy": 0.5, "val_loss": 0.1, "train_loss": 0.1}] * 3
    session.execute(
        insert(Epoch),
        [
            {"trial_id": each["id"], "number": at, "attempt": 1, "metrics": told, "seconds": 0.5, "recorded_at": 1e9}
            for each in made
            for at, told in enumerate(metrics, 1)
        ],
    )

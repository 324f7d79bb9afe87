"""What the command line shows of the record: a trial in full, and the end of a sweep."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from orchestrator import views
from orchestrator.errors import UsageError
from orchestrator.monitor import Outcome
from orchestrator.settings import Settings
from orchestrator.store import Record
from orchestrator.tables import PARENT, Export, MirrorRun, Reason, State
from recipes.speed import SPEED_METRICS
from tests.support.sweeps import Sweep, settings_of
from tests.support.trained import STRONG, add_study


@pytest.fixture
def sweep(tmp_path):
    """A study `s` whose record is in a folder; nothing mirrors it."""
    settings = Settings(home=tmp_path, record_url=f"sqlite:///{tmp_path / 'orch.db'}", tracking_uri="")
    made = Sweep(settings)
    yield made
    made.close()


def outcome(sweep, **changed):
    told = {"was_complete": False, "timed_out": False, "mirror_lag": 0, **changed}
    return Outcome(study=sweep.study, **told)


def summary(sweep, **changed):
    return "\n".join(views.summarise(sweep.record, sweep.settings, sweep.study).lines(outcome(sweep, **changed)))


# -- the end of a sweep


def test_summary_names_the_winner_its_files_and_what_to_type_next(sweep):
    for _ in range(3):
        winner = sweep.run()
    sweep.export(winner)
    assert summary(sweep).splitlines() == [
        "winner    trial 2, val_accuracy 0.5230",
        f"files     {sweep.settings.attempt_folder('s', 2, 1)}",
        "ONNX      differs from PyTorch by at most 1.0e-07",
        "next      orch ui  ·  orch promote s",
    ]


def test_summary_without_a_winner_promises_nothing(sweep):
    sweep.run(State.PRUNED)
    assert summary(sweep) == ""


def test_summary_of_a_run_cut_short_says_how_to_go_on(sweep):
    sweep.run()
    assert summary(sweep, timed_out=True).splitlines()[-1] == "next      orch resume s"


def test_summary_counts_errors_and_lost_trials_only(sweep):
    sweep.run()
    for reason in (Reason.ERROR, Reason.LOST, Reason.OOM, Reason.DIVERGED):
        sweep.end(sweep.start(), State.FAILED, reason=reason, message="no")
    assert "failed    2 trial(s); the reason of one: orch show s/NUMBER" in summary(sweep)
    assert views.summarise(sweep.record, sweep.settings, sweep.study).num_broken == 2


def test_summary_says_when_mirrors_are_behind(sweep):
    assert summary(sweep, mirror_lag=3) == "mirrors   are behind the record; bring them up with: orch sync s"


def test_commands_to_type_quote_a_name_that_a_shell_would_act_upon(tmp_path):
    settings = Settings(home=tmp_path, record_url=f"sqlite:///{tmp_path / 'orch.db'}", tracking_uri="")
    sweep = Sweep(settings, name="$(reboot); x")
    sweep.run()
    sweep.end(sweep.start(), State.FAILED, reason=Reason.ERROR, message="no")
    for text in (summary(sweep, mirror_lag=1), summary(sweep, timed_out=True)):
        assert "$(reboot)" in text
        assert "$(reboot); x" not in text.replace("'$(reboot); x'", "").replace(str(tmp_path), "").replace(
            "/trials/$(reboot); x/", ""
        )
    sweep.close()


# -- one trial


@pytest.fixture
def known(sweep):
    sweep.run()
    sweep.run()
    with sweep.record.write() as session:
        session.add(MirrorRun(study_id=sweep.study.id, trial=1, run_id="ab12"))
        session.add(MirrorRun(study_id=sweep.study.id, trial=PARENT, run_id="parent"))
    return sweep


@pytest.mark.parametrize(("reference", "number"), [("0", 0), ("1", 1), ("01", 1), ("s/1", 1), ("ab12", 1)])
def test_trial_is_found_by_number_study_or_run(known, reference, number):
    study, found = views.find_trial(known.record, reference)
    assert (study.name, found) == ("s", number)


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("2", "unknown trial of s '2'; known: 0, 1"),
        ("s/99999999999999999999", "unknown trial of s"),
        ("z/1", "unknown study 'z'"),
        ("s/", "unknown trial 's/'; expected NUMBER, STUDY/NUMBER or an MLflow run id"),
        ("s/one", "unknown trial 's/one'; expected"),
        ("cd34", "unknown trial 'cd34'; expected"),
        ("parent", "unknown trial 'parent'; expected"),
        ("-1", "unknown trial '-1'; expected"),
        ("", "unknown trial ''; expected"),
    ],
)
def test_trial_that_is_not_there_is_refused(known, reference, complaint):
    with pytest.raises(UsageError) as refused:
        views.find_trial(known.record, reference)
    assert str(refused.value).startswith(complaint)


def test_details_of_a_trial_are_all_that_the_record_holds(known):
    trial = known.record.trial(known.study.id, 1)
    known.export(trial)
    shown = views.trial_details(known.record, known.settings, known.study, 1)
    assert json.loads(json.dumps(shown)) == shown
    assert shown["folder"] == str(known.settings.attempt_folder("s", 1, 1))
    assert (shown["run_id"], shown["state"], shown["best_epoch"]) == ("ab12", "complete", 3)
    assert [epoch["number"] for epoch in shown["epochs"]] == [1, 2, 3]
    assert shown["config"] == trial.config
    assert shown["attempts"] == [{"number": 1, "worker": "host/cpu0", "state": "complete", "reason": None}]
    assert list(shown["files"]) == ["best.safetensors"]
    assert shown["onnx"]["max_difference"] == 1e-7


def test_details_tell_the_size_of_the_model_once(tmp_path):
    settings = settings_of(tmp_path)
    add_study(settings, [STRONG], export=False)
    with closing(Record.open(settings.record_url)) as record:
        shown = views.trial_details(record, settings, record.study("cnn-digits"), 0)
    # One convolution a stage, of 16 and 32 channels.
    assert shown["model"] == {
        "num_parameters": 9 * 16 + 9 * 16 * 32 + 2 * (16 + 32) + 33 * 10,
        "flops": 2 * (64 * 9 * 16 + 16 * 9 * 16 * 32 + 32 * 10),
    }
    assert [list(epoch["metrics"]) for epoch in shown["epochs"]] == [
        ["train_loss", "val_loss", "val_accuracy", "lr"]
    ] * 2
    with closing(Record.open(settings.record_url)) as record:
        last = record.epochs(record.study("cnn-digits").id)[0][-1].metrics
    assert shown["speed"] == {name: last[name] for name in SPEED_METRICS if name in last}
    assert shown["speed"]["images_per_second"] > 0


def test_details_of_a_failed_trial_hold_its_reason_and_traceback(sweep):
    trial = sweep.start()
    sweep.record.end_attempt(
        sweep.lease, trial, 1, State.FAILED, trial_state=State.WAITING, reason=Reason.ERROR, traceback="the first …"
    )
    sweep.record.start_attempt(sweep.lease, trial, "host/cpu1")
    sweep.record.end_attempt(
        sweep.lease, trial, 2, State.FAILED, reason=Reason.ERROR, message="ValueError: no", traceback="Traceback …\n"
    )
    shown = views.trial_details(sweep.record, sweep.settings, sweep.study, 0)
    assert (shown["reason"], shown["message"], shown["traceback"]) == ("error", "ValueError: no", "Traceback …\n")
    assert [attempt["reason"] for attempt in shown["attempts"]] == ["error", "error"]
    assert shown["folder"] == str(sweep.settings.attempt_folder("s", 0, 2))
    assert (shown["files"], shown["onnx"], shown["epochs"]) == ({}, None, [])


def test_details_say_why_there_is_no_onnx_file(sweep):
    trial = sweep.run()
    failed = {"file": "", "sha256": "", "size_bytes": 0, "max_difference": 0.0, "error": "no such operator"}
    sweep.record.add_export(sweep.lease, trial, Export(trial_id=trial.id, recorded_at=1.0, **failed))
    assert views.trial_details(sweep.record, sweep.settings, sweep.study, 0)["onnx"]["error"] == "no such operator"


def test_details_of_a_trial_that_waits_have_no_folder(sweep):
    sweep.record.add_trial(sweep.lease, sweep.study.id, params={}, config={}, threads=1)
    shown = views.trial_details(sweep.record, sweep.settings, sweep.study, 0)
    assert (shown["folder"], shown["attempts"]) == ("", [])

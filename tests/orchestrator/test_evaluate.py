from __future__ import annotations

import shutil
from contextlib import closing

import pytest
from sqlalchemy import select

from orchestrator.errors import UnknownNameError, UsageError
from orchestrator.evaluate import evaluate
from orchestrator.store import Record
from orchestrator.tables import Trial
from orchestrator.views import find_study_or_trial
from tests.support.sweeps import settings_of


def test_best_trial_has_the_accuracy_on_record(two_trials):
    found = evaluate(two_trials, "cnn-digits")
    with closing(Record.open(two_trials.record_url)) as record:
        trial = record.trials(record.study("cnn-digits").id)[1]
    assert (found["trial"], found["split"], found["images"]) == (1, "val", 360)
    assert found["metrics"]["accuracy"] == pytest.approx(trial.value, abs=1 / 360)
    assert sum(map(sum, found["confusion"])) == 360
    assert [row["class"] for row in found["classes"]] == [str(digit) for digit in range(10)]
    assert all(number > 0 for _, _, number in found["mistakes"])


@pytest.mark.parametrize(("split", "images"), [("train", 1078), ("test", 359)])
def test_other_splits_are_taken_when_asked_for(two_trials, split, images):
    found = evaluate(two_trials, "cnn-digits", 1, split=split)
    assert found["images"] == images
    assert found["metrics"]["accuracy"] > 0.9


def test_trial_is_taken_by_its_number(two_trials):
    assert evaluate(two_trials, "cnn-digits", 0)["metrics"]["accuracy"] < 0.5


def test_split_and_study_that_are_not_there_are_one_line(two_trials):
    with pytest.raises(UsageError, match="split 'validation' is none of train, val, test"):
        evaluate(two_trials, "cnn-digits", split="validation")
    with pytest.raises(UnknownNameError, match="did you mean 'cnn-digits'"):
        evaluate(two_trials, "cnn-digit")


def test_data_that_are_gone_are_one_line(two_trials_home, tmp_path):
    copy = settings_of(tmp_path / "mlruns")
    shutil.copytree(two_trials_home, copy.home)
    with closing(Record.open(copy.record_url)) as record, record.write() as session:
        for trial in session.scalars(select(Trial)):
            trial.config = {**trial.config, "data": f"folder:{tmp_path / 'gone'}"}
    with pytest.raises(UsageError, match=r"folder .*gone does not exist"):
        evaluate(copy, "cnn-digits")


def test_flipped_byte_is_named(two_trials, two_trials_home, tmp_path):
    copy = tmp_path / "mlruns"
    shutil.copytree(two_trials_home, copy)
    (path,) = copy.glob("trials/cnn-digits/0001/*/best.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UsageError, match="SHA-256"):
        evaluate(settings_of(copy), "cnn-digits")


@pytest.mark.parametrize(("reference", "expected"), [("", None), ("cnn-digits", None), ("1", 1), ("cnn-digits/0", 0)])
def test_study_or_trial_is_found(two_trials, reference, expected):
    with closing(Record.open(two_trials.record_url)) as record:
        study, number = find_study_or_trial(record, reference)
    assert (study.name, number) == ("cnn-digits", expected)


@pytest.mark.parametrize(("reference", "message"), [("cnn-digts", "did you mean 'cnn-digits'"), ("9", "known: 0, 1")])
def test_neither_study_nor_trial_is_one_line(two_trials, reference, message):
    with closing(Record.open(two_trials.record_url)) as record, pytest.raises(UsageError, match=message):
        find_study_or_trial(record, reference)

"""Trials trained again in a real worker, from what is on record of them."""

from __future__ import annotations

import tempfile
from contextlib import closing

import pytest

from orchestrator.errors import UnavailableError, UnknownNameError, UsageError
from orchestrator.reproduce import reproduce
from orchestrator.store import Record
from orchestrator.tables import Attempt, Epoch, Launch, Trial
from tests.support.trained import STRONG, copy_home, make_home

pytestmark = pytest.mark.slow
NAME = "cnn-digits"


@pytest.fixture(scope="module")
def template(empty_home, tmp_path_factory):
    home = tmp_path_factory.mktemp("reproduce") / "mlruns"
    return make_home(home, empty_home, [{**STRONG, "epochs": 3}], export=False)


@pytest.fixture
def settings(template, tmp_path, monkeypatch):
    return copy_home(template, tmp_path, monkeypatch)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def change(settings, kind, key, **values):
    """Overwrite columns of a row of the record."""
    with closing(Record.open(settings.record_url)) as record, record.write() as session:
        row = session.get_one(kind, key)
        for name, value in values.items():
            setattr(row, name, {**getattr(row, name), **value} if isinstance(value, dict) else value)


def test_trial_trained_again_has_the_same_bits_and_leaves_nothing(settings, temporary):
    lines = []
    found = reproduce(settings, NAME, 0, tell=lines.append)
    assert (found.trial, found.verdict, found.epochs, found.first_other_epoch) == (f"{NAME}/0", "same bits", 3, None)
    assert {"train_loss", "val_loss", "val_accuracy", "lr", "num_parameters"} <= set(found.metrics)
    assert not {"images_per_second", "peak_memory_bytes"} & set(found.metrics)
    assert (len(found.same), found.differs, len(lines)) == (6, {}, 3)
    assert not list(temporary.iterdir())
    assert "equal to the last digit" in found.line()


def test_first_epochs_are_those_of_the_whole_schedule(settings):
    found = reproduce(settings, NAME, 0, check=1)
    assert (found.verdict, found.epochs) == ("same bits", 1)


def test_what_differs_is_named_though_the_bits_are_the_same(settings):
    with closing(Record.open(settings.record_url)) as record:
        (launch,) = record.launches(1)
    packages = {**launch.provenance["packages"], "torch": "2.14.0"}
    hardware = {**launch.provenance["hardware"], "cpu": "another"}
    other = {"training_code": "x", "commit": "0123456789abcdef", "packages": packages, "hardware": hardware}
    change(settings, Launch, launch.id, provenance={**other, "data_fingerprint": "0" * 64})
    found = reproduce(settings, NAME, 0, check=1)
    assert found.verdict == "same bits"
    assert set(found.same) == {"seed", "threads"}
    assert found.differs["code"].startswith("the training library changed; commit 0123456789ab -> ")
    assert found.differs["packages"].startswith("torch 2.14.0 -> 2.")
    assert found.differs["data"].startswith("data_fingerprint 000000000000 -> ")
    assert found.differs["device"].startswith("another -> ")


def test_losses_that_are_a_little_off_are_within_tolerance_and_others_are_not(settings):
    with closing(Record.open(settings.record_url)) as record:
        loss = record.epochs(1)[0][1].metrics["val_loss"]
    change(settings, Epoch, (1, 2), metrics={"val_loss": loss * 1.001})
    found = reproduce(settings, NAME, 0)
    assert (found.verdict, found.first_other_epoch, found.holds) == ("within tolerance", 2, True)
    assert found.largest_difference == pytest.approx(0.001, rel=0.01)
    change(settings, Trial, 1, config={"lr": 1e-3})
    found = reproduce(settings, NAME, 0, check=2)
    assert (found.verdict, found.first_other_epoch, found.holds) == ("other losses", 1, False)
    assert "from epoch 1 of 2 on; a loss is off by" in found.line()


def test_trial_of_before_launches_were_kept_is_compared_by_what_there_is(settings):
    change(settings, Attempt, (1, 1), launch=None)
    found = reproduce(settings, NAME, 0, check=1)
    assert found.verdict == "same bits"
    assert "data" in found.same
    assert "code" in found.same


def test_what_cannot_be_trained_again_is_one_line(settings, temporary):
    with pytest.raises(UnknownNameError, match="did you mean 'cnn-digits'"):
        reproduce(settings, "cnn-digit", 0)
    with pytest.raises(UsageError, match="trial 7 of 'cnn-digits' has no epochs to compare"):
        reproduce(settings, NAME, 7)
    change(settings, Trial, 1, config={"data": "folder:/nowhere"})
    with pytest.raises(UnavailableError, match=r"cannot be trained again: .*/nowhere does not exist"):
        reproduce(settings, NAME, 0)
    assert not list(temporary.iterdir())

"""What TensorBoard shows of a study."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from urllib.request import Request, urlopen

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from orchestrator.mirror import sync
from orchestrator.tables import State
from tests.support.orch import wait_until
from tests.support.sweeps import expected, in_tensorboard, value_of


def folder_of(sweep, number=0):
    return sweep.settings.tensorboard / "s" / f"{number:04d}"


def events_of(sweep, number=0):
    return EventAccumulator(str(folder_of(sweep, number))).Reload()


def test_scalars_carry_epoch_and_time(sweep):
    trial = sweep.start()
    sweep.train(trial, 1, 2, 3)
    sync(sweep.settings)
    scalars = events_of(sweep).Scalars("val_accuracy")
    epochs = sweep.record.epochs(sweep.study.id)[0]
    assert [(s.step, s.wall_time) for s in scalars] == [(e.number, pytest.approx(e.recorded_at)) for e in epochs]


@pytest.mark.slow
def test_restart_goes_on_in_a_new_file(sweep):
    trial = sweep.start()
    for epoch in (1, 2, 3):
        sweep.train(trial, epoch)
        sync(sweep.settings)
    sweep.end(trial)
    sync(sweep.settings)
    sync(sweep.settings)
    assert len(list(folder_of(sweep).iterdir())) == 4
    assert in_tensorboard(sweep.settings) == expected({0: 3})
    assert [s.value for s in events_of(sweep).Scalars("best_val_accuracy")] == [
        pytest.approx(value_of(0, 3, "val_accuracy"))
    ]


@pytest.mark.parametrize("cut", [1, 5, 40, 200])
def test_record_cut_off_by_a_crash_is_written_again(sweep, cut):
    """Also if the cursor is past it: a power cut can take what was not synced."""
    trial = sweep.start()
    sweep.train(trial, 1, 2)
    sync(sweep.settings)
    (file,) = folder_of(sweep).iterdir()
    os.truncate(file, file.stat().st_size - cut)
    lost = 2 - len(in_tensorboard(sweep.settings)[0])
    assert lost == (1 if cut < 100 else 2)
    sweep.train(trial, 3)
    sync(sweep.settings)
    assert in_tensorboard(sweep.settings) == expected({0: 3})


def test_hyperparameters_and_the_result_are_there_once(sweep):
    sweep.run(lr=0.01)
    sweep.run(State.FAILED, num_epochs=1)
    sync(sweep.settings)
    sync(sweep.settings)
    found = events_of(sweep).PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG])
    assert start.group_name == "s #0"
    assert start.hparams["lr"].number_value == 0.01
    assert start.hparams["optimizer"].string_value == "sgd"
    ends = [events_of(sweep, n).PluginTagToContent("hparams")[metadata.SESSION_END_INFO_TAG] for n in (0, 1)]
    statuses = [metadata.parse_session_end_info_plugin_data(end).status for end in ends]
    assert statuses == [1, 2]  # success, failure
    assert not [tag for tag in events_of(sweep, 1).Tags()["scalars"] if tag.startswith("best")]


@pytest.mark.slow
def test_tensorboard_itself_compares_the_trials(sweep, tmp_path):
    for lr in (0.01, 0.02, 0.03):
        sweep.run(lr=lr)
    sync(sweep.settings)
    log = (tmp_path / "log").open("w+")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(sweep.settings.tensorboard), "--port", "0"]
    process = subprocess.Popen([*command, "--load_fast", "false"], stdout=log, stderr=log)
    try:
        wait_until(lambda: re.search(r"http://\S+:(\d+)/", (tmp_path / "log").read_text()), 60, "TensorBoard")
        address = re.search(r"http://\S+:\d+/", (tmp_path / "log").read_text())[0]
        wait_until(lambda: len(json.load(urlopen(f"{address}data/runs"))) == 3, 30, "its runs")
        runs = json.load(urlopen(f"{address}data/runs"))
        assert sorted(runs) == ["s/0000", "s/0001", "s/0002"]
        scalars = json.load(urlopen(f"{address}data/plugin/scalars/scalars?run=s%2F0001&tag=val_loss"))
        assert [(step, round(value, 4)) for _, step, value in scalars] == expected({1: 3})[1]
        asked = {
            "experimentName": "",
            "allowedStatuses": ["STATUS_SUCCESS"],
            "colParams": [],
            "startIndex": 0,
            "sliceSize": 9,
        }
        request = Request(f"{address}data/plugin/hparams/session_groups", json.dumps(asked).encode())
        request.add_header("Content-Type", "application/json")
        groups = json.load(urlopen(request))["sessionGroups"]
        shown = {(group["name"], group["hparams"]["lr"]) for group in groups}
        assert shown == {("s #0", 0.01), ("s #1", 0.02), ("s #2", 0.03)}
        metrics = {m["name"]["tag"]: m["value"] for m in groups[0]["metricValues"]}
        assert metrics["best_val_accuracy"] == pytest.approx(value_of(0, 3, "val_accuracy"))
    finally:
        process.kill()
        process.wait()
        log.close()

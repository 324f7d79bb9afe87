from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from recipes import loop, mlp, speed
from recipes.config import METRICS, make
from recipes.loop import Attempt
from recipes.model_file import read_model
from recipes.speed import ALL_SPEED_METRICS, NUM_TIMED, NUM_WARM_UP, SPEED_METRICS, PeakMemory, results

CPU = torch.device("cpu")
MEBIBYTE = 2**20


def configured(**values):
    return make(mlp.Config, {"epochs": 2, "batch_size": 8, **values})


class Slow(nn.Linear):
    """Takes a known time a step in training, and far longer in validation."""

    def forward(self, x):
        time.sleep(0.02 if self.training else 0.5)
        return super().forward(x)


def test_steps_are_timed_without_the_validation(features):
    (epoch,) = loop.fit(configured(epochs=1), lambda *_: Slow(4, 4), recipe="mlp", dataset=features)
    assert 0.02 <= epoch.metrics["step_seconds"] < 0.1
    assert epoch.metrics["images_per_second"] == pytest.approx(8 / epoch.metrics["step_seconds"]), "32 images, 4 steps"


def test_every_epoch_has_all_three_and_results_leave_them_out(features, tmp_path):
    attempt = Attempt(folder=tmp_path)
    epochs = list(loop.fit(configured(), lambda *_: nn.Linear(4, 4), attempt, recipe="mlp", dataset=features))
    assert all(set(SPEED_METRICS) <= epoch.metrics.keys() for epoch in epochs)
    assert list(results(epochs[1].metrics)) == ["train_loss", "val_loss", "val_accuracy", "lr"]
    metadata, _ = read_model(tmp_path / "best.safetensors")
    assert not set(SPEED_METRICS) & metadata["metrics"].keys(), "equal models are equal files"


def test_time_of_one_image_is_told_once_and_changes_no_result(features):
    def train(**values):
        return list(loop.fit(configured(dropout=0.2, **values), mlp.build_model, recipe="mlp", dataset=features))

    first, second = train(latency=True)
    assert 0 < first.metrics["latency_ms"] < 1000
    assert "latency_ms" not in second.metrics
    assert [results(epoch.metrics) for epoch in (first, second)] == [results(epoch.metrics) for epoch in train()]
    assert set(first.metrics) == {*METRICS["classification"], *ALL_SPEED_METRICS}, "what objectives may name"


def test_time_of_one_image_is_that_of_the_validation(features):
    asked = []

    class Watched(nn.Linear):
        def forward(self, x):
            asked.append((self.training, len(x)))
            return super().forward(x)

    list(loop.fit(configured(epochs=1, latency=True), lambda *_: Watched(4, 4), recipe="mlp", dataset=features))
    assert asked[-NUM_WARM_UP - NUM_TIMED :] == [(False, 1)] * (NUM_WARM_UP + NUM_TIMED)


PEAKS = """
import torch
from recipes.speed import PeakMemory
large = torch.ones(96 * 2**20 // 4)
del large
memory = PeakMemory(torch.device("cpu"))
before = memory.metrics()["peak_memory_bytes"]
large = torch.ones(48 * 2**20 // 4)
print(int(before), int(memory.metrics()["peak_memory_bytes"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell")
def test_peak_memory_is_that_of_the_training_and_not_of_what_was_before(run_python):
    # In a process of its own: what a larger one has freed it may give again without growing.
    before, after = map(int, run_python(PEAKS).split())
    assert 40 * MEBIBYTE < after - before < 64 * MEBIBYTE
    assert before < 8 * 2**30, "in bytes"


def test_peak_memory_that_the_system_does_not_tell_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "PROCESS", tmp_path / "absent")
    assert PeakMemory(CPU).metrics() == {}
    monkeypatch.setattr(speed, "PROCESS", tmp_path)
    memory = PeakMemory(CPU)  # which may write there, as to the file of the system
    (tmp_path / "status").write_text("VmPeak:\t 1 kB\n")
    assert memory.metrics() == {}
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2048 kB\n")
    assert memory.metrics() == {"peak_memory_bytes": 2 * MEBIBYTE}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_peak_memory_that_may_not_be_reset_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "clear_refs").touch(mode=0o444)
    (tmp_path / "status").write_text("VmHWM:\t    2048 kB\n")
    monkeypatch.setattr(speed, "PROCESS", tmp_path)
    assert PeakMemory(CPU).metrics() == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_of_a_gpu_begins_with_the_training():
    device = torch.device("cuda")
    large = torch.ones(96 * MEBIBYTE // 4, device=device)
    del large
    memory = PeakMemory(device)
    before = memory.metrics()["peak_memory_bytes"]
    kept = torch.ones(48 * MEBIBYTE // 4, device=device)
    assert memory.metrics()["peak_memory_bytes"] - before == kept.nbytes

"""The coordinator with many workers that do nothing, as the benchmarks run it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from orchestrator import coordinator
from orchestrator.live import PlainMonitor
from orchestrator.store import Record
from tests.support.sweeps import settings_of


@pytest.fixture
def simulated(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("simulated")


@pytest.mark.parametrize("pruner", ["asha", "asha-pause"])
def test_sweep_over_a_given_executor_ends_every_trial_at_a_rung_or_the_end(simulated, tmp_path, pruner):
    settings = settings_of(tmp_path)
    study = simulated.load_study(trials=120, sampler="random", pruner=pruner)
    executor = simulated.SimulatedExecutor(40, simulated.Watch())
    coordinator.run(study, settings, PlainMonitor(), executor=executor, make_mirror=simulated.NoMirror)
    record = Record.open(settings.record_url)
    row = record.study(study.name)
    trials, epochs = record.trials(row.id), record.epochs(row.id)
    record.close()
    assert [trial.number for trial in trials] == list(range(120))
    assert {trial.state.value for trial in trials} == {"complete", "pruned"}
    lengths = {trial.state.value: set() for trial in trials}
    for trial in trials:
        assert [epoch.number for epoch in epochs[trial.number]] == list(range(1, len(epochs[trial.number]) + 1))
        lengths[trial.state.value].add(len(epochs[trial.number]))
    assert lengths == {"complete": {10}, "pruned": {2, 4} if pruner == "asha" else {1, 3, 9}}
    levels = {trial.number: epochs[trial.number][0].metrics["val_accuracy"] for trial in trials}
    assert len(epochs[max(levels, key=levels.__getitem__)]) == 10, "whose values are always the best goes on"

"""What a sweep would do and cost, without anything of it being recorded."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time

import pytest

from orchestrator import cli, plan, probe, study
from orchestrator.errors import UsageError
from orchestrator.forkserver import worker_server
from orchestrator.settings import HOME_VARIABLE
from orchestrator.tables import State
from tests.support.orch import COUNTING, Orch
from tests.support.sweeps import settings_of

HIDDEN = "hidden=range(4,16)"


@pytest.fixture(scope="module")
def server():
    """So that torch is imported once."""
    with worker_server() as made:
        yield made


@pytest.fixture
def settings(tmp_path):
    return settings_of(tmp_path / "mlruns")


def load(*keys):
    return study.load([f"recipe={COUNTING}", "study=s", HIDDEN, "workers=2", *keys])


def figures(planned):
    return {figure.name: figure for figure in planned.figures}


@pytest.mark.slow
def test_plan_tells_what_is_searched_and_what_it_costs_and_records_nothing(settings, server):
    keys = ("optimizer=sgd,adamw", "trials=40", "epochs=4", "pruner=none", "export=best")
    planned = plan.make(load(*keys), settings, server)
    assert not settings.home.exists()
    assert (planned.trials, planned.workers, planned.num_ended, planned.first_trial) == (40, 2, 0, 0)
    assert planned.space == {"hidden": "4 to 15 step 1", "optimizer": "sgd, adamw"}
    assert len(planned.suggestions) == plan.NUM_SUGGESTED
    assert planned.notes == []
    assert all(row["num_epochs"] == 3 and row["complaint"] == "" for row in planned.tried)
    weights = [row["num_parameters"] for row in planned.tried]
    assert [row["params"]["hidden"] * (64 + 1 + 10) + 10 for row in planned.tried] == weights
    assert (weights[0], weights[1]) == (min(weights), max(weights)), "the smallest and the largest come first"

    shown = figures(planned)
    assert (shown["parameters"].low, shown["parameters"].high) == (weights[0], weights[1])
    assert shown["epochs"].high == 40 * 4
    epoch, time = shown["seconds an epoch"], shown["time"]
    assert 0 < epoch.low <= epoch.high < 5
    assert (time.low, time.high) == pytest.approx((epoch.low * 80, epoch.high * 80))
    peaks = [row["memory_bytes"] for row in planned.tried]
    assert shown["memory"].high == 2 * max(peaks) > 2 * 50e6
    copies = 40 + 2 * plan.GENERATIONS * plan.COPIES + 1
    assert shown["disk"].high == 4 * weights[1] * copies
    measured = {name for name, figure in shown.items() if figure.basis == "measured"}
    assert measured == {"parameters", "operations an image", "seconds an epoch", "memory"}
    assert json.loads(json.dumps(planned.to_json(), allow_nan=False))["suggestions"] == planned.suggestions


@pytest.mark.slow
def test_large_data_are_tried_on_a_part_and_reckoned_for_all(settings, server):
    few = load("batch_size=8", "trials=5")
    part = probe.part_of(few, [{"batch_size": 8}])
    assert part.limit < 300
    assert part.factor == pytest.approx(1077 / (0.6 * part.limit), rel=0.02)
    assert part.missing_bytes == pytest.approx((1797 - part.limit) * 0.8 * 64, rel=0.02)
    planned = plan.make(few, settings, server)
    assert f"on {part.limit} of the images" in figures(planned)["seconds an epoch"].how
    assert plan._of_all(probe.Tried(epoch_seconds=2.0, memory_bytes=100), part) == probe.Tried(
        epoch_seconds=2 * part.factor, memory_bytes=100 + part.missing_bytes
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "complaint"),
    [("raise", "RuntimeError: as the test asked"), ("exit", "SystemExit: 3"), ("kill", "its process died")],
)
def test_what_goes_wrong_in_the_probe_is_said(settings, server, fault, complaint):
    planned = plan.make(load("trials=3", f"fault={fault}", "fault_epoch=1"), settings, server)
    assert planned.notes == [f"5 of 5 configurations tried: {complaint}"]
    assert "time" not in figures(planned)
    assert figures(planned)["parameters"].high > 0


def test_epoch_that_takes_too_long_ends_with_its_process(server):
    long = load("pause_seconds=60")
    (slot, *_) = plan.layout(long, 2)
    probe.sizes(long.recipe, [], slot, server, 1.0)  # the server has started then
    began = time.monotonic()
    tried = probe.epochs(long.recipe, long.config({"hidden": 4}), slot, server, 0.5)
    assert time.monotonic() - began < 5
    assert tried == probe.Tried(complaint="no epoch ended in 0.5 s")


def test_shortage_of_disk_is_one_line(settings, server):
    planned = plan.make(load("trials=10000000000", "sampler=random", "pruner=threshold:0.5"), settings, server)
    (note,) = planned.notes
    assert note.startswith("not enough disk: ")
    assert note.endswith("B are free")
    assert "may stop some" in figures(planned)["epochs"].how


def test_rest_of_a_study_is_planned_by_its_own_pruning(settings, server, sweep):
    for _ in range(4):
        sweep.run(State.PRUNED, num_epochs=1)
    sweep.run(num_epochs=3)
    begun = plan._Begun(
        study=load("trials=25", "epochs=3"),
        trials=sweep.record.trials(sweep.study.id),
        epochs=sweep.record.epochs(sweep.study.id),
        notes=[],
    )
    assert plan._share(begun) == (pytest.approx((4 + 3) / 5 / 3), "as in the 5 trials so far")
    (epochs, *_) = plan._times(begun, [], plan._Measured(sizes=[], tried=[], part=probe.Part(), threads=1), 2)
    assert epochs.high == pytest.approx(20 * 7 / 5)
    few = dataclasses.replace(begun, study=load("trials=25", "epochs=3", "max_epochs_total=10"))
    assert plan._times(few, [], plan._Measured(sizes=[], tried=[], part=probe.Part(), threads=1), 2)[0].high == 10 - 7


def test_another_study_of_that_name_is_refused(sweep, server):
    with pytest.raises(UsageError, match="study 's' exists and differs"):
        plan.make(load("trials=3"), sweep.settings, server)


def test_further_seeds_of_leaders_are_planned_too(sweep):
    for _ in range(2):
        sweep.run(num_epochs=3)
    trials = sweep.record.trials(sweep.study.id)
    trials[1].confirms = 0
    sure = load("trials=4", "epochs=3", "confirm=1x3", "pruner=none", "seed=0")
    begun = plan._Begun(study=sure, trials=trials, epochs=sweep.record.epochs(sweep.study.id), notes=[])
    (epochs, *_) = plan._times(begun, [], plan._Measured(sizes=[], tried=[], part=probe.Part(), threads=1), 2)
    assert epochs.high == (3 + 2) * 3, "3 of 4 trials and 2 of 3 seeds are left"
    assert len(plan._suggestions(begun)) == 3


def test_record_that_cannot_be_reached_is_no_empty_one(settings, server):
    wrong = dataclasses.replace(settings, record_url="no url")
    with pytest.raises(UsageError, match="URL is malformed"):
        plan.make(load("trials=3"), wrong, server)


# -- commands


@pytest.fixture
def orch(tmp_path):
    return Orch(tmp_path)


@pytest.fixture
def answered(monkeypatch, tmp_path, capfd):
    """Run `orch` in this process, with something typed; give its exit code, output and errors."""

    def run(typed, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "mlruns"))
        monkeypatch.setattr(sys, "argv", ["orch", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capfd.readouterr()

    return run


@pytest.mark.slow
@pytest.mark.parametrize("typed", ["", "n\n"])
def test_sweep_asks_first_and_starts_nothing_without_an_answer(answered, tmp_path, typed):
    code, out, err = answered(typed, "sweep", "--plan", f"recipe={COUNTING}", "study=s", HIDDEN, "trials=4")
    assert code == 2
    assert "Start s?" in err
    assert err.endswith("orch: s was not started\n")
    assert "4 to 15 step 1" in out
    assert "seconds an epoch" in out
    assert not list(tmp_path.rglob("orch.db"))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_sweep_draws_what_was_planned(orch, sampler):
    def arguments(trials):
        return orch.counting(
            "lr=tag(log,interval(1e-3,1e-1))", sampler=sampler, workers=2, trials=trials, epochs=1, journal=""
        )

    def drawn(numbers):
        configs = [orch.json("show", f"s/{number}")["config"] for number in numbers]
        return [{name: config[name] for name in ("hidden", "lr")} for config in configs]

    planned = orch.json("plan", *arguments(4)[1:])
    assert not (orch.home / "orch.db").exists()
    orch.here(*arguments(4))
    num_sure = 4 if sampler == "random" else 2
    assert drawn(range(num_sure)) == planned["suggestions"][:num_sure]

    rest = orch.json("plan", *arguments(6)[1:])
    assert (rest["num_ended"], rest["first_trial"], len(rest["suggestions"])) == (4, 4, 2)
    orch.here(*arguments(6))
    assert drawn([4]) == rest["suggestions"][:1]


@pytest.mark.slow
def test_sweep_starts_when_somebody_says_so(answered, tmp_path):
    keys = [f"recipe={COUNTING}", "study=s", HIDDEN, "trials=2", "epochs=1", "export=none"]
    code, out, err = answered("y\n", "sweep", "--plan", *keys)
    assert code == 0, err
    assert out.index("seconds an epoch") < out.index("winner")

"""The coordinator through the installed `orch`: what a study is, when it is complete, and what may change."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orchestrator import compare
from orchestrator.recorded import from_record
from orchestrator.search import Search
from orchestrator.tables import State
from recipes import mlp
from recipes.config import make
from tests.support.orch import COUNTING, ORCH, Orch, kill, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def orch(tmp_path):
    return Orch(tmp_path)


def test_study_is_completed_once_extended_and_kept_to_its_identity(orch):
    arguments = orch.counting(trials=3, epochs=2)
    first = orch.here(*arguments)
    assert "winner" in first.stdout
    assert "orch promote s" in first.stdout
    assert "study s is complete: 3 trials" in orch.here(*arguments).stdout
    assert orch.begun().total() == 6, "nothing was trained again"

    refused = orch.here(*arguments, "lr=0.5", code=2)
    assert "fixed.lr: 0.003 -> 0.5" in refused.stderr
    assert orch.begun().total() == 6

    params = [orch.json("show", f"s/{trial}")["config"]["hidden"] for trial in range(3)]
    orch.here(*orch.counting(trials=5, epochs=2))
    assert orch.recorded() == {trial: [1, 2] for trial in range(5)}
    assert [orch.json("show", f"s/{trial}")["config"]["hidden"] for trial in range(3)] == params


def test_resume_refuses_a_recipe_that_changed(orch, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(Path(COUNTING).read_text())
    arguments = ["sweep", f"recipe={mine}", "study=s", "hidden=4,8", "epochs=2", "trials=2", "export=none"]
    orch.here(*arguments)
    mine.write_text(mine.read_text() + "# changed\n")
    refused = orch.here("resume", "s", "trials=3", code=2)
    assert refused.stderr.count("\n") == 1
    assert "code: " in refused.stderr


def test_same_seed_draws_the_same_parameters(orch, tmp_path):
    drawn = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        here = Orch(tmp_path / folder)
        here.here(*here.counting("lr=tag(log,interval(1e-3,1e-1))", trials=3, epochs=1, sampler="random", seed=7))
        drawn.append([here.json("show", f"s/{trial}")["config"]["lr"] for trial in range(3)])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3


def test_small_space_ends_early_and_says_so(orch):
    arguments = orch.counting("hidden=4,5,6", trials=8, epochs=1, sampler="grid", workers=2)
    arguments = [key for key in arguments if key != "hidden=range(4,16)"]
    shown = orch.here(*arguments).stdout
    assert "the space has no more than 3 configurations, fewer than trials=8; each is run once" in shown
    assert sorted(orch.json("show", f"s/{trial}")["config"]["hidden"] for trial in range(3)) == [4, 5, 6]
    assert "study s is complete: 3 trials; its space has no other configurations" in orch.here(*arguments).stdout
    assert "3 trials; its space has no other" in orch.here("resume", "s", "trials=20", "sampler=tpe").stdout
    assert orch.recorded() == {0: [1], 1: [1], 2: [1]}


def test_enqueued_configurations_survive_a_kill_before_they_ran(orch):
    (orch.folder / "first.yaml").write_text("[{hidden: 15}, {hidden: 4}, {hidden: 9}, {hidden: 12}]")
    arguments = orch.counting("enqueue=first.yaml", trials=5, epochs=3, workers=1, pause_seconds=0.4)
    with orch.running(*arguments) as sweep:
        wait_until(lambda: orch.begun().total() >= 2, what="the first trial")
        kill(sweep)
    assert len(orch.recorded()) < 4
    (orch.folder / "first.yaml").unlink()
    orch.here("resume", "s")
    assert [orch.json("show", f"s/{trial}")["config"]["hidden"] for trial in range(4)] == [15, 4, 9, 12]
    assert orch.recorded() == {trial: [1, 2, 3] for trial in range(5)}


def test_beginning_of_an_existing_study_is_kept(orch):
    orch.here(*orch.counting(trials=1, epochs=1, default_first="true"))
    assert orch.json("show", "s/0")["config"]["hidden"] == 8, "the recipe's own"
    orch.here(*orch.counting(trials=2, epochs=1))
    (orch.folder / "first.yaml").write_text("[{hidden: 15}]")
    refused = orch.here(*orch.counting("enqueue=first.yaml", trials=3, epochs=1), code=2)
    assert "study 's' has begun otherwise" in refused.stderr
    assert len(orch.recorded()) == 2


def test_warm_start_is_kept_as_it_was_and_its_trials_are_not_this_study_s(orch):
    missing = orch.here(*orch.counting("warm_start=first", trials=1), code=2)
    assert missing.stderr.count("\n") == 1
    assert not orch.home.exists() or not (orch.home / "orch.db").exists()

    more = ["lr=tag(log,interval(1e-4,1e-1))", "workers=1"]
    arguments = [key for key in orch.counting(*more, epochs=1, sampler="tpe") if key != "study=s"]
    orch.here(*arguments, "study=first", "trials=12")
    unknown = orch.here(*arguments, "study=s", "warm_start=frist", code=2)
    assert "unknown study 'frist'; did you mean 'first'?" in unknown.stderr
    assert [row["study"] for row in orch.json("ls")] == ["first"]

    warm = [key if not key.startswith("hidden=") else "hidden=range(4,10)" for key in arguments]
    shown = orch.here(*warm, "study=s", "warm_start=first", "trials=2").stdout
    told = re.search(r"the sampler knows (\d+) trial\(s\) of first; (\d+) do not fit", shown)
    hidden = [orch.json("show", f"first/{trial}")["config"]["hidden"] for trial in range(12)]
    assert (int(told[1]), int(told[2])) == (sum(h < 10 for h in hidden), sum(h >= 10 for h in hidden))
    assert orch.recorded() == {0: [1], 1: [1]}

    orch.here(*warm, "study=whole", "warm_start=first", "trials=4")
    orch.here("resume", "first", "trials=14")
    orch.here("resume", "s", "trials=4")
    whole, resumed = ([orch.json("show", f"{s}/{n}")["config"] for n in range(4)] for s in ("whole", "s"))
    assert whole == resumed


def test_timeout_stops_and_the_same_command_goes_on(orch):
    arguments = orch.counting(trials=4, epochs=4, pause_seconds=0.5)
    stopped = orch.here(*arguments, "timeout=2s")
    assert "orch resume s" in stopped.stdout
    states = orch.json("status", "s")["states"]
    assert states["running"] == 0
    assert states["complete"] < 4
    orch.here(*arguments, "timeout=1h")
    assert orch.recorded() == {trial: [1, 2, 3, 4] for trial in range(4)}


def test_pruned_trials_stop_at_a_rung_and_the_rest_is_exported(orch):
    orch.here(*orch.counting(trials=8, epochs=9, pruner="asha", export="best", lr="tag(log,interval(1e-4,1e-1))"))
    rows = orch.json("compare", "s")
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert pruned
    assert {row["epochs"] for row in pruned} <= {1, 3}
    complete = [row for row in rows if row["state"] == "complete"]
    assert complete
    assert all(row["epochs"] == 9 for row in complete)
    assert [row["value"] for row in complete] == sorted((row["value"] for row in complete), reverse=True)
    onnx = orch.json("show", f"s/{complete[0]['trial']}")["onnx"]
    assert onnx["error"] is None
    assert onnx["max_difference"] < 1e-4


RATES = {"lr": "tag(log,interval(1e-4,1e-1))", "sampler": "random"}


def test_study_that_pauses_promotes_the_best_and_prunes_the_rest_at_its_end(orch):
    orch.here(*orch.counting(trials=9, epochs=9, pruner="asha-pause", export="best", workers=2, **RATES))
    rows = orch.json("compare", "s")
    complete = [row for row in rows if row["state"] == "complete"]
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert complete
    assert len(complete) + len(pruned) == 9
    assert all(row["epochs"] == 9 for row in complete)
    assert {row["epochs"] for row in pruned} == {1, 3}
    assert sum(row["epochs"] >= 3 for row in rows) >= 3
    assert all(row["value"] is not None for row in rows)
    assert max(orch.begun().values()) == 1, "no epoch was trained twice"

    shown = orch.json("show", f"s/{complete[0]['trial']}")
    assert [attempt["state"] for attempt in shown["attempts"]] == ["paused", "paused", "complete"]
    assert shown["onnx"]["error"] is None
    shown = orch.json("show", f"s/{pruned[0]['trial']}")
    assert (shown["state"], set(shown["files"])) == ("pruned", {"best.safetensors"})
    files = [path for path in (orch.home / "trials").rglob("*") if path.is_file()]
    assert not [path for path in files if path.name.startswith(("epoch-", "best-"))]
    assert len([path for path in files if path.name == "best.safetensors"]) == 9, "earlier attempts left nothing"

    before = orch.recorded()
    orch.here(*orch.counting(trials=14, epochs=9, pruner="asha-pause", export="best", workers=2, **RATES))
    after = orch.recorded()
    assert {trial: after[trial] for trial in before} == before, "what was pruned at its rung stays so"
    assert len(after) == 14
    assert max(orch.begun().values()) == 1


def test_leader_that_fails_leaves_its_place_to_the_next(orch):
    """Of two trials neither is promoted for its rank alone: the better one goes on, and the other after its failure."""
    chosen = {"hidden": 8, "trials": 2, "epochs": 4, "pruner": "asha-pause", "workers": 1, "sampler": "random"}
    orch.here(*orch.counting("lr=1e-5,1e-2", "fault='',diverge", **chosen))
    slow, quick = (orch.json("show", f"s/{trial}") for trial in (0, 1))
    assert (slow["config"]["lr"], quick["config"]["lr"]) == (1e-5, 1e-2)
    assert slow["epochs"][0]["metrics"]["val_accuracy"] < quick["epochs"][0]["metrics"]["val_accuracy"]
    assert (quick["state"], quick["reason"], quick["value"]) == ("failed", "diverged", None)
    assert (slow["state"], len(slow["epochs"])) == ("complete", 4)


def test_draws_learn_from_how_far_each_paused_trial_had_come(orch):
    """Each draw is that of a search which has been told all that was on record when it was made."""
    chosen = {"trials": 14, "epochs": 9, "pruner": "asha-pause", "workers": 1, "sampler": "tpe", "lr": RATES["lr"]}
    orch.here(*orch.counting(**chosen))
    with orch.record() as record:
        row = record.study("s")
        study, trials, epochs = from_record(row), record.trials(row.id), record.epochs(row.id)
    for drawn in trials[10:]:
        earlier, then = trials[: drawn.number], {}
        for trial in earlier:
            then[trial.number] = [epoch for epoch in epochs[trial.number] if epoch.recorded_at < drawn.created_at]
            trial.state = State.COMPLETE if len(then[trial.number]) == 9 else State.PAUSED
            trial.value = compare.best_epoch(then[trial.number], "val_accuracy").metrics["val_accuracy"]
        search = Search(study.space, "tpe", study.seed)
        search.restore(earlier, then)
        assert search.ask(drawn.number) == drawn.params


def test_promoted_trial_equals_one_that_was_never_paused(orch):
    still = ["recipe=cnn", "lr=1e-3,3e-3", "width=8", "depth=2", "batch_size=64", "crop=1", "dropout=0.2", "epochs=5"]
    fixed = ["weight_decay=0.01", "label_smoothing=0", "limit=400", "trials=1", "export=none", "device=cpu"]
    for name, pruner in (("a", "asha-pause"), ("b", "none")):
        orch.here("sweep", *still, *fixed, f"study={name}", f"pruner={pruner}")
    paused, never = orch.json("show", "a/0"), orch.json("show", "b/0")
    assert [attempt["state"] for attempt in paused["attempts"]] == ["paused", "paused", "complete"]
    assert [epoch["attempt"] for epoch in paused["epochs"]] == [1, 2, 2, 3, 3]
    assert len(never["attempts"]) == 1
    assert [epoch["metrics"] for epoch in paused["epochs"]] == [epoch["metrics"] for epoch in never["epochs"]]
    assert (paused["value"], paused["best_epoch"]) == (never["value"], never["best_epoch"])
    trained = [load_file(Path(shown["folder"]) / "best.safetensors") for shown in (paused, never)]
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


@pytest.mark.slow
def test_paused_trials_keep_within_the_disk_that_they_may_take(orch):
    arguments = orch.counting(trials=12, epochs=9, pruner="asha-pause", workers=1, hidden=8, **RATES)
    orch.here(*arguments, "max_epochs_total=6")
    size = max(folder_bytes(orch, number) for number in paused(orch))
    limit = int(2.5 * size)
    assert size > 10_000, "a checkpoint"
    done = orch.here("resume", "s", f"max_disk={limit / 1000}KB", "max_epochs_total=16")
    assert "is pruned: paused trials take" in done.stdout
    left = paused(orch)
    assert left
    assert sum(folder_bytes(orch, number) for number in left) <= limit
    pruned = [row for row in orch.json("compare", "s") if row["state"] == "pruned"]
    of_rung = {row["trial"]: row["value"] for row in orch.json("compare", "s") if row["epochs"] == 1}
    assert pruned
    assert min(of_rung.get(number, 1.0) for number in left) >= max(of_rung[row["trial"]] for row in pruned)


def paused(orch):
    return [row["trial"] for row in orch.json("compare", "s") if row["state"] == "paused"]


def folder_bytes(orch, number):
    folder = orch.home / "trials" / "s" / f"{number:04d}"
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_stopped_study_shows_what_is_paused_and_another_pruner_takes_it_up(orch):
    arguments = orch.counting(trials=6, epochs=4, pruner="asha-pause", workers=1, pause_seconds=0.25, **RATES)
    with orch.running(*arguments) as sweep:
        wait_until(lambda: orch.begun()[(3, 1)], what="the fourth trial")
        os.kill(sweep.pid, signal.SIGINT)
        sweep.communicate(timeout=20)
        assert sweep.returncode == 130
    status = orch.json("status", "s")
    assert status["states"]["paused"] >= 2
    assert status["states"]["running"] == 0
    (row, *_) = [row for row in orch.json("compare", "s") if row["state"] == "paused"]
    assert row["value"] is not None
    assert orch.json("show", f"s/{row['trial']}")["state"] == "paused"
    recorded = orch.recorded()
    orch.here("resume", "s", "pruner=none")
    assert orch.recorded() == {trial: [1, 2, 3, 4] for trial in range(6)}
    assert all(orch.begun()[(trial, epoch)] == 1 for trial, epochs in recorded.items() for epoch in epochs)


def test_train_runs_one_configuration_and_knows_it_again(orch):
    arguments = ["train", f"recipe={COUNTING}", "hidden=5", "epochs=2", f"journal={orch.journal}", "export=none"]
    orch.here(*arguments)
    assert "is complete" in orch.here(*arguments).stdout
    orch.here(*arguments, "lr=0.01")
    assert orch.begun().total() == 4
    names = [row["study"] for row in orch.json("ls")]
    assert len(names) == 2
    assert all(name.startswith("counting-") for name in names)


def test_inline_executor_gives_the_same_numbers_as_processes(orch, tmp_path):
    values = []
    for executor in ("inline", "local"):
        arguments = [key for key in orch.counting(trials=1, epochs=2, executor=executor) if key != "study=s"]
        orch.here(*arguments, f"study={executor}")
        values.append([epoch["metrics"] for epoch in orch.json("show", f"{executor}/0")["epochs"]])
    first, second = (json.dumps(metrics) for metrics in values)
    assert first == second


def test_sweep_trains_each_trial_in_two_processes_as_in_one(orch, monkeypatch):
    still = ["dropout=0", "crop=0", "batch_norm=false", "device=cpu", "pruner=none", "export=best"]
    orch.here(
        "sweep", "recipe=mlp", "study=s", "lr=1e-3,3e-3", "devices=2", "epochs=2", "limit=300", "trials=2", *still
    )
    monkeypatch.setenv("ORCH_HOME", str(orch.home))
    with orch.record() as record:
        study = record.study("s")
        assert len(record.exports(study.id)) == 1
        epochs = record.epochs(study.id)
        for trial in record.trials(study.id):
            assert trial.config["devices"] == 2
            found = [epoch.metrics["val_loss"] for epoch in epochs[trial.number]]
            alone = mlp.train(make(mlp.Config, {**trial.config, "devices": 1}))
            assert found == pytest.approx([epoch.metrics["val_loss"] for epoch in alone], abs=1e-5)


def test_terminal_shows_a_bar_for_each_worker_and_the_best_so_far(orch):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    command = [ORCH, *orch.counting(trials=4, epochs=3, pause_seconds=0.4, workers=2)]
    environment = {**orch.environment, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, cwd=orch.folder, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux says so when the other end is closed
        while data := os.read(ours, 1 << 16):
            shown += data
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "Traceback" not in text
    assert re.search(r"worker-0 trial \d ━+╺?━* *2/3 val_accuracy 0\.\d{4}", text)
    assert re.search(r"best 0\.\d{4} \(trial \d\)  ·  [1-3] finished, 0 pruned, 0 failed of 4  ·  0:\d\d left", text)


def test_delete_asks_and_then_leaves_nothing(orch):
    orch.here(*orch.counting(trials=1, epochs=1))
    assert "s was not deleted" in orch.here("delete", "s", code=2).stderr, "nobody said yes"
    assert orch.json("status", "s")["total"] == 1
    assert orch.json("delete", "s", "--yes")["deleted"]
    assert "unknown study" in orch.here("status", "s", code=2).stderr
    assert not (orch.home / "trials" / "s").exists()


def test_conditions_and_constraints_hold_in_all_trials_of_a_sweep_that_is_extended(orch):
    (orch.folder / "studies").mkdir()
    (orch.folder / "studies" / "counting.yaml").write_text(
        "space:\n"
        "  optimizer: [adamw, sgd]\n"
        "  momentum: {low: 0.5, high: 0.8, when: {optimizer: sgd}}\n"
        "  hidden: {low: 4, high: 16}\n"
        "  batch_size: [64, 256]\n"
        "constraints: ['hidden % 2 == 0', 'hidden * batch_size <= 2048']\n"
    )
    arguments = ["sweep", f"recipe={COUNTING}", "study=s", "epochs=1", "pruner=none", "export=none"]
    assert "momentum" in orch.here(*arguments, "trials=4").stdout
    orch.here(*arguments, "trials=8")
    rows = {row["trial"]: row["params"] for row in orch.json("compare", "s")}
    with orch.record() as record:
        trials = record.trials(record.study("s").id)
    assert {trial.params["optimizer"] for trial in trials} == {"adamw", "sgd"}
    for trial in trials:
        params, is_sgd = trial.params, trial.params["optimizer"] == "sgd"
        assert params["hidden"] % 2 == 0
        assert params["hidden"] * params["batch_size"] <= 2048
        assert ("momentum" in params) == is_sgd
        assert trial.config["momentum"] == params.get("momentum", 0.9)
        assert rows[trial.number]["momentum"] == (params["momentum"] if is_sgd else None)


def test_sweep_of_which_nothing_possible_is_left_ends_in_one_line(orch):
    (orch.folder / "studies").mkdir()
    (orch.folder / "studies" / "counting.yaml").write_text("constraints: ['hidden * 10 < 41', 'hidden == 41']\n")
    refused = orch.here(*orch.counting(), code=2)
    assert refused.stderr.count("\n") == 1
    assert "constraint 'hidden * 10 < 41' does not hold" in refused.stderr
    assert not orch.home.joinpath("orch.db").exists()

"""All mirrors together: each value once and in order, whatever fails or is killed in between."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import optuna
import pytest
from mlflow import MlflowClient

from orchestrator import mirror, mirrors
from orchestrator.errors import FencedError, HeldError, UnavailableError, UnknownNameError
from orchestrator.leases import Holding
from orchestrator.mirror import lag, remove, sync
from orchestrator.tables import LeaseRow, State
from tests.support.orch import wait_until
from tests.support.sweeps import (
    MirrorProcess,
    Sweep,
    expected,
    in_mlflow,
    in_optuna,
    in_tensorboard,
    runs_of,
    settings_of,
    value_of,
)

NAMES = ["tensorboard", "optuna", "mlflow"]


def assert_mirrored(settings, num_epochs, name="s"):
    """Every mirror holds exactly these epochs of these trials."""
    for metric in ("val_loss", "train_loss"):
        assert in_mlflow(settings, metric, name) == expected(num_epochs, metric)
        assert in_tensorboard(settings, metric, name) == expected(num_epochs, metric)
    assert in_optuna(settings, name) == expected(num_epochs, "val_accuracy")


def following(sweep, name="mlflow"):
    """A follower in this process, with the mirror's lease."""
    holding = Holding(sweep.record, f"mirror:{sweep.name}")
    place = mirrors.Place(settings=sweep.settings, record=sweep.record, lease=holding.lease, study=sweep.study)
    return mirror.Follower(name, place), holding


@pytest.mark.slow
def test_every_value_arrives_once_however_often_it_is_synced(sweep):
    first = sweep.run()
    second = sweep.start()
    sweep.train(second, 1)
    assert sync(sweep.settings) == {"tensorboard": 10, "optuna": 10, "mlflow": 10}
    assert_mirrored(sweep.settings, {0: 3, 1: 1})
    sweep.train(second, 2, 3)
    sweep.end(second, State.PRUNED)
    sweep.export(first)
    assert sync(sweep.settings, "s") == dict.fromkeys(NAMES, 4)
    assert sync(sweep.settings, "s") == dict.fromkeys(NAMES, 0)
    assert_mirrored(sweep.settings, {0: 3, 1: 3})


@pytest.mark.slow
def test_paused_trial_is_shown_as_one_that_waits_and_then_ends_once(sweep):
    goes_on, stays = sweep.start(), sweep.start()
    for trial in (goes_on, stays):
        sweep.train(trial, 1)
        sweep.end(trial, State.PAUSED, best_epoch=1)
    sync(sweep.settings)
    _, runs = runs_of(sweep.settings)
    assert [(runs[n].info.status, runs[n].info.end_time) for n in (0, 1)] == [("SCHEDULED", None)] * 2
    study = optuna.load_study(study_name="s", storage=sweep.settings.optuna_url)
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "RUNNING"]

    sweep.record.start_attempt(sweep.lease, goes_on, "host/cpu0")
    sync(sweep.settings)
    assert runs_of(sweep.settings)[1][0].info.status == "RUNNING"
    sweep.train(goes_on, 2, 3)
    sweep.record.end_attempt(sweep.lease, goes_on, 2, State.COMPLETE, value=0.9, best_epoch=3)
    sweep.record.prune_paused(sweep.lease, stays)
    sync(sweep.settings)
    assert_mirrored(sweep.settings, {0: 3, 1: 1})
    _, runs = runs_of(sweep.settings)
    assert [runs[n].info.status for n in (0, 1)] == ["FINISHED", "KILLED"]
    assert runs[1].data.metrics["best_val_accuracy"] == value_of(1, 1, "val_accuracy")
    assert "orch.checkpoint_sha256" in runs[1].data.tags
    study = optuna.load_study(study_name="s", storage=sweep.settings.optuna_url)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]


def test_lag_counts_what_is_left(sweep):
    assert lag(sweep.record, sweep.study.id) == dict.fromkeys(NAMES, 1)
    sync(sweep.settings)
    assert lag(sweep.record, sweep.study.id) == dict.fromkeys(NAMES, 0)
    sweep.run()
    assert lag(sweep.record, sweep.study.id) == dict.fromkeys(NAMES, 6)


def test_sync_of_all_studies_and_of_an_unknown_one(sweep, prepared):
    settings = prepared
    other = Sweep(settings, "other")
    sweep.run()
    other.run()
    sync(settings, "other")
    assert lag(sweep.record, sweep.study.id)["mlflow"] == 7
    sync(settings)
    other.close()
    assert_mirrored(settings, {0: 3})
    assert_mirrored(settings, {0: 3}, "other")
    with pytest.raises(UnknownNameError, match="did you mean 'other'"):
        sync(settings, "othr")


def test_cursor_that_was_lost_doubles_nothing(sweep):
    sweep.run()
    running = sweep.start()
    sweep.train(running, 1, 2)
    sync(sweep.settings)
    with sweep.record.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM cursors")
    sweep.train(running, 3)
    assert sync(sweep.settings)["mlflow"] == 12
    assert_mirrored(sweep.settings, {0: 3, 1: 3})


def test_target_that_lost_everything_is_written_again(sweep, tmp_path, empty_home):
    sweep.run()
    sweep.run(State.FAILED, 1)
    sync(sweep.settings)
    for file in [*sweep.settings.home.glob("optuna.db*"), sweep.settings.tensorboard]:
        file.rename(tmp_path / file.name)
    # MLflow keeps connections to a file that is gone; another store is as empty.
    (tmp_path / "moved.db").write_bytes((empty_home / "mlflow.db").read_bytes())
    moved = settings_of(sweep.settings.home, f"sqlite:///{tmp_path / 'moved.db'}")
    assert sync(moved) == dict.fromkeys(NAMES, 2)
    assert_mirrored(moved, {0: 3, 1: 1})
    assert runs_of(moved)[1][0].data.tags["mlflow.parentRunId"] == runs_of(moved)[1][-1].info.run_id
    # And back: what the first store holds is found again.
    assert sync(sweep.settings)["mlflow"] == 0
    assert_mirrored(sweep.settings, {0: 3, 1: 1})
    assert sweep.record.run_ids(sweep.study.id)[0] == runs_of(sweep.settings)[1][0].info.run_id


def test_dead_server_is_named_without_its_password_and_the_others_go_on(sweep):
    sweep.run()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        dead = settings_of(sweep.settings.home, f"http://me:secret@127.0.0.1:{port}")
        with pytest.raises(UnavailableError) as caught:
            sync(dead)
    assert str(caught.value) == f"MLflow at http://127.0.0.1:{port} is not usable now: connection refused"
    assert lag(sweep.record, sweep.study.id) == {"tensorboard": 0, "optuna": 0, "mlflow": 7}
    sync(sweep.settings)
    assert_mirrored(sweep.settings, {0: 3})


def test_corrupt_storage_is_named_and_left_alone(sweep):
    file = sweep.settings.home / "optuna.db"
    file.write_bytes(b"not a database" * 100)
    sweep.run()
    with pytest.raises(UnavailableError, match=r"optuna\.db is not usable: file is not a database"):
        sync(sweep.settings)
    assert file.read_bytes() == b"not a database" * 100
    assert lag(sweep.record, sweep.study.id) == {"tensorboard": 0, "optuna": 7, "mlflow": 0}


@pytest.mark.slow
def test_second_mirror_of_a_study_is_refused(sweep):
    with Holding(sweep.record, "mirror:s"), pytest.raises(HeldError, match="mirror:s is held by process"):
        sync(sweep.settings)
    assert lag(sweep.record, sweep.study.id) == dict.fromkeys(NAMES, 1)


def test_fenced_mirror_notes_nothing_more(sweep):
    follower, _ = following(sweep)
    follower.drain()
    sweep.run()
    with sweep.record.write() as session:
        session.get_one(LeaseRow, "mirror:s").token += 1
    with pytest.raises(FencedError):
        follower.drain()
    assert lag(sweep.record, sweep.study.id)["mlflow"] == 6
    assert list(sweep.record.run_ids(sweep.study.id)) == [-1]


def test_remove_takes_this_study_only(sweep, prepared):
    settings = prepared
    other = Sweep(settings, "other")
    sweep.run()
    other.run()
    sync(settings)
    remove(settings, "s")
    other.close()
    assert runs_of(settings)[1] == {}
    assert not (settings.tensorboard / "s").exists()
    with pytest.raises(KeyError):
        in_optuna(settings)
    assert_mirrored(settings, {0: 3}, "other")


def test_study_made_again_under_its_name_starts_empty(sweep, prepared):
    settings = prepared
    sweep.run()
    sweep.run()
    sync(settings)
    sweep.record.delete_study(sweep.lease, sweep.study.id)
    sweep.close()
    again = Sweep(settings)
    again.run(num_epochs=2)
    sync(settings)
    assert in_optuna(settings) == expected({0: 2}, "val_accuracy")
    assert in_tensorboard(settings) == expected({0: 2})
    client = MlflowClient(settings.tracking_uri)
    mine = [client.get_metric_history(run_id, "val_loss") for run_id in again.record.run_ids(again.study.id).values()]
    assert [[metric.step for metric in history] for history in mine] == [[], [1, 2]]
    again.close()


# -- the process


@pytest.fixture
def start_mirror():
    started = []

    def start(settings):
        started.append(MirrorProcess(settings))
        return started[-1]

    yield start
    for left in started:
        left.kill()


@pytest.mark.slow
def test_mirror_process_follows_and_finishes(sweep, start_mirror):
    process = start_mirror(sweep.settings)
    sweep.run()
    wait_until(lambda: not any(lag(sweep.record, sweep.study.id).values()), what="the mirror")
    assert_mirrored(sweep.settings, {0: 3})
    sweep.run()
    assert process.finish() == dict.fromkeys(NAMES, 0)
    assert_mirrored(sweep.settings, {0: 3, 1: 3})
    assert runs_of(sweep.settings)[1][-1].info.status == "KILLED"  # two of four trials: it may go on
    with Holding(sweep.record, "mirror:s"):
        pass  # released


@pytest.mark.slow
def test_mirror_process_that_was_killed_or_lost_its_parent_is_followed_by_the_next(sweep, start_mirror):
    process = start_mirror(sweep.settings)
    trial = sweep.start()
    for epoch in range(1, 4):
        sweep.train(trial, epoch)
        wait_until(lambda: lag(sweep.record, sweep.study.id)["mlflow"] < 2, what="the mirror")
    process.kill()
    sweep.end(trial)
    orphan = start_mirror(sweep.settings)
    wait_until(lambda: lag(sweep.record, sweep.study.id)["tensorboard"] == 0, what="the mirror")
    orphan.child.channel.close()
    assert orphan.child.process.wait(5) == -signal.SIGKILL
    sweep.run()
    assert start_mirror(sweep.settings).finish() == dict.fromkeys(NAMES, 0)
    assert_mirrored(sweep.settings, {0: 3, 1: 3})


@pytest.mark.slow
def test_kills_at_random_moments_double_nothing(sweep):
    num_trials = 100
    sweep.extend(num_trials)
    for _ in range(num_trials):
        sweep.run()
    program = [sys.executable, "-m", "tests.support.killed_syncs", str(sweep.settings.home), "14", "1.5"]
    done = subprocess.run(program, check=True, capture_output=True, text=True)
    killed = done.stdout.split().count("killed")
    assert killed >= 5, f"{killed} kills came before all was written"
    assert lag(sweep.record, sweep.study.id) == dict.fromkeys(NAMES, 0)
    assert_mirrored(sweep.settings, dict.fromkeys(range(num_trials), 3))
    _, runs = runs_of(sweep.settings)
    assert sorted(runs) == [-1, *range(num_trials)]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    values = {trial.number: trial.value for trial in sweep.record.trials(sweep.study.id)}
    assert {number: run.data.metrics["best_val_accuracy"] for number, run in runs.items() if number >= 0} == values
    assert sweep.record.run_ids(sweep.study.id) == {number: run.info.run_id for number, run in runs.items()}


@pytest.mark.slow
def test_mirror_needs_no_torch():
    program = "\n".join(
        [
            "import sys",
            "from orchestrator import mirror, mirrors",
            "assert not {'torch', 'mlflow', 'optuna', 'tensorboard'} & set(sys.modules), 'imported too early'",
            "[mirrors.load(name) for name in mirrors.TARGETS]",
            "assert not {'torch', 'tensorflow'} & set(sys.modules), 'imported for nothing'",
        ]
    )
    subprocess.run([sys.executable, "-c", program], check=True)

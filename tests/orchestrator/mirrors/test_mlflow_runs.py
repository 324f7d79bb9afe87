"""What MLflow shows of a study, and what happens when someone or something gets in between."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.tracking._tracking_service.utils import _get_store

from orchestrator.errors import UnavailableError
from orchestrator.leases import Holding
from orchestrator.mirror import Follower, lag, sync
from orchestrator.mirrors import Place, study_key
from orchestrator.mirrors.mlflow_store import address
from orchestrator.mirrors.mlflow_tags import study_params
from orchestrator.tables import FREED, Reason, State, Study
from tests.support.orch import wait_until
from tests.support.sweeps import MirrorProcess, Sweep, expected, in_mlflow, runs_of, settings_of, value_of

pytestmark = pytest.mark.slow


def artifact(run, path):
    """A file among a run's artifacts, where the store is this machine's."""
    assert run.info.artifact_uri.startswith("file:///")
    return Path(run.info.artifact_uri.removeprefix("file://")) / path


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_trial_is_a_run_with_all_that_is_known_of_it(sweep):
    trial = sweep.start(lr=0.01)
    sweep.train(trial, 1, 2, 3)
    checkpoint = sweep.end(trial, best_epoch=2)
    model = sweep.export(trial)
    sync(sweep.settings)
    client, runs = runs_of(sweep.settings)
    run, row = runs[0], sweep.record.trial(sweep.study.id, 0)
    assert run.data.params == {name: str(value) for name, value in row.config.items()}
    assert run.info.run_name == "s #0"
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (round(row.started_at * 1000), round(row.ended_at * 1000))
    wanted = {
        "mlflow.parentRunId": runs[-1].info.run_id,
        "orch.study": "s",
        "orch.study_id": study_key(sweep.study),
        "orch.trial": "0",
        "orch.recipe": "cnn",
        "orch.data": "digits",
        "orch.data_fingerprint": "d" * 64,
        "orch.split_fingerprint": "e" * 64,
        "orch.seed": "7",
        "orch.split_seed": "0",
        "orch.commit": "c0ffee",
        "orch.device": "cpu",
        "orch.worker": "host/cpu0",
        "orch.torch_version": "2.15.0",
        "orch.orch_version": "0.1.0",
        "orch.state": "complete",
        "orch.attempts": "1",
        "orch.checkpoint_sha256": sha256(checkpoint),
        "orch.onnx_sha256": sha256(model),
    }
    assert {name: run.data.tags.get(name) for name in wanted} == wanted
    figures = {"best_val_accuracy": value_of(0, 2, "val_accuracy"), "best_epoch": 2, "train_seconds": 1.5}
    assert {name: run.data.metrics[name] for name in figures} == figures
    assert run.data.metrics["onnx_max_difference"] == 1e-7
    epochs = sweep.record.epochs(sweep.study.id)[0]
    history = client.get_metric_history(run.info.run_id, "val_accuracy")
    assert [(m.step, m.timestamp) for m in history] == [(e.number, round(e.recorded_at * 1000)) for e in epochs]
    assert artifact(run, "checkpoint/best.safetensors").read_bytes() == checkpoint
    assert artifact(run, "onnx/model.onnx").read_bytes() == model
    assert sweep.record.run_ids(sweep.study.id) == {n: found.info.run_id for n, found in runs.items()}


def test_what_a_launch_ran_with_is_at_the_parent_and_named_by_its_trials(sweep):
    ran_with = {
        **sweep.study.spec["provenance"],
        "commit": "5eed",
        "command": "orch sweep recipe=cnn",
        "packages": {"numpy": "2.4.0", "torch": "2.15.0"},
        "diff": "diff --git a/x b/x\n",
        "folder": "/home/me",
    }
    trial = sweep.start()
    sync(sweep.settings)
    launch = sweep.record.add_launch(sweep.lease, sweep.study.id, ran_with).id
    sweep.record.start_attempt(sweep.lease, trial, "host/cpu0", launch=launch)
    sync(sweep.settings)
    sync(sweep.settings)
    client, runs = runs_of(sweep.settings)
    wanted = {
        "orch.launch": str(launch),
        "orch.commit": "5eed",
        "orch.uncommitted": "yes",
        "orch.command": "orch sweep recipe=cnn",
        "orch.threads": "1",
        "mlflow.source.name": "orch sweep recipe=cnn",
        "mlflow.source.git.commit": "5eed",
    }
    assert {name: runs[0].data.tags.get(name) for name in wanted} == wanted
    folder = artifact(runs[-1], f"launches/{launch}")
    assert (folder / "packages.txt").read_text() == "numpy==2.4.0\ntorch==2.15.0\n"
    assert (folder / "uncommitted.diff").read_text() == "diff --git a/x b/x\n"
    assert json.loads((folder / "launch.json").read_text())["folder"] == "/home/me"
    assert [entry.path for entry in client.list_artifacts(runs[-1].info.run_id, "launches")] == [f"launches/{launch}"]


def test_what_workers_wrote_is_at_the_parent_as_it_is_at_the_end(sweep):
    sweep.run()
    log = sweep.settings.logs / "s" / "worker-0.log"
    log.parent.mkdir(parents=True)
    for text in ("training began\n", "training began\nand ended\n"):
        log.write_text(text)
        sync(sweep.settings)
        parent = runs_of(sweep.settings)[1][-1]
        assert artifact(parent, "logs/worker-0.log").read_text() == text
    (log.parent / "mirror.log").write_text("of this mirror itself\n")
    sync(sweep.settings)
    assert [path.name for path in artifact(parent, "logs").iterdir()] == ["worker-0.log"]


def test_commits_wait_for_the_disk_in_the_record_and_not_in_mlflow(sweep):
    sweep.run()
    sync(sweep.settings)
    with sweep.record.engine.connect() as record, _get_store(sweep.settings.tracking_uri).engine.connect() as mlflow:
        modes = [each.exec_driver_sql("PRAGMA synchronous").scalar() for each in (record, mlflow)]
    assert modes == [2, 1], "full, and normal"


def test_state_of_a_trial_becomes_the_status_of_its_run(sweep):
    sweep.run(State.COMPLETE)
    sweep.run(State.PRUNED)
    sweep.run(State.FAILED)
    sweep.start()
    again = sweep.start()
    sweep.end(again, State.FAILED, trial_state=State.WAITING, reason=Reason.LOST)
    sync(sweep.settings)
    _, runs = runs_of(sweep.settings)
    statuses = {number: run.info.status for number, run in runs.items() if number >= 0}
    assert statuses == {0: "FINISHED", 1: "KILLED", 2: "FAILED", 3: "RUNNING", 4: "SCHEDULED"}
    assert runs[2].data.tags["orch.reason"] == "error"
    assert runs[2].data.tags["orch.message"] == "ValueError: no"
    sweep.record.start_attempt(sweep.lease, again, "host/cpu1")
    sync(sweep.settings)
    run = runs_of(sweep.settings)[1][4]
    assert (run.info.status, run.data.tags["orch.attempts"]) == ("RUNNING", "2")


def test_parent_shows_the_space_the_best_so_far_and_whether_all_is_done(sweep):
    sweep.run(num_epochs=2)
    sweep.run(num_epochs=1)
    sync(sweep.settings)
    client, runs = runs_of(sweep.settings)
    parent = runs[-1]
    assert parent.info.run_name == "s"
    assert parent.info.status == "KILLED"  # not complete, and nobody is at it
    assert parent.data.params["space.lr"] == "0.0001 to 0.1 log"
    assert parent.data.params["space.width"] == "16 to 128 step 16"
    assert parent.data.params["space.optimizer"] == "adamw, sgd"
    assert parent.data.params["fixed.epochs"] == "3"
    assert parent.data.tags["orch.trials"] == "4"
    sweep.run(State.FAILED)
    sweep.run()
    sync(sweep.settings)
    history = client.get_metric_history(parent.info.run_id, "best_val_accuracy")
    assert [(m.step, m.value) for m in history] == [
        (1, value_of(0, 2, "val_accuracy")),
        (2, value_of(1, 1, "val_accuracy")),
        (4, value_of(3, 3, "val_accuracy")),
    ]
    parent = client.get_run(parent.info.run_id)
    last = sweep.record.trial(sweep.study.id, 3)
    assert (parent.info.status, parent.info.end_time) == ("FINISHED", round(last.ended_at * 1000))
    sweep.extend(5)
    sync(sweep.settings)
    parent = client.get_run(parent.info.run_id)
    assert (parent.info.status, parent.data.tags["orch.trials"]) == ("KILLED", "5")
    sweep.run(num_epochs=2)
    sync(sweep.settings)
    assert client.get_run(parent.info.run_id).info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(parent.info.run_id, "best_val_accuracy")] == [1, 2, 4, 5]


def test_number_that_is_not_finite_becomes_a_tag(sweep):
    trial = sweep.start()
    sweep.train(trial, 1, grad_norm=1.0)
    sweep.train(trial, 2, grad_norm=math.nan)
    sweep.train(trial, 3, weight=math.inf)
    sync(sweep.settings)
    run = runs_of(sweep.settings)[1][0]
    assert in_mlflow(sweep.settings, "grad_norm") == {0: [(1, 1.0)]}
    assert in_mlflow(sweep.settings, "weight") == {0: []}
    assert run.data.tags["orch.not_finite.grad_norm"] == "nan at step 2"
    assert run.data.tags["orch.not_finite.weight"] == "inf at step 3"


def test_metric_name_that_mlflow_does_not_allow_is_changed(sweep):
    trial = sweep.start()
    sweep.train(trial, 1, **{"acc@1 (top)": 0.5})
    sync(sweep.settings)
    assert in_mlflow(sweep.settings, "acc_1 _top_") == {0: [(1, 0.5)]}
    assert in_mlflow(sweep.settings) == expected({0: 1})


@pytest.mark.parametrize("name", ["<b>x</b>'; DROP TABLE runs;-- %23 #?", "Überraschung 🎲"])
def test_odd_names_of_study_and_folder(empty_home, tmp_path, name):
    home = tmp_path / "a #b %20 c"
    shutil.copytree(empty_home, home)
    sweep = Sweep(settings_of(home), name)
    trial = sweep.start()
    sweep.train(trial, 1, 2, 3)
    checkpoint = sweep.end(trial)
    sync(sweep.settings)
    sweep.close()
    run = runs_of(sweep.settings, name)[1][0]
    assert run.data.tags["orch.study"] == name
    (found,) = (home / "artifacts").rglob("best.safetensors")
    assert found.read_bytes() == checkpoint
    assert found.parts[-4:] == (run.info.run_id, "artifacts", "checkpoint", "best.safetensors")


# -- crashes


def test_run_whose_creation_was_not_noted_is_taken_up(sweep):
    """The process was killed between creating runs and anything else."""
    sweep.run()
    client = MlflowClient(sweep.settings.tracking_uri)
    experiment = client.create_experiment("s", artifact_location=sweep.settings.artifacts.as_uri())
    key = {"orch.study_id": study_key(sweep.study)}
    parent = client.create_run(experiment, 1000, key)
    orphan = client.create_run(experiment, 1000, {**key, "orch.trial": "0"})
    stranger = client.create_run(experiment, 1000, {"orch.study_id": "of another record", "orch.trial": "0"})
    client.log_batch(orphan.info.run_id, [Metric("val_loss", value_of(0, 1, "val_loss"), *first_epoch(sweep))])
    sync(sweep.settings)
    assert sweep.record.run_ids(sweep.study.id) == {-1: parent.info.run_id, 0: orphan.info.run_id}
    history = client.get_metric_history(orphan.info.run_id, "val_loss")
    assert [(m.step, m.value) for m in history] == expected({0: 3})[0]
    assert client.get_run(orphan.info.run_id).data.params["lr"] == "0.001"
    assert client.get_run(stranger.info.run_id).data.metrics == {}


def first_epoch(sweep):
    epoch = sweep.record.epochs(sweep.study.id)[0][0]
    return round(epoch.recorded_at * 1000), epoch.number


def test_run_that_was_created_twice_is_there_once(sweep):
    """A slow server took up a call that had timed out; the record's run stays."""
    sweep.run()
    sync(sweep.settings)
    client, runs = runs_of(sweep.settings)
    tags = {"orch.study_id": study_key(sweep.study), "orch.trial": "0"}
    twin = client.create_run(runs[0].info.experiment_id, 1, tags)
    sweep.run()
    sync(sweep.settings)
    assert client.get_run(twin.info.run_id).info.lifecycle_stage == "deleted"
    assert runs_of(sweep.settings)[1][0].info.run_id == runs[0].info.run_id
    assert in_mlflow(sweep.settings) == expected({0: 3, 1: 3})


def test_half_copied_file_is_copied_again(sweep):
    """The process was killed while it copied: there is no tag yet that says the file is whole."""
    trial = sweep.start()
    sweep.train(trial, 1, 2, 3)
    sync(sweep.settings)
    run = runs_of(sweep.settings)[1][0]
    file = artifact(run, "checkpoint/best.safetensors")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half")
    checkpoint = sweep.end(trial)
    sync(sweep.settings)
    assert file.read_bytes() == checkpoint


KILLED_COPY = """
import os, signal, sys
from pathlib import Path
from orchestrator.mirror import sync
from tests.support.sweeps import settings_of
rename = Path.replace
def strike(path, target):
    if "checkpoint" in path.parts:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.replace = strike
sync(settings_of(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("other_disk", [False, True])
def test_copy_that_is_killed_leaves_no_half_file_and_is_made_whole(sweep, tmp_path_factory, other_disk):
    """Row 14: killed when the bytes are there and their name is not; on another disk they are copied, else linked."""
    if other_disk:
        shared = Path("/dev/shm")
        if not shared.is_dir() or shared.stat().st_dev == sweep.settings.home.stat().st_dev:
            pytest.skip("there is no other disk")
        folder = shared / f"orch-test-{os.getpid()}-{time.time_ns()}"
        folder.mkdir()
        sweep.settings.artifacts.symlink_to(folder)
    try:
        trial = sweep.start()
        sweep.train(trial, 1, 2, 3)
        checkpoint = sweep.end(trial)
        killed = subprocess.run([sys.executable, "-c", KILLED_COPY, str(sweep.settings.home)], check=False)
        assert killed.returncode == -signal.SIGKILL
        run = runs_of(sweep.settings)[1][0]
        file = artifact(run, "checkpoint/best.safetensors")
        assert "orch.checkpoint_sha256" not in run.data.tags
        assert not file.exists()
        assert [path.suffix for path in file.parent.iterdir()] == [".tmp"]
        sync(sweep.settings)
        assert file.read_bytes() == checkpoint
        assert runs_of(sweep.settings)[1][0].data.tags["orch.checkpoint_sha256"] == sha256(checkpoint)
        own = sweep.settings.attempt_folder("s", 0, 1) / "best.safetensors"
        assert file.samefile(own) is not other_disk
    finally:
        if other_disk:
            shutil.rmtree(folder)


def test_weights_that_are_freed_go_from_the_run_and_nothing_else(sweep):
    trial = sweep.run()
    sync(sweep.settings)
    run = runs_of(sweep.settings)[1][0]
    assert artifact(run, "checkpoint/best.safetensors").exists()
    sweep.record.free_files(sweep.lease, [trial], "best.safetensors", f"{FREED}keep=none")
    late = sweep.run()
    sweep.record.free_files(sweep.lease, [late], "best.safetensors", f"{FREED}keep=none")
    sync(sweep.settings)
    for run in (runs_of(sweep.settings)[1][number] for number in (0, 1)):
        assert not artifact(run, "checkpoint/best.safetensors").exists()
        assert (run.info.status, run.data.tags["orch.checkpoint_sha256"]) == ("FINISHED", "freed")
    assert in_mlflow(sweep.settings) == expected({0: 3, 1: 3})


def test_damaged_checkpoint_is_not_copied_and_the_rest_is(sweep, caplog):
    trial = sweep.start()
    sweep.train(trial, 1, 2, 3)
    checkpoint = bytearray(sweep.end(trial))
    file = sweep.settings.attempt_folder("s", 0, 1) / "best.safetensors"
    checkpoint[500] ^= 1
    file.write_bytes(checkpoint)
    sync(sweep.settings)
    run = runs_of(sweep.settings)[1][0]
    assert run.data.tags["orch.checkpoint_sha256"] == "missing or damaged"
    assert not artifact(run, "checkpoint").exists()
    assert f"{file} is missing or damaged" in caplog.text
    assert in_mlflow(sweep.settings) == expected({0: 3})


# -- someone deletes


def test_deleted_run_is_passed_over_and_restored_by_sync(sweep, caplog):
    first = sweep.start()
    second = sweep.start()
    sweep.train(first, 1)
    sync(sweep.settings)
    client, runs = runs_of(sweep.settings)
    run_id = runs[0].info.run_id
    client.delete_run(run_id)
    sweep.train(first, 2)
    sweep.train(second, 1)
    sweep.train(first, 3)
    sweep.end(first)
    sync(sweep.settings)
    assert in_mlflow(sweep.settings) == expected({1: 1})
    assert sweep.record.trial(sweep.study.id, 0).value == value_of(0, 3, "val_accuracy")
    assert f"run {run_id} of trial 0 of s was deleted in MLflow; its results stay in the study" in caplog.text
    command = f"MLFLOW_TRACKING_URI={sweep.settings.tracking_uri} mlflow runs restore --run-id {run_id}"
    assert command in caplog.text
    assert 0 not in sweep.record.run_ids(sweep.study.id)
    client.restore_run(run_id)
    assert sync(sweep.settings)["mlflow"] == 1
    assert in_mlflow(sweep.settings) == expected({0: 3, 1: 1})
    assert sweep.record.run_ids(sweep.study.id)[0] == run_id


def test_run_deleted_while_it_is_followed_is_told_once(sweep, caplog):
    first, second = sweep.start(), sweep.start()
    follower = followed(sweep)
    follower.drain()
    client, runs = runs_of(sweep.settings)
    client.delete_run(runs[0].info.run_id)
    for epoch in (1, 2, 3):
        sweep.train(first, epoch)
        sweep.train(second, epoch)
        follower.drain()
    assert in_mlflow(sweep.settings) == expected({1: 3})
    assert caplog.text.count("was deleted in MLflow") == 1


def followed(sweep):
    """MLflow, followed in this process."""
    lease = Holding(sweep.record, f"mirror:{sweep.name}").lease
    return Follower("mlflow", Place(settings=sweep.settings, record=sweep.record, lease=lease, study=sweep.study))


@pytest.mark.parametrize("number", [0, -1])
def test_run_that_is_gone_for_good_is_written_again(sweep, number):
    sweep.run()
    sync(sweep.settings)
    _, runs = runs_of(sweep.settings)
    _get_store(sweep.settings.tracking_uri)._hard_delete_run(runs[number].info.run_id)
    sweep.run()
    sync(sweep.settings)
    _, again = runs_of(sweep.settings)
    assert sorted(again) == [-1, 0, 1]
    assert in_mlflow(sweep.settings) == expected({0: 3, 1: 3})
    assert {again[n].data.tags["mlflow.parentRunId"] for n in (0, 1)} == {again[-1].info.run_id}


def test_run_that_is_gone_while_it_is_followed_is_written_again(sweep):
    running = sweep.start()
    sweep.train(running, 1)
    follower = followed(sweep)
    follower.drain()
    _get_store(sweep.settings.tracking_uri)._hard_delete_run(runs_of(sweep.settings)[1][0].info.run_id)
    sweep.train(running, 2)
    with pytest.raises(UnavailableError):
        follower.drain()
    follower.drain()
    assert in_mlflow(sweep.settings) == expected({0: 2})


def test_deleted_experiment_waits_for_its_restoration(sweep):
    sweep.run()
    sync(sweep.settings)
    client, runs = runs_of(sweep.settings)
    experiment = runs[0].info.experiment_id
    client.delete_experiment(experiment)
    sweep.run()
    with pytest.raises(UnavailableError, match=f"mlflow experiments restore --experiment-id {experiment}`") as caught:
        sync(sweep.settings)
    assert "its results stay in the study" in str(caught.value)
    assert lag(sweep.record, sweep.study.id) == {"tensorboard": 0, "optuna": 0, "mlflow": 6}
    client.restore_experiment(experiment)
    sync(sweep.settings)
    assert in_mlflow(sweep.settings) == expected({0: 3, 1: 3})


def test_experiment_deleted_while_it_is_followed(sweep):
    running = sweep.start()
    follower = followed(sweep)
    follower.drain()
    client, runs = runs_of(sweep.settings)
    client.delete_experiment(runs[0].info.experiment_id)
    sweep.train(running, 1)
    with pytest.raises(UnavailableError, match="was deleted in MLflow"):
        follower.drain()
    client.restore_experiment(runs[0].info.experiment_id)
    follower.drain()
    assert in_mlflow(sweep.settings) == expected({0: 1})


def test_refused_run_does_not_hold_up_the_others(sweep, caplog):
    first = sweep.start()
    follower = followed(sweep)
    follower.drain()
    sweep.train(first, 1, **{"a//b": 1.0})  # which MLflow does not allow
    second = sweep.start()
    sweep.train(second, 1)
    follower.drain()
    assert "MLflow refuses trial 0 of s" in caplog.text
    assert in_mlflow(sweep.settings) == {0: [], 1: expected({1: 1})[1]}


def test_database_that_is_unusable_is_named_in_a_line(sweep, tmp_path):
    (tmp_path / "broken.db").write_bytes(b"not a database" * 100)
    for uri, cause in (
        (f"sqlite:///{tmp_path}/broken.db", "file is not a database"),
        ("./folder", "is not usable now"),
    ):
        with pytest.raises(UnavailableError, match=cause) as caught:
            sync(settings_of(sweep.settings.home, uri))
        assert "\n" not in str(caught.value)
    assert (tmp_path / "broken.db").read_bytes() == b"not a database" * 100


def test_address_holds_no_password():
    assert address("http://me:secret@host:5000/x?token=t") == "http://host:5000/x"
    assert address("postgresql://me:secret@host/mlflow") == "postgresql://me:***@host/mlflow"


# -- a real server


class Server:
    """`mlflow server` in a process group of its own."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "files")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log)
        wait_until(self.answers, 60, "the MLflow server")

    def answers(self):
        with suppress(OSError), urlopen(f"{self.address}/health", timeout=1) as response:
            return response.status == 200
        return False

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def kill(self):
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_home):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_home / "mlflow.db", folder / "server.db")
    made = Server(folder)
    try:
        made.start()
        yield made
    finally:
        made.kill()


def never(path):
    return None


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server; `fails` is asked first and may give another answer, or hold one back."""

    daemon_threads = True

    def __init__(self, server):
        super().__init__(("127.0.0.1", 0), _Pass)
        self.server = server
        self.fails = never
        self.settings_uri = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Pass(BaseHTTPRequestHandler):
    def _do(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = self.server.fails(self.path)
        if status is not None and status > 0:
            return self._answer(status, b"later", {"Retry-After": "60"})
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        request = Request(self.server.server.address + self.path, body or None, headers, method=self.command)
        try:
            with urlopen(request) as response:
                answer = response.status, response.read(), {}
        except HTTPError as error:
            answer = error.code, error.read(), {}
        if status is not None:
            time.sleep(-status)  # the server has done it, but says so too late
        return self._answer(*answer)

    def _answer(self, status, body, headers):
        with suppress(OSError):
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do  # noqa: N815

    def log_message(self, *arguments):
        pass


@pytest.fixture
def proxied(server, prepared):
    """A sweep whose MLflow is a real server behind a proxy."""
    proxy = Proxy(server)
    sweep = Sweep(settings_of(prepared.home, proxy.settings_uri), f"s{time.time_ns()}")
    yield proxy, sweep
    sweep.close()
    proxy.shutdown()


@pytest.mark.slow
def test_server_gets_values_and_files(proxied):
    _, sweep = proxied
    trial = sweep.start()
    sweep.train(trial, 1, 2, 3)
    checkpoint = sweep.end(trial)
    model = sweep.export(trial)
    sync(sweep.settings)
    client, runs = runs_of(sweep.settings, sweep.name)
    assert in_mlflow(sweep.settings, name=sweep.name) == expected({0: 3})
    assert runs[0].info.artifact_uri.startswith("mlflow-artifacts:")
    for path, content in (("checkpoint/best.safetensors", checkpoint), ("onnx/model.onnx", model)):
        there = client.download_artifacts(runs[0].info.run_id, path)
        assert Path(there).read_bytes() == content
        assert runs[0].data.tags[f"orch.{path.split('/')[0]}_sha256"] == sha256(content)


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 503])
def test_busy_server_gets_each_value_once_later(proxied, status):
    """One call in three is refused, whatever it is; `Retry-After: 60` is not waited for."""
    proxy, sweep = proxied
    calls = []
    proxy.fails = lambda path: status if calls.append(path) is None and len(calls) % 3 == 0 else None
    follower = followed(sweep)
    started = time.monotonic()
    failures = 0
    for _ in range(3):
        trial = sweep.start()
        for epoch in (1, 2, 3):
            sweep.train(trial, epoch)
            failures += not stepped(follower, f"it answers {status}")
        sweep.end(trial)
    while not stepped(follower, f"it answers {status}") or lag(sweep.record, sweep.study.id)["mlflow"]:
        failures += 1
        assert failures < 100
        if len(calls) > 200:
            proxy.fails = never
    assert failures > 2
    assert time.monotonic() - started < 60
    assert in_mlflow(settings_of(sweep.settings.home, proxy.server.address), name=sweep.name) == expected(
        {0: 3, 1: 3, 2: 3}
    )


def stepped(follower, message):
    """Whether all could be done; if not, for this reason."""
    reason = ""
    try:
        follower.drain()
    except UnavailableError as error:
        reason = str(error)
    assert message in reason or not reason
    return not reason


@pytest.mark.slow
def test_run_that_the_server_made_too_late_is_not_made_twice(proxied, monkeypatch):
    proxy, sweep = proxied
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    seen = set()
    late = ("runs/create", "log-batch", "runs/update")
    proxy.fails = lambda path: -2 if path.endswith(late) and not (path in seen or seen.add(path)) else None
    sweep.run()
    follower = followed(sweep)
    failures = 0
    while not stepped(follower, "no answer within 1 s"):
        failures += 1
        assert failures < 10
    assert failures == len(late) == len(seen)
    follower.close()
    assert in_mlflow(sweep.settings, name=sweep.name) == expected({0: 3})
    _, runs = runs_of(sweep.settings, sweep.name)
    assert sorted(runs) == [-1, 0]
    assert runs[0].data.metrics["best_val_accuracy"] == value_of(0, 3, "val_accuracy")


@pytest.mark.slow
def test_server_killed_silent_and_started_again_while_a_mirror_follows(prepared, empty_home, tmp_path):
    """Training is not held up, the other mirrors go on, and all values arrive in order, once."""
    shutil.copy(empty_home / "mlflow.db", tmp_path / "server.db")
    server = Server(tmp_path)
    sweep = Sweep(settings_of(prepared.home, server.address))
    process = MirrorProcess(sweep.settings)
    usual = []
    try:
        for event in (None, server.start, lambda: server.signal(signal.SIGSTOP), lambda: server.signal(signal.SIGCONT),
                      server.kill, server.start):  # fmt: skip
            if event is not None:
                event()
            seconds = []
            for _ in range(5):
                started = time.monotonic()
                sweep.run()
                seconds.append(time.monotonic() - started)
                time.sleep(0.4)
            usual.append(statistics.median(seconds))  # of a busy machine one may take long, whatever the server does
            wait_until(lambda: not lag(sweep.record, sweep.study.id)["tensorboard"], 20, "the other mirrors")
        assert process.finish(60) == {"tensorboard": 0, "optuna": 0, "mlflow": 0}
        assert in_mlflow(sweep.settings) == expected(dict.fromkeys(range(30), 3))
        assert max(usual) < 1
    finally:
        process.kill()
        with suppress(ProcessLookupError):
            server.signal(signal.SIGCONT)
        server.kill()
        sweep.close()
    log = process.log.read_text()
    assert "connection refused; it is tried again" in log
    assert "mlflow: goes on" in log


@pytest.mark.slow
def test_finish_does_not_wait_for_a_dead_server(prepared):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        sweep = Sweep(settings_of(prepared.home, f"http://127.0.0.1:{silent.getsockname()[1]}"))
        process = MirrorProcess(sweep.settings)
        try:
            sweep.run()
            wait_until(lambda: not lag(sweep.record, sweep.study.id)["optuna"], 20, "the other mirrors")
            started = time.monotonic()
            assert process.finish(2) == {"tensorboard": 0, "optuna": 0, "mlflow": 7}
            assert time.monotonic() - started < 4
        finally:
            process.kill()
            sweep.close()


def test_parameters_of_the_parent_tell_conditions_and_constraints():
    searched = {"low": 0.5, "high": 0.9, "when": {"optimizer": ["sgd", "muon"]}}
    study = Study(
        recipe="cnn", data="digits", spec={"space": {"momentum": searched}, "constraints": ["a < b", "c > d"]}
    )
    found = study_params(study)
    assert found["space.momentum"] == "0.5 to 0.9 when optimizer=sgd|muon"
    assert found["constraints"] == "a < b; c > d"
    assert "constraints" not in study_params(Study(recipe="cnn", data="digits", spec={"constraints": []}))

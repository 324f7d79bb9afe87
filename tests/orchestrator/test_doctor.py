"""`orch doctor` after real faults: dead and stopped processes, servers that are away, files that are others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from orchestrator import doctor
from orchestrator.doctor import examine
from orchestrator.mirror import sync
from orchestrator.store import Record
from tests.support.orch import Orch, kill, wait_until
from tests.support.ports import free_ports
from tests.support.sweeps import Sweep, settings_of

HOLDER = str(Path(__file__).parents[1] / "support" / "holder.py")


@pytest.fixture
def settings(empty_home, tmp_path):
    shutil.copytree(empty_home, tmp_path / "mlruns")
    return settings_of(tmp_path / "mlruns")


@pytest.fixture
def left(settings):
    """A study with a trial that runs, its mirrors up to date, and nobody who holds it."""
    sweep = Sweep(settings)
    sweep.run()
    sweep.start()
    sync(settings)
    sweep.close()
    return settings


@pytest.fixture
def holder(left):
    command = [sys.executable, HOLDER, left.record_url, "15"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "opened\n"
        assert process.stdout.readline().startswith("held")
        yield process
        kill(process)


def ill(settings):
    """What needs to be done: what, what was found and the advice."""
    return [(each.what, each.found, each.advice) for each in examine(settings) if not each.is_well]


def test_empty_folder_is_well_and_stays_empty(tmp_path):
    found = list(examine(settings_of(tmp_path / "none")))
    assert all(each.is_well for each in found)
    assert {each.what for each in found} >= {"versions", "cpu", "disk", "record", "MLflow", "Optuna storage"}
    assert not (tmp_path / "none").exists()


def test_trials_left_running_and_their_runs_are_told_with_what_ends_them(left):
    assert ill(left) == [
        ("trials", "1 trial(s) of s were running when its process went", "orch resume s"),
        ("MLflow", "s has runs that are shown as running, and no process", "orch resume s, or orch sync s"),
    ]


def test_mirrors_that_are_behind_are_told(settings):
    sweep = Sweep(settings)
    sweep.run()
    sweep.close()
    ((what, found, advice),) = ill(settings)
    assert (what, advice) == ("mirrors", "orch sync s")
    assert "change(s) behind the record" in found


@pytest.mark.slow
def test_lease_of_a_living_process_is_well_and_that_of_a_stopped_or_dead_one_is_not(left, holder):
    assert not ill(left)
    holder.stdin.write("lock\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "locked\n"  # stopped amid a write, which holds up who writes, not who looks
    os.kill(holder.pid, signal.SIGSTOP)
    who = f"study:s is held by process {holder.pid} on "
    ((what, found, advice),) = ill(left)
    assert (what, found.startswith(who), "gives no sign of life" in found) == ("lease", True, True)
    assert advice == "if it does not wake: orch resume s takes it after 15 s"
    kill(holder)
    holder.wait()
    what, found, advice = ill(left)[0]
    assert (what, advice) == ("lease", "orch resume s takes it")
    assert found.endswith("which is gone")


def test_folder_of_no_study_is_named(settings):
    (settings.home / "trials" / "gone" / "0000").mkdir(parents=True)
    Sweep(settings).close()
    assert [what for what, *_ in ill(settings)] == ["mirrors", "folders"]
    assert ill(settings)[1][1] == f"1 of no study: {settings.home}/trials/gone"


def test_server_that_is_away_is_named_without_its_password(tmp_path):
    away = settings_of(tmp_path / "mlruns", f"http://me:hidden@127.0.0.1:{free_ports()}")
    ((what, found, advice),) = ill(away)
    assert what == "MLflow"
    assert "hidden" not in found
    assert "MLFLOW_TRACKING_URI" in advice


@pytest.mark.parametrize(
    ("name", "what"), [("orch.db", "record"), ("optuna.db", "Optuna storage"), ("mlflow.db", "MLflow")]
)
def test_corrupt_database_is_named(settings, name, what):
    with closing(Record.open(settings.record_url, create=True)):
        pass
    (settings.home / name).write_bytes(b"not a database, but long enough to look like one " * 100)
    for left in settings.home.glob(f"{name}-*"):
        left.unlink()
    found = ill(settings)
    assert [each[0] for each in found] == [what]
    assert name in found[0][1]


def test_little_room_is_told(settings, monkeypatch):
    free = shutil.disk_usage(settings.home).free
    monkeypatch.setattr(doctor, "LEAST_FREE", free + 10**12)
    assert [each[0] for each in ill(settings)] == ["disk"]


def test_process_without_a_parent_is_named(settings):
    script = f"{sys.executable} -c 'import time; time.sleep(600)' orchestrator.worker >/dev/null 2>&1 & echo $!"
    pid = int(subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout)
    try:
        wait_until(lambda: "orchestrator.worker" in psutil.Process(pid).cmdline(), what="the worker")
        ((what, found, advice),) = ill(settings)
        assert (what, advice) == ("processes", f"if they are there in 15 s from now: kill -9 {pid}")
        assert str(pid) in found
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_library_that_does_not_load_is_one_thing_to_do_and_the_exit_code_says_so(tmp_path):
    orch = Orch(tmp_path)
    assert "all is well" in orch("doctor").stdout
    broken = tmp_path / "path" / "torchvision"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    orch.environment["PYTHONPATH"] = str(broken.parent)
    told = orch("doctor", code=1).stdout
    assert "! versions        torchvision cannot be imported: operator torchvision::nms does not exist" in told
    assert "to do: pip install --upgrade --force-reinstall torchvision" in told
    assert told.endswith("1 thing(s) to do\n")
    found = json.loads(orch("doctor", "--json", code=1).stdout)
    assert [each["what"] for each in found if not each["is_well"]] == ["versions"]

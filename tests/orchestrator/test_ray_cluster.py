"""What is particular to workers on a Ray cluster; what they have in common with others is in `test_executors.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from orchestrator import budget
from orchestrator.errors import UnavailableError, UsageError
from orchestrator.executors.ray_cluster import Node, Plan, RayExecutor, additions, plan
from orchestrator.executors.ray_worker import Proof, RayWorker, _end_in_silence
from tests.support import ray_cluster
from tests.support.orch import COUNTING, Orch, kill, wait_until

CPU_NODES = [Node(host="a", cpus=4, gpus=0), Node(host="b", cpus=2, gpus=0)]
GPU_NODES = [Node(host="head", cpus=8, gpus=0), Node(host="a", cpus=12, gpus=4), Node(host="b", cpus=4, gpus=2)]


def planned(nodes, workers=0, device="auto", num_devices=1, num_useful=99):
    return plan(nodes, workers, num_useful=num_useful, device=device, num_devices=num_devices)


def test_cpus_are_shared_out_in_threads_as_far_as_all_workers_find_room():
    assert planned(CPU_NODES) == Plan(threads=1, gpus=0, limit=99)
    assert planned(CPU_NODES, workers=3).threads == 2
    assert planned(CPU_NODES, workers=2).threads == 2, "three would leave room for one"
    assert planned(CPU_NODES, workers=1).threads == 4
    assert planned(CPU_NODES, num_useful=1) == Plan(threads=4, gpus=0, limit=1)
    assert planned(CPU_NODES, workers=50).threads == 1
    assert planned(CPU_NODES, num_devices=2).threads == 2, "a trial of two processes"


def test_workers_get_the_gpus_where_there_are_some():
    assert planned(GPU_NODES) == Plan(threads=2, gpus=1, limit=99)
    assert planned(GPU_NODES, workers=2) == Plan(threads=6, gpus=1, limit=2)
    assert planned(GPU_NODES, num_devices=2) == Plan(threads=4, gpus=2, limit=99)
    assert planned(GPU_NODES, device="cpu") == Plan(threads=1, gpus=0, limit=99)


@pytest.mark.parametrize(
    ("nodes", "device", "error"),
    [
        (CPU_NODES, "cuda", UnavailableError),
        (GPU_NODES, "cuda:1", UsageError),
        ([Node(host="a", cpus=0, gpus=0)], "auto", UnavailableError),
    ],
)
def test_what_no_node_can_give_is_refused(nodes, device, error):
    with pytest.raises(error):
        planned(nodes, device=device)


def test_workers_are_spread_over_nodes_up_to_the_limit():
    room = {"a": 4, "b": 2}
    assert additions(room, {}, 99) == ["a", "b", "a", "b", "a", "a"]
    assert additions(room, {"a": 4}, 5) == ["b"]
    assert additions(room, {"a": 4, "b": 2}, 99) == []
    assert additions({"b": 2}, {"gone": 3}, 5) == ["b", "b"]


def test_address_goes_with_ray_only_and_is_host_and_port():
    taken = budget.take_budget({"executor": "executor=ray", "address": "address=[::1]:6379"})
    assert (taken.executor, taken.address) == ("ray", "[::1]:6379")
    assert budget.take_budget({"executor": "executor=local"}, start=taken).address == "[::1]:6379", "and back again"
    with pytest.raises(UsageError, match="executor=ray"):
        budget.take_budget({"address": "address=auto"})
    for text in ("head", "ray://head:10001", "head:port", ""):
        with pytest.raises(UsageError, match="host:port"):
            budget.take_budget({"executor": "executor=ray", "address": f"address={text}"})


def test_worker_ends_when_its_driver_is_silent_for_a_lease(monkeypatch):
    monkeypatch.setattr("orchestrator.executors.ray_worker.LEASE_SECONDS", 0.5)
    heard, ended = threading.Event(), threading.Event()
    threading.Thread(target=_end_in_silence, args=(heard, ended.set)).start()
    for _ in range(10):
        heard.set()
        assert not ended.wait(0.1)
    assert ended.wait(2)


def test_worker_refuses_a_state_folder_that_is_not_the_drivers(tmp_path):
    (tmp_path / "proof").write_text("mine")
    for proof in (Proof(path=str(tmp_path / "proof"), text="yours"), Proof(path=str(tmp_path / "none"), text="")):
        with pytest.raises(FileNotFoundError):
            RayWorker().ready("worker-0", str(tmp_path / "log"), proof)
    assert not (tmp_path / "log").exists()


@pytest.mark.slow
def test_without_ray_it_is_said_what_to_install(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['ray'] = None")
    orch = Orch(tmp_path)
    orch.environment["PYTHONPATH"] = f"{tmp_path}:{orch.environment.get('PYTHONPATH', '')}"
    failed = orch("sweep", f"recipe={COUNTING}", "executor=ray", "trials=1", code=2)
    assert failed.stderr == "orch: ray is not installed; `pip install 'orch[ray]'`\n"


@pytest.mark.slow
def test_command_line_does_not_import_ray():
    code = "import sys, orchestrator.coordinator; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
@pytest.mark.parametrize(("address", "reason"), [("auto", "start --head"), ("127.0.0.1:1", "no answer")])
def test_address_where_no_cluster_answers_is_one_line_and_soon(tmp_path, address, reason):
    orch = Orch(tmp_path)
    orch.environment |= {"RAY_ADDRESS": "", "RAY_TMPDIR": str(tmp_path)}
    failed = orch(*orch.counting("executor=ray", f"address={address}", trials=1), code=5, seconds=25)
    assert failed.stderr.count("\n") == 1
    assert reason in failed.stderr


# -- on a real cluster


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster.running(1) as made, ray_cluster.with_token():
        yield made


@pytest.mark.slow
def test_wrong_token_is_one_line(cluster, tmp_path):
    orch = Orch(tmp_path)
    for token in ({"RAY_AUTH_TOKEN": "another" * 6}, {"RAY_AUTH_MODE": "disabled"}):
        orch.environment |= {**ray_cluster.TOKEN, **token}
        failed = orch(*orch.counting("executor=ray", f"address={cluster.address}", trials=1), code=5, seconds=25)
        assert failed.stderr.count("\n") == 1
        assert "token" in failed.stderr


@pytest.mark.slow
def test_node_without_the_state_folder_is_named(cluster, tmp_path):
    """The second node has another, empty file system in place of the folder."""
    hidden = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {tmp_path} && exec "$@"', "sh"]
    if subprocess.run([*hidden, "true"], check=False).returncode:
        pytest.skip("needs the right to mount")
    node = cluster.add(1, before=hidden)
    orch = Orch(tmp_path)
    orch.environment |= ray_cluster.TOKEN
    try:
        failed = orch(*orch.counting("executor=ray", f"address={cluster.address}", trials=4), code=5, seconds=60)
    finally:
        cluster.kill(node)
    assert failed.stderr.count("\n") == 1
    assert f"node {os.uname().nodename} cannot work in {orch.home}" in failed.stderr
    assert "shared file system" in failed.stderr
    wait_until(lambda: not cluster.actors(), 5, "the actors to end")


@pytest.mark.slow
def test_worker_that_dies_at_once_ends_the_sweep(cluster, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    executor = RayExecutor(cluster.address, 1, home=home, logs=home / "logs", num_useful=1)
    try:
        for number in range(3):
            wait_until(lambda: executor.events(0.1) == [] and executor.free_slots(), what=f"worker number {number}")
            kill(cluster.actors()[0])
            if number < 2:
                wait_until(lambda: executor.events(0.1) == [] and not executor.free_slots(), what="it to be missed")
        with pytest.raises(UnavailableError, match=r"worker-0 on .* was killed or crashed with no job on it"):
            executor.events(10)
    finally:
        executor.close()

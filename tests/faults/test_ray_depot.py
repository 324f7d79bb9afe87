"""A sweep on two Ray nodes that share no folder with the driver or with each other, only a URL."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import ray_cluster
from tests.support.orch import Orch, wait_until

pytestmark = pytest.mark.slow
NUM_TRIALS, NUM_EPOCHS = 6, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("driver")


@pytest.fixture(scope="module")
def hidden(folder):
    """What starts a node with an empty file system of its own in place of the driver's state folder."""
    (folder / "mlruns").mkdir()
    before = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {folder}/mlruns && exec "$@"', "sh"]
    if subprocess.run([*before, "true"], check=False).returncode:
        pytest.skip("needs the right to mount")
    return before


@pytest.fixture(scope="module")
def started(hidden):
    with ray_cluster.running() as made:
        made.add(2, before=hidden)
        yield made


@pytest.fixture
def cluster(started, hidden):
    """Two nodes, whatever the test before has done to the second."""
    if len(started.nodes) < 2:
        started.add(2, before=hidden)
    return started


@pytest.fixture
def orch(cluster, folder):
    found = Orch(folder)
    found.environment |= ray_cluster.TOKEN
    for left in folder.glob("journal*"):
        left.unlink()
    yield found
    found("delete", "s", "--yes")
    assert not list((folder / "store").iterdir()), "the depot goes with its study"


def arguments(orch, cluster, **fields):
    url = f"file://{orch.folder}/store"
    chosen = {"trials": NUM_TRIALS, "epochs": NUM_EPOCHS, "pause_seconds": 0.4, **fields}
    return orch.counting("executor=ray", f"address={cluster.address}", f"checkpoints={url}", **chosen)


def stored(orch):
    """The names of all files at the depot."""
    return [path.name for path in (orch.folder / "store").rglob("*") if path.is_file() and path.name != "shared"]


def test_lost_node_takes_no_epoch_with_it_that_was_told(orch, cluster):
    with orch.running(*arguments(orch, cluster, export="best", hold_epoch=4)) as sweep:
        wait_until(lambda: orch.begun().total() == 4 * 4, what="almost half of the epochs, on both nodes")
        assert homes_of(cluster, orch.home) == [["cache", "logs"]] * 4
        kept = [(trial, epoch) for trial, epochs in orch.recorded().items() for epoch in epochs]
        cluster.kill(cluster.nodes.pop())
        orch.let_go()
        out, err = sweep.communicate(timeout=150)
        assert sweep.returncode == 0, f"{out}\n{err}"
    assert orch.recorded() == {trial: list(range(1, NUM_EPOCHS + 1)) for trial in range(NUM_TRIALS)}
    begun = orch.begun()
    assert kept
    assert all(begun[place] == 1 for place in kept), "what was on record was trained again"
    attempts = [orch.json("show", f"s/{trial}")["attempts"] for trial in range(NUM_TRIALS)]
    assert sum(len(of_trial) == 2 for of_trial in attempts) == out.count("it waits for another attempt") > 0

    assert "ONNX      differs from PyTorch" in out
    trials = [path for path in (orch.home / "trials").rglob("*") if path.is_file()]
    assert [path.name for path in trials].count("best.safetensors") == NUM_TRIALS, "the results came to the driver"
    assert [path.name for path in trials].count("model.onnx") == 1
    assert not [name for name in stored(orch) if name.startswith(("epoch-", "best-"))]
    assert stored(orch).count("best.safetensors") == NUM_TRIALS


def homes_of(cluster, folder):
    """What is in the state folder of each worker's node: nothing of the driver's."""
    seen = [Path(f"/proc/{worker.pid}/root{folder}") for worker in cluster.actors()]
    return [sorted(path.name for path in home.iterdir()) for home in seen]


def test_promoted_trial_goes_on_on_whichever_node(orch, cluster):
    chosen = {"pruner": "asha-pause", "trials": 9, "epochs": 9, "pause_seconds": 0.1, "lr": RATES}
    orch(*arguments(orch, cluster, **chosen), seconds=200)
    rows = orch.json("compare", "s")
    complete = [row for row in rows if row["state"] == "complete"]
    assert complete
    assert all(row["epochs"] == 9 for row in complete)
    assert {row["epochs"] for row in rows if row["state"] == "pruned"} == {1, 3}
    assert max(orch.begun().values()) == 1, "no epoch was trained twice"
    shown = orch.json("show", f"s/{complete[0]['trial']}")
    assert [attempt["state"] for attempt in shown["attempts"]] == ["paused", "paused", "complete"]
    assert not [name for name in stored(orch) if name.startswith(("epoch-", "best-"))], "nothing is left of the paused"


RATES = "tag(log,interval(1e-4,1e-1))"


def test_depot_that_the_nodes_do_not_have_is_named(orch, cluster):
    """What lies in the driver's state folder, which the nodes do not see."""
    command = [key for key in arguments(orch, cluster) if not key.startswith("checkpoints=")]
    failed = orch(*command, f"checkpoints=file://{orch.home}/store", code=5, seconds=60)
    assert failed.stderr.count("\n") == 1
    assert "cannot work with file://" in failed.stderr
    assert "all nodes need to reach it" in failed.stderr
    (orch.folder / "store").mkdir(exist_ok=True)

"""A sweep on a real Ray cluster of two nodes, token authentication on, while nodes, workers and the driver end."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.support import ray_cluster
from tests.support.orch import Orch, alive, assert_gone, kill, wait_until

pytestmark = pytest.mark.slow
NUM_TRIALS, NUM_EPOCHS = 8, 6


@pytest.fixture(scope="module")
def started():
    with ray_cluster.running(2) as made:
        yield made


@pytest.fixture
def cluster(started):
    """Two nodes, whatever the test before has done to the second."""
    if len(started.nodes) < 2:
        started.add(2)
    return started


@pytest.fixture
def orch(cluster, tmp_path):
    found = Orch(tmp_path)
    found.environment |= ray_cluster.TOKEN
    return found


def whole(num_trials):
    return {trial: list(range(1, NUM_EPOCHS + 1)) for trial in range(num_trials)}


def arguments(orch, cluster, **fields):
    chosen = {"trials": NUM_TRIALS, "epochs": NUM_EPOCHS, "pause_seconds": 0.4, "sampler": "random", **fields}
    return orch.counting("executor=ray", f"address={cluster.address}", **chosen)


def on_record(orch):
    return [(trial, epoch) for trial, epochs in orch.recorded().items() for epoch in epochs]


def workers(orch):
    """The workers of each trial's attempts."""
    shown = [orch.json("show", f"s/{trial}")["attempts"] for trial in orch.recorded()]
    return [[attempt["worker"].rpartition("/")[2] for attempt in attempts] for attempts in shown]


def test_lost_node_costs_no_finished_epoch_and_its_trials_end_on_the_other(orch, cluster):
    with orch.running(*arguments(orch, cluster, hold_epoch=NUM_EPOCHS)) as sweep:
        wait_until(lambda: orch.begun().total() == NUM_TRIALS * NUM_EPOCHS / 2, what="half of the epochs")
        kept = on_record(orch)
        num_lost = len(ray_cluster.actors(cluster.nodes[1]))
        cluster.kill(cluster.nodes.pop())
        orch.let_go()
        out, err = sweep.communicate(timeout=120)
        assert sweep.returncode == 0, f"{out}\n{err}"
    assert num_lost == 2
    assert out.count("it waits for another attempt") == num_lost
    assert orch.recorded() == whole(NUM_TRIALS)
    status = orch.json("status", "s")
    assert (status["states"]["complete"], status["epochs_trained"]) == (NUM_TRIALS, NUM_TRIALS * NUM_EPOCHS)
    begun = orch.begun()
    assert all(begun[place] == 1 for place in kept), "what was on record was trained again"
    assert begun.total() - NUM_TRIALS * NUM_EPOCHS <= 2 * num_lost
    assert sum(len(attempts) == 2 for attempts in workers(orch)) == num_lost
    wait_until(lambda: not cluster.actors(), 5, "the actors to end")


def test_new_node_gets_workers_and_a_killed_worker_is_replaced(orch, cluster):
    cluster.kill(cluster.nodes.pop())
    with orch.running(*arguments(orch, cluster, trials=12, pause_seconds=0.2, hold_epoch=2)) as sweep:
        wait_until(lambda: orch.begun().total() >= 4, what="epochs")
        cluster.add(2)
        wait_until(lambda: orch.begun().total() == 8, what="workers on the new node")
        kept = on_record(orch)
        kill(ray_cluster.actors(cluster.nodes[0])[0])
        orch.let_go()
        out, err = sweep.communicate(timeout=120)
        assert sweep.returncode == 0, f"{out}\n{err}"
    assert "was killed or crashed; it waits for another attempt" in out
    assert orch.recorded() == whole(12)
    # Names depend on when Ray noticed that the first node was gone; those of the new node took part.
    assert len({worker for attempts in workers(orch) for worker in attempts}) >= 4
    assert all(orch.begun()[place] == 1 for place in kept)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_end_of_the_driver_leaves_nothing_on_the_cluster(orch, cluster, number, code):
    command = arguments(orch, cluster, trials=4, retries=0)
    with orch.running(*command) as sweep:
        wait_until(lambda: orch.begun()[(0, 3)], what="epoch 3")
        found = cluster.actors()
        os.kill(sweep.pid, number)
        _, errors = sweep.communicate(timeout=10)
        assert sweep.returncode == code
        assert "Traceback" not in errors
        assert len(found) == 4
        assert_gone(found, 5)
    assert not list(orch.home.glob(".ray-*")) or number == signal.SIGKILL
    kept = on_record(orch)
    orch(*command)
    assert orch.recorded() == whole(4)
    assert all(orch.begun()[place] == 1 for place in kept)


def test_second_interrupt_leaves_at_once(orch, cluster):
    with orch.running(*arguments(orch, cluster, epochs=50)) as sweep:
        wait_until(lambda: orch.begun()[(0, 2)], what="epoch 2")
        found = cluster.actors()
        os.kill(sweep.pid, signal.SIGINT)
        time.sleep(0.1)  # two at once would arrive as one
        os.kill(sweep.pid, signal.SIGINT)
        sweep.communicate(timeout=15)  # of the 40 that the trials would take
        assert_gone(found, 15)


def test_workers_of_a_driver_that_sleeps_end_and_make_room_for_another(orch, cluster):
    with orch.running(*arguments(orch, cluster, trials=4)) as sleeper:
        wait_until(lambda: orch.begun()[(0, 2)], what="epoch 2")
        found = cluster.actors()
        orch.stop_between_writes(sleeper)
        orch("resume", "s")
        assert not any(map(alive, found))
        os.kill(sleeper.pid, signal.SIGCONT)
        _, errors = sleeper.communicate(timeout=30)
        assert sleeper.returncode == 5
        assert "taken over" in errors
    assert orch.recorded() == whole(4)

"""How many workers a GPU takes, and where they are put."""

from __future__ import annotations

import pytest
import torch

from orchestrator import budget, packing, probe, study
from orchestrator.errors import UsageError
from orchestrator.executors import Slot
from orchestrator.executors.local import num_cores, plan_slots
from orchestrator.forkserver import worker_server
from orchestrator.packing import choose, room
from orchestrator.probe import Load, _loaded, _Run
from tests.support.orch import COUNTING

GB = 1e9


class Gpu:
    """A device of so much free memory, whose workers take `each`, and together train as `rates` says."""

    def __init__(self, free, each, rates):
        self.free, self.each, self.rates = free, each, rates
        self.asked = []

    def __call__(self, count):
        self.asked.append(count)
        free = self.free - count * self.each
        complaint = "OutOfMemoryError: no room" if free < 0 else ""
        return Load(count=count, epochs_per_second=self.rates(count), free_bytes=free, complaint=complaint)


def chosen(gpu, most=16, more_bytes=0.0):
    count, _ = choose(gpu(1), gpu, more_bytes=more_bytes, most=most)
    return count


def test_workers_are_doubled_while_they_get_faster_together():
    gpu = Gpu(80 * GB, GB, lambda count: min(count, 5))
    assert chosen(gpu) == 8, "eight are faster than four, sixteen no faster than eight"
    assert gpu.asked == [1, 2, 4, 8, 16]
    assert chosen(Gpu(80 * GB, GB, lambda count: 1.05 if count > 1 else 1.0)) == 1, "one fills the GPU already"
    assert chosen(Gpu(80 * GB, GB, lambda count: 1 / count)) == 1


def test_peaks_of_all_workers_find_room_with_a_tenth_to_spare():
    assert chosen(Gpu(10 * GB, 2 * GB, float)) == 4, "five would fill it to the last byte"
    assert chosen(Gpu(10 * GB, 6 * GB, float)) == 1, "the second ran out of memory"
    assert chosen(Gpu(10 * GB, 2 * GB, float), more_bytes=1.1 * GB) == 2, "the largest configuration takes more"
    assert chosen(Gpu(10 * GB, GB, float), more_bytes=20 * GB) == 1


def test_there_are_no_more_workers_than_cores():
    gpu = Gpu(80 * GB, GB, float)
    assert chosen(gpu, most=3) == 3
    assert max(gpu.asked) == 3
    assert chosen(gpu, most=1) == 1


def test_room_is_of_what_is_free_without_any_worker():
    one, two = (Load(count=n, free_bytes=9 * GB - n * 2 * GB) for n in (1, 2))
    assert room(one, two, 0.0) == 4  # 0.9 * 9 / 2
    assert room(one, two, 10 * GB) == 1, "one worker there is in any case"


def test_figures_are_told():
    assert choose(Load(count=1, epochs_per_second=1, free_bytes=9 * GB), Gpu(10 * GB, GB, float), more_bytes=0, most=2)[
        1
    ] == ("1 at once: 1 epochs a second, 2 at once: 2 epochs a second")


def test_sizes_say_which_configurations_are_tried():
    configs = [{"width": width} for width in (3, 1, 2, 5, 4)]
    sizes = [{"num_parameters": config["width"]} for config in configs]
    assert [config["width"] for config in packing.by_size(configs, sizes)] == [3, 5, 1]
    assert [config["width"] for config in packing.by_size(configs, [])] == [2, 4, 3], "as they were drawn"
    assert packing.by_size(configs[:1], sizes[:1]) == configs[:1]


def test_epochs_count_while_all_trainings_are_under_way():
    first, second = _Run(), _Run()
    first.epochs = [(1.0, 1.0, 50), (2.0, 1.0, 10), (4.0, 2.0, 40), (6.0, 2.0, 20)]
    second.epochs = [(2.0, 2.0, 60), (6.0, 4.0, 30)]
    assert _loaded([first, second], 9) == Load(count=2, epochs_per_second=2 / 4 + 1 / 4, free_bytes=20)
    second.epochs.pop()
    assert "no epoch of all at once" in _loaded([first, second], 9).complaint


# -- keys


def test_key_is_auto_or_a_number_and_of_local_workers():
    assert budget.Budget().per_gpu == 1
    assert budget.take_budget({"per_gpu": "per_gpu=auto"}).per_gpu == 0
    three = budget.take_budget({"per_gpu": "per_gpu=3"})
    assert three.per_gpu == 3
    assert three.where != budget.Budget().where, "it takes other workers"
    for text in ("0", "-1", "half"):
        with pytest.raises(UsageError, match="expected auto or a number of at least 1"):
            budget.take_budget({"per_gpu": f"per_gpu={text}"})
    for other in ("workers=4", "executor=inline"):
        with pytest.raises(UsageError, match=f"does not go with {other}"):
            budget.take_budget({"per_gpu": "per_gpu=2", other.partition("=")[0]: other})


def test_each_gpu_gets_that_many_workers_and_cores_are_shared_out():
    slots = plan_slots(0, ["4", "7"], num_useful=99, per_gpu=3)
    assert [slot.devices for slot in slots] == [("4",), ("7",)] * 3
    assert {slot.threads for slot in slots} == {max(1, num_cores() // 6)}
    assert len(plan_slots(0, ["4", "7"], num_useful=3, per_gpu=3)) == 3
    assert len(plan_slots(0, [], num_useful=99, per_gpu=3)) == num_cores(), "where there is no GPU it says nothing"
    pairs = plan_slots(0, ["0", "1", "2"], num_useful=99, num_devices=2, per_gpu=2)
    assert [slot.devices for slot in pairs] == [("0", "1"), ("2", "0"), ("1", "2")], "each GPU in two"


# -- tried for real


@pytest.fixture(scope="module")
def server():
    with worker_server() as made:
        yield made


def load(*keys):
    return study.load([f"recipe={COUNTING}", "study=s", "hidden=range(4,16)", "per_gpu=auto", *keys])


def test_without_a_gpu_nothing_is_tried(server):
    told = []
    settled = packing.settled(load("device=cpu"), 9, server, told.append)
    assert (settled.budget.per_gpu, told) == (1, [])
    assert packing.settled(settled, 9, server, told.append) is settled


@pytest.mark.slow
def test_trainings_at_once_are_measured_together(server):
    """On the memory and the cores of this machine, which say no more than that it was tried."""
    few = load("batch_size=64")
    slot = Slot(name="probe", threads=1)
    two = probe.load(few.recipe, few.config({"hidden": 4}), slot, 2, server, 20.0)
    assert (two.count, two.complaint) == (2, "")
    assert two.epochs_per_second > 0
    assert 0 < two.free_bytes < 1e15
    failed = probe.load(few.recipe, few.config({"hidden": 4, "fault": "oom"}), slot, 2, server, 20.0)
    assert failed.complaint == "OutOfMemoryError: as the test asked"


@pytest.mark.slow
def test_count_is_found_from_the_space_to_the_figures(server):
    count, how = packing.probed(load(), [], 2, server)
    assert count in {1, 2}
    assert how.startswith("1 at once: ")
    assert "2 at once: " in how


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_small_models_share_a_gpu(server):
    told = []
    settled = packing.settled(load("device=cuda"), 99, server, told.append)
    assert settled.budget.per_gpu > 1, told

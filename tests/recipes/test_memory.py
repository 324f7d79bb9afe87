"""The memory that a process may still take, by the limits of a container or a job."""

from __future__ import annotations

import math

import psutil
import pytest
import torch

from recipes import memory

CPU = torch.device("cpu")
GB = 10**9


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system's files, made up: the groups of this process, and folders of limits."""
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MOUNT", tmp_path / "mount")

    def write(groups, folders):
        (tmp_path / "cgroup").write_text(groups)
        for folder, files in folders.items():
            made = tmp_path / "mount" / folder
            made.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (made / name).write_text(f"{text}\n")

    return write


def second(most, used, cached=0):
    return {"memory.max": most, "memory.current": used, "memory.stat": f"anon 5\ninactive_file {cached}"}


def first(most, used, cached=0):
    stat = f"inactive_file 7\ntotal_inactive_file {cached}"
    return {"memory.limit_in_bytes": most, "memory.usage_in_bytes": used, "memory.stat": stat}


def test_limit_of_a_group_leaves_what_is_not_in_use_and_what_is_only_cached(system):
    system("0::/job\n", {"job": second(8 * GB, 3 * GB, GB)})
    assert memory.limit_left() == 6 * GB


def test_group_above_binds_as_well(system):
    system("0::/user/job\n", {"user": second(4 * GB, 3 * GB), "user/job": second("max", 3 * GB)})
    assert memory.limit_left() == GB


def test_container_whose_path_is_the_host_s_has_the_root_s_limit(system):
    system("4:memory:/docker/abc\n3:cpu:/docker/abc\n", {"memory": first(2 * GB, GB, GB // 2), "cpu": {}})
    assert memory.limit_left() == 1.5 * GB


def test_group_that_is_over_its_limit_leaves_nothing(system):
    system("0::/\n", {"": second(GB, 2 * GB)})
    assert memory.limit_left() == 0


def test_no_limit_leaves_what_the_machine_has(system):
    system("0::/job\n", {"job": second("max", GB)})
    assert memory.limit_left() == math.inf
    assert 0 < memory.free_bytes(CPU) <= psutil.virtual_memory().total
    system("0::/job\n", {"job": second(5, 0)})
    assert memory.free_bytes(CPU) == 5


def test_system_without_control_groups_has_no_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "none")
    assert memory.limit_left() == math.inf

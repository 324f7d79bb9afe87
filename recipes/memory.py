"""How much memory there is to spare: of a GPU, of the machine, and of the control group that a container or a job has.

Slurm, Docker and Kubernetes set such limits; a process that passes one is killed, whatever the machine has
(https://docs.kernel.org/admin-guide/cgroup-v2.html#memory).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

OWN_GROUPS = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")
# Of version 2 and of version 1: the limit, what is in use, and of that the cached files, which make way.
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_bytes(device: torch.device) -> int:
    """The memory that a device has to spare; of what shares the machine's memory, what that can give."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return int(min(psutil.virtual_memory().available, limit_left()))


def limit_left() -> float:
    """What the control groups of this process leave it, in bytes; infinite where they set no limit."""
    return min(map(_left, _folders()), default=math.inf)


def _folders() -> list[Path]:
    """The folders of this process's memory group and of those above it, which bind it as well."""
    try:
        lines = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return []
    found: list[Path] = []
    for _, controllers, path in lines:
        if controllers in {"", "memory"}:
            root = MOUNT / controllers
            # In a container the path may be the host's, of which only the end, the root, is mounted.
            found += [folder for folder in _upwards(root, path) if folder.is_dir()]
    return found


def _upwards(root: Path, path: str) -> list[Path]:
    parts = Path(path.lstrip("/")).parts
    return [root.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _left(folder: Path) -> float:
    for limit, used, cached in FILES:
        try:
            most = (folder / limit).read_text().strip()
            if most == "max":
                return math.inf
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return max(0, int(most) - int((folder / used).read_text()) + int(stat.get(cached, 0)))
        except OSError:
            continue
    return math.inf

"""What the benchmarks share: the machine, the environment of what they time, and who else uses the cores."""

from __future__ import annotations

import os
import platform
import statistics
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

ORCH = Path(sysconfig.get_path("scripts")) / "orch"
# A benchmark that others disturb by more than this share of its cores says so.
QUIET = 0.05

_UNSET = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MLFLOW_TRACKING_URI")


def use_cores(count: int) -> int:
    """Keep to at most `count` cores, with all children, where the system can; how many there are then."""
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    return len(os.sched_getaffinity(0))


def environment() -> dict[str, str]:
    """The environment without what would change threads, byte code or where results go."""
    kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return {**kept, "MLFLOW_DISABLE_TELEMETRY": "true"}


def busy_seconds() -> float:
    """Core seconds that anything has used of this process's cores since the machine started."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    times = psutil.cpu_times(percpu=True)
    return sum(sum(times[core]) - times[core].idle - getattr(times[core], "iowait", 0.0) for core in cores)


def hardware(num_cores: int) -> str:
    """Processor, cores in use, memory, and how busy the machine is."""
    memory = psutil.virtual_memory().total / 2**30
    load = ", ".join(f"{value:.1f}" for value in psutil.getloadavg())
    return (
        f"{_processor()}, {num_cores} of {os.cpu_count()} cores, {memory:.0f} GiB, no GPU used; "
        f"{platform.system()}; load averages {load}"
    )


def versions(*packages: str) -> str:
    """Python and packages, each with its version."""
    found = [f"{package} {version(package)}" for package in packages]
    return ", ".join([f"Python {platform.python_version()}", *found])


def spread(values: Sequence[float], digits: int) -> str:
    """Median, and lowest to highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

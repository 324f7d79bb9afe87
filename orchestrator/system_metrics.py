"""How busy a machine is while a trial trains: CPU, memory and GPUs, under the names by which MLflow's UI shows them.

Names are those of `mlflow.system_metrics`, and two of the training process beside them. Nothing of it runs in a
training step: a thread reads counters that the system keeps, and asks no device to finish anything.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEGABYTE = 1e6
PREFIX = "system/"


@contextlib.contextmanager
def sampling(seconds: float, tell: Callable[[dict[str, float]], None]) -> Iterator[None]:
    """While the block runs, `tell` every so many seconds what the machine does, from a thread; 0 is never.

    Nothing is told any more when the block has been left. What cannot be read is left out.
    """
    if not seconds:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_sample, args=(seconds, tell, stop), name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _sample(seconds: float, tell: Callable[[dict[str, float]], None], stop: threading.Event) -> None:
    process, gpus = psutil.Process(), _gpus()
    psutil.cpu_percent(), process.cpu_percent()  # each call tells of the time since the one before
    while not stop.wait(seconds):
        with contextlib.suppress(OSError):  # of a connection that is closed: the job ends, too
            tell({f"{PREFIX}{name}": value for name, value in {**_machine(process), **_of_gpus(gpus)}.items()})


def _machine(process: psutil.Process) -> dict[str, float]:
    memory = psutil.virtual_memory()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": (memory.total - memory.available) / MEGABYTE,
        "system_memory_usage_percentage": memory.percent,
        "process_cpu_utilization_percentage": process.cpu_percent(),  # of one core, so that it may be above 100
        "process_memory_usage_megabytes": process.memory_info().rss / MEGABYTE,
    }


def _gpus() -> dict[int, Any]:
    """NVML's handles of the GPUs that this process may use, by the number that NVML has for them."""
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        numbers = range(pynvml.nvmlDeviceGetCount()) if visible is None else map(int, filter(None, visible.split(",")))
        return {number: pynvml.nvmlDeviceGetHandleByIndex(number) for number in numbers}
    except (pynvml.NVMLError, ValueError):  # no driver; or GPUs that are named otherwise than by numbers
        return {}


def _of_gpus(gpus: dict[int, Any]) -> dict[str, float]:
    import pynvml

    found: dict[str, float] = {}
    for number, handle in gpus.items():
        with contextlib.suppress(pynvml.NVMLError):  # some cards do not tell everything
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            found[f"gpu_{number}_memory_usage_percentage"] = 100 * memory.used / memory.total
            found[f"gpu_{number}_memory_usage_megabytes"] = memory.used / MEGABYTE
            found[f"gpu_{number}_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            found[f"gpu_{number}_power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
    return found

"""How fast a training is and how much memory it takes: told with each epoch's metrics, and no results."""

from __future__ import annotations

import re
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

SPEED_METRICS = ("images_per_second", "step_seconds", "peak_memory_bytes")  # of every epoch
LATENCY = "latency_ms"
ALL_SPEED_METRICS = (*SPEED_METRICS, LATENCY)  # that is told once, where `latency=true` asks for it
NUM_WARM_UP, NUM_TIMED = 3, 20  # forward passes of one image
PROCESS = Path("/proc/self")
RESET_PEAK = "5"  # proc(5), clear_refs: since Linux 4.0


def results(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics without those of speed: what the same training gives again."""
    return {name: value for name, value in metrics.items() if name not in ALL_SPEED_METRICS}


def latency_ms(answer: Callable[[], object], device: torch.device) -> float:
    """Milliseconds that `answer` takes on the device, the median of 20 calls; others on the machine count as well."""
    import torch

    taken = []
    for _ in range(NUM_WARM_UP + NUM_TIMED):
        started = time.perf_counter()
        answer()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        taken.append(time.perf_counter() - started)
    return 1000 * statistics.median(taken[NUM_WARM_UP:])


class PeakMemory:
    """The most memory in use since this was made: of the CUDA device, else of the process, where the system tells."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._is_known = self._is_cuda or _reset_process()
        if self._is_cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(device)

    def metrics(self) -> dict[str, float]:
        """`peak_memory_bytes`, or nothing where it can't be known."""
        if not self._is_known:
            return {}
        if not self._is_cuda:
            return _process_peak()
        import torch

        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(self._device)}


def _reset_process() -> bool:
    """Let the process's peak begin here; whether the system allows it."""
    try:
        (PROCESS / "clear_refs").write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _process_peak() -> dict[str, float]:
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB$", (PROCESS / "status").read_text(), re.MULTILINE)
    except OSError:
        return {}
    return {"peak_memory_bytes": int(found[1]) * 1024} if found else {}

"""Where the time of a training step goes: a trace for chrome://tracing or Perfetto, and a table of the operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.profiler import ProfilerActivity, profile, schedule

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import torch

TRACE, TABLE = "trace.json", "operators.txt"
NUM_WAIT, NUM_WARM_UP, NUM_STEPS = 2, 1, 10  # the first steps of a process are not like the others
NUM_ROWS = 25


class Profiler:
    """Watches some steps of a training, and leaves `trace.json` and `operators.txt` in a folder."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._is_cuda = folder, device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._is_cuda else [])]
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=NUM_WAIT, warmup=NUM_WARM_UP, active=NUM_STEPS, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )

    def step(self) -> None:
        """A step has ended."""
        self._profile.step()

    def _write(self, found: profile) -> None:
        found.export_chrome_trace(str(self._folder / TRACE))
        order = "self_cuda_time_total" if self._is_cuda else "self_cpu_time_total"
        table = found.key_averages(group_by_input_shape=True).table(sort_by=order, row_limit=NUM_ROWS)
        (self._folder / TABLE).write_text(f"{NUM_STEPS} training steps\n{table}\n")

    def __enter__(self) -> Self:
        self._profile.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._profile.stop()

"""TensorBoard's events of a training, in one file an attempt: a resumed one begins with those of its epochs so far."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.tensorboard import SummaryWriter

from recipes import event_files
from recipes.device import random_states, set_random_states

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

NUM_BUCKETS = 30  # as many as TensorBoard shows

log = logging.getLogger(__name__)


class Events:
    """The events file of an attempt. `has` holds the tags that are there of the epochs so far, by step."""

    def __init__(self, folder: Path, earlier: Path | None, history: Sequence[dict[str, Any]], at_end: Collection[str]):
        """With the events of an `earlier` folder, but for tags `at_end` and for epochs that are trained again."""
        older = list(folder.glob(event_files.PATTERN))
        kept = list(_kept(earlier, len(history), at_end)) if earlier else []
        self._writer = SummaryWriter(str(folder))
        self.has: set[tuple[int, str]] = set()
        for event in kept:
            self.has |= {(event.step, tag) for tag in _tags(event)}
            self._writer._get_file_writer().event_writer.add_event(event)  # type: ignore[no-untyped-call]
        for epoch in history:  # which may be more than there are events of
            if (epoch["number"], "val_loss") not in self.has:
                self.scalars(epoch["metrics"], epoch["number"])
        self.flush()
        for path in older:  # of an attempt that goes on in its own folder
            path.unlink()

    def scalars(self, metrics: Mapping[str, float], step: int) -> None:
        """A value each."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def histograms(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """How the finite numbers of each tensor are distributed."""
        for tag, tensor in tensors.items():
            values = tensor.detach().flatten().float()
            values = values[values.isfinite()]
            if len(values):
                self._writer.add_histogram_raw(tag, **_histogram(values), global_step=step)

    def image(self, tag: str, pixels: NDArray[np.uint8], step: int) -> None:
        """A picture `(H, W, 3)`."""
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def graph(self, model: nn.Module, image: Tensor) -> None:
        """The operations of a model on a batch; one that can't be traced leaves a warning and no graph."""
        states = random_states(image.device)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")  # TorchScript is deprecated; nothing else gives TensorBoard its graph
                self._writer.add_graph(copy.deepcopy(model), image)
        except Exception as error:  # whatever a model does that can't be traced
            reason = (str(error).strip().splitlines() or ["no message"])[0]
            log.warning("TensorBoard gets no graph of the model: %s: %s", type(error).__name__, reason)
        finally:
            set_random_states(states, image.device)

    def flush(self) -> None:
        """Hand all to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is left, and end the writer's thread."""
        self._writer.close()


def _kept(earlier: Path, last_epoch: int, at_end: Collection[str]) -> Iterator[Any]:
    seen: set[tuple[int, str]] = set()
    for event in event_files.read(earlier):
        tags = {(event.step, tag) for tag in _tags(event)}
        if tags and event.step <= last_epoch and not tags & seen and not {tag for _, tag in tags} & set(at_end):
            seen |= tags
            yield event


def _tags(event: Any) -> list[str]:
    return ["graph"] if event.graph_def else [value.tag for value in event.summary.value]


def _histogram(values: Tensor) -> dict[str, Any]:
    """What TensorBoard keeps of numbers `(N,)`, found where they are."""
    low, high = (float(each) for each in torch.aminmax(values))
    wide = values.double()
    limits, counts = [high], [float(len(values))]
    if low < high:
        limits = torch.linspace(low, high, NUM_BUCKETS + 1, dtype=torch.float64)[1:].tolist()
        counts = torch.histc(values, NUM_BUCKETS, low, high).tolist()
    return {
        "min": low,
        "max": high,
        "num": len(values),
        "sum": float(wide.sum()),
        "sum_squares": float(wide.square().sum()),
        "bucket_limits": limits,
        "bucket_counts": counts,
    }

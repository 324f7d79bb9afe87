"""Micro-batching: requests that arrive while a batch is computed form the next one; nobody waits when nothing runs.

One thread computes. All else happens in the event loop's thread, so that there is no lock; the two hand each other
whole batches. onnxruntime computes without Python's lock, so the next requests are read meanwhile. What takes less than
a millisecond is computed by the event loop itself, since it costs a third of that to have it done by another thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from orchestrator.errors import OrchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from orchestrator.serving.following import Following, Loaded
    from orchestrator.serving.measures import Measures

    Inputs = NDArray[np.uint8] | NDArray[np.float32]

logger = logging.getLogger(__name__)

# Values of one batch of several requests: pictures become floats of four times their size, more than once.
MAX_BATCH_VALUES = 50_000_000
# A batch that is expected to take less is computed by the event loop.
QUICK_SECONDS = 0.001
# Bytes of decoded pictures that wait; a small file can hold a large picture.
MAX_WAITING_BYTES = 500_000_000


class FullError(OrchError):
    """Too much is waiting already."""


class ComputeError(OrchError):
    """onnxruntime could not compute a batch."""


class Answer(NamedTuple):
    """What a version says: its graph's outputs `(N, K)` by name."""

    outputs: Mapping[str, NDArray[np.float32]]
    by: Loaded


class _Waiting(NamedTuple):
    inputs: Inputs
    answer: asyncio.Future[Answer]

    @property
    def kind(self) -> tuple[Any, ...]:
        """What must be the same in one batch."""
        return self.inputs.dtype, self.inputs.shape[1:]


class Batcher:
    """Has the version that `following` names compute what is asked for, several requests at a time."""

    def __init__(self, following: Following, measures: Measures, *, max_batch: int) -> None:
        """Start the thread that computes; call this where the event loop runs."""
        self._following, self._measures, self._max_batch = following, measures, max_batch
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._is_busy = False
        self._batches: queue.SimpleQueue[Sequence[_Waiting] | None] = queue.SimpleQueue()
        threading.Thread(target=self._compute_all, name="compute", daemon=True).start()

    def close(self) -> None:
        """End the thread."""
        self._batches.put(None)

    async def answer(self, inputs: Inputs) -> Answer:
        """What the present version says of pictures `(N, H, W, C)` uint8 or rows `(N, F)` float32.

        Raises:
            UsageError: the version does not take such inputs.
            FullError: too many bytes wait already.
            ComputeError: onnxruntime failed.
        """
        if self._waiting and self._waiting_bytes + inputs.nbytes > MAX_WAITING_BYTES:
            raise FullError(f"{self._waiting_bytes:,} bytes of pictures are waiting")
        waiting = _Waiting(inputs=inputs, answer=self._loop.create_future())
        self._waiting.append(waiting)
        self._waiting_bytes += inputs.nbytes
        if not self._is_busy:
            self._is_busy = True
            self._loop.call_soon(self._begin)  # after all requests that have been read by now
        return await waiting.answer

    def _begin(self) -> None:
        batch = self._take()
        self._is_busy = bool(batch)
        if not batch:
            return
        loaded = self._following.loaded
        if sum(loaded.seconds_for(waiting.inputs) for waiting in batch) < QUICK_SECONDS:
            self._deliver(batch, self._compute(batch))
        else:
            self._batches.put(batch)

    def _take(self) -> list[_Waiting]:
        """The oldest request and those after it that may go with it; others keep their places."""
        batch: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        rows = 0
        for waiting in self._waiting:
            count = len(waiting.inputs)
            if waiting.answer.done():  # its time is up
                self._waiting_bytes -= waiting.inputs.nbytes
            elif not batch or (waiting.kind == batch[0].kind and self._fits(rows + count, waiting.inputs)):
                batch.append(waiting)
                rows += count
                self._waiting_bytes -= waiting.inputs.nbytes
            else:
                left.append(waiting)
        self._waiting = left
        return batch

    def _fits(self, rows: int, inputs: Inputs) -> bool:
        return rows <= self._max_batch and rows * inputs[0].size <= MAX_BATCH_VALUES

    def _deliver(self, batch: Sequence[_Waiting], found: Answer | OrchError) -> None:
        begin = 0
        for waiting in batch:
            end = begin + len(waiting.inputs)
            if waiting.answer.done():
                pass
            elif isinstance(found, OrchError):
                waiting.answer.set_exception(found)
            else:
                outputs = {name: values[begin:end] for name, values in found.outputs.items()}
                waiting.answer.set_result(Answer(outputs=outputs, by=found.by))
            begin = end
        self._loop.call_soon(self._begin)

    def _compute_all(self) -> None:
        while (batch := self._batches.get()) is not None:
            found = self._compute(batch)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waited for this batch
                self._loop.call_soon_threadsafe(self._deliver, batch, found)

    def _compute(self, batch: Sequence[_Waiting]) -> Answer | OrchError:
        since = time.perf_counter()
        by = self._following.loaded
        try:
            each: list[Any] = [waiting.inputs for waiting in batch]
            inputs = each[0] if len(each) == 1 else np.concatenate(each)
            outputs = by.model.outputs(inputs)
        except OrchError as error:
            return error
        except Exception as error:  # onnxruntime's have no common base, and a batch may take too much memory
            logger.exception("version %s failed on %s", by.version, batch[0].kind)
            return ComputeError(f"version {by.version} could not compute an answer: {type(error).__name__}")
        self._measures.batch_size.observe(len(inputs))
        self._measures.batch_seconds.observe(time.perf_counter() - since)
        return Answer(outputs=outputs, by=by)

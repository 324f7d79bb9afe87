"""A `DataLoader` that is given its keys pass by pass, and whose workers are told of when they fail, die or hang.

torch says of a worker that died that it "exited unexpectedly"; here the process is named and what it was at, and no
worker outlives the training, however that ended.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import psutil
import torch
from torch.utils import data as torch_data

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.context import BaseContext

CHECK_SECONDS = 2.0  # between two looks at whether workers live
STALL_SECONDS = 120.0  # without a batch, after which workers are taken to hang; importing torch may take long
DEATH_SECONDS = 1.0  # at most, from a connection that breaks to the death of the worker at its other end
BATCHES_AHEAD = 2  # a worker
ADVICE = "loader_workers=0 loads in the training process"
SHARED_MEMORY = "/dev/shm"
SPARE_BYTES = 1 << 24  # less than a few batches


class LoaderError(RuntimeError):
    """A loader worker failed, died or hangs; the message is one line that names it and what it was at."""


class Readable(Protocol):
    """What loader workers read: tensors by key, or, where it is a `Stream`, one after another."""

    def whereabouts(self, number: int) -> str:
        """What a worker is at, by the number it left."""


@runtime_checkable
class Stream(Readable, Protocol):
    """What gives tensors in an order of its own, from the seed that is the last number of its `board`."""

    board: Any

    def __iter__(self) -> Iterator[Any]:
        """One pass, of which each worker gives its share."""


class Loader:
    """A `DataLoader` that is given its keys pass by pass.

    Raises, from its passes:
        LoaderError: a worker failed, died or hangs; all are ended then.
    """

    def __init__(self, source: Readable, num_workers: int, device: torch.device) -> None:
        self._source, self._keys = source, _Keys()
        context = _context() if num_workers else None
        # Two numbers a worker, which survive it: its process, and what it is at. The last is a stream's seed.
        size = 2 * num_workers + 1
        self._board: Any = context.RawArray("q", size) if context else [0] * size
        told: torch_data.Dataset[Any] = _Told(source)
        if isinstance(source, Stream):
            source.board = self._board
            told = _ToldStream(source)
        self._loader: torch_data.DataLoader[Any] = torch_data.DataLoader(
            told,
            batch_size=None,
            sampler=None if isinstance(source, Stream) else self._keys,
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            timeout=CHECK_SECONDS if num_workers else 0,
            worker_init_fn=functools.partial(_begin, self._board),
            multiprocessing_context=context,
            generator=torch.Generator(),  # else each pass would draw from the global one
            prefetch_factor=BATCHES_AHEAD if num_workers else None,
            persistent_workers=num_workers > 0,
        )

    def run(self, keys: Sequence[Any] = (), seed: int = 0) -> Iterator[Any]:
        """What the source has for each key, in order; or all that a stream has, in the order of a seed."""
        self._keys.now = keys
        self._board[-1] = seed
        try:
            passing = iter(self._loader)
            with contextlib.suppress(StopIteration):
                while True:
                    yield self._next(passing)
        except (RuntimeError, OSError, EOFError) as error:
            message = str(error) if isinstance(error, LoaderError) else self._told(error)
            self._end_workers()
            raise LoaderError(message) from error

    def _next(self, passing: Iterator[Any]) -> Any:
        """The next item; torch looks after its workers when it has waited in vain, and can be asked again."""
        deadline = time.monotonic() + STALL_SECONDS
        while True:
            try:
                found = next(passing)
            except RuntimeError as error:
                if "timed out" not in str(error) or time.monotonic() > deadline:
                    raise
            else:
                if isinstance(found, _Failure):
                    raise LoaderError(found.message)
                return found

    def _told(self, error: Exception) -> str:
        """What happened to whom, in one line."""
        pids, at = self._board[:-1:2], self._board[1::2]
        if not pids:
            return _first_line(error)
        is_late = "timed out" in str(error)
        dead = _dead(pids)
        deadline = time.monotonic() + DEATH_SECONDS
        while not dead and not is_late and time.monotonic() < deadline:
            time.sleep(0.01)
            dead = _dead(pids)
        named = dead or [number for number, doing in enumerate(at) if doing]
        advice = _advice(error)
        if not dead and not is_late:
            return f"loader workers: {_first_line(error)}; {advice}"
        happened = "ended unexpectedly" if dead else f"gave nothing for {STALL_SECONDS:.0f} s"
        who = ", ".join(f"{number} (process {pids[number]})" for number in named or range(len(pids)))
        doing = f" at {self._source.whereabouts(at[named[0]] - 1)}" if named and at[named[0]] else ""
        return f"loader worker {who} {happened}{doing}; {advice}"

    def _end_workers(self) -> None:
        """Those that hang would not end when they are asked to."""
        for pid in self._board[:-1:2]:
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGKILL)


def _dead(pids: Sequence[int]) -> list[int]:
    """The numbers of those workers that have begun and are gone."""
    found = []
    for number, pid in enumerate(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not pid or psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                continue
        found.append(number)
    return found


class _Keys:
    """The keys of the present pass, as `DataLoader` wants a sampler."""

    now: Sequence[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.now)

    def __len__(self) -> int:
        return len(self.now)


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker, in one line; its traceback is printed where it happened."""

    message: str


@dataclass(frozen=True)
class _Told(torch_data.Dataset[Any]):
    """A source that hands on what goes wrong, and puts what a worker read where its parent can take it."""

    source: Any

    def __getitem__(self, key: Any) -> Any:
        try:
            return _shared(self.source[key])
        except Exception as error:
            return _failure(self.source, error)
        finally:
            _board[1] = 0


@dataclass(frozen=True)
class _ToldStream(torch_data.IterableDataset[Any]):
    """The same of a stream."""

    source: Stream

    def __iter__(self) -> Iterator[Any]:
        try:
            for found in self.source:
                yield _shared(found)
        except Exception as error:
            yield _failure(self.source, error)
        finally:
            _board[1] = 0


def _shared(found: Any) -> Any:
    """Tensors in shared memory: here, and not when they are sent, from a thread whose errors nobody hears of."""
    if torch_data.get_worker_info() is None:
        return found
    if isinstance(found, tuple):
        return tuple(each.share_memory_() for each in found)
    return found.share_memory_()


def _failure(source: Readable, error: Exception) -> _Failure:
    worker = torch_data.get_worker_info()
    if worker is None:
        raise error
    traceback.print_exc()
    doing = f" at {source.whereabouts(_board[1] - 1)}" if _board[1] else ""
    who = f"loader worker {worker.id} (process {os.getpid()})"
    return _Failure(f"{who} failed{doing}: {_first_line(error)}; {_advice(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _advice(error: Exception) -> str:
    """What to change: memory that processes share, if there was no room to hand a batch over."""
    full = "shm" in str(error)
    with contextlib.suppress(OSError):
        found = os.statvfs(SHARED_MEMORY)
        full = full or found.f_bavail * found.f_frsize < SPARE_BYTES
    return f"{SHARED_MEMORY} is full: make it larger (docker's --shm-size), or {ADVICE}" if full else ADVICE


def _context() -> BaseContext:
    """Where new processes come from: one that has imported what they need, as this one has threads; or each anew."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


# -- in a worker

_board: Any = [0, 0]


def note(number: int) -> None:
    """Leave word of what is being worked at, a number from 0, for when this process dies of it."""
    _board[1] = number + 1


def _begin(board: Any, worker: int) -> None:
    """A worker's first act: to end with its parent, however that ends, and to say who it is."""
    global _board
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the training, which ends its workers
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    _board = _Part(board, 2 * worker)
    _board[0] = os.getpid()


def _end_with_parent() -> None:
    """See that a worker is gone as soon as its training is, however that ended.

    What torch looks for is the process that this one was forked from; and that one waits for all its children.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has one"
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


class _Part:
    """Two numbers of a longer array."""

    def __init__(self, whole: Any, start: int) -> None:
        self._whole, self._start = whole, start

    def __getitem__(self, index: int) -> int:
        return int(self._whole[self._start + index])

    def __setitem__(self, index: int, value: int) -> None:
        self._whole[self._start + index] = value

"""How batches come to the device: from images that lie there, or brought by loader workers one batch ahead.

Workers only gather: whatever is random is drawn on the device, from the trial's own generators. So a training has the
same bits however its batches come, and however many workers bring them.

Images a second on the CPU, gathered, cropped (4 pixels of padding), flipped and normalised in batches of 256, one
thread of an AMD EPYC of two cores that had other work, torch 2.15; median of 5 epochs and in brackets lowest to highest
in thousands. A loader pays where images come from a file that does not fit into memory, not here:

=========================== ====================== ======================
brought by                  32 by 32, colour       128 by 128, colour
=========================== ====================== ======================
nobody: resident            32,400 (32.0 to 35.2)  2,540 (1.9 to 3.1)
the training process        40,000 (33.9 to 43.6)  1,390 (1.2 to 1.8)
one worker                  38,700 (28.2 to 44.6)  1,820 (0.9 to 1.9)
two workers                 43,100 (34.8 to 46.7)  1,570 (1.4 to 2.1)
=========================== ====================== ======================
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import psutil
import torch
from torch.utils import data as torch_data

from recipes.data import Loaded
from recipes.data.shards import in_pieces
from recipes.data.stream import StreamSplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.context import BaseContext

    from numpy.typing import NDArray
    from torch import Tensor

    from recipes.config import FitConfig, TrainConfig
    from recipes.data import Dataset, Split
    from recipes.data.shards import Stream

FREE_SHARE = 0.5  # of the memory that is free, which `loading=auto` takes for images
CHECK_SECONDS = 2.0  # between two looks at whether workers live
STALL_SECONDS = 120.0  # without a batch, after which workers are taken to hang; importing torch may take long
DEATH_SECONDS = 1.0  # at most, from a connection that breaks to the death of the worker at its other end
BATCHES_AHEAD = 2  # a worker
ROW_BITS = 40
CHUNK_IMAGES, CHUNK_BYTES = 64, 1 << 22  # of a stream, that a worker hands over at once, at most
MAX_SEED = 2**62
ADVICE = "loader_workers=0 loads in the training process"
SHARED_MEMORY = "/dev/shm"
SPARE_BYTES = 1 << 24  # less than a few batches


T = TypeVar("T")
BatchT = TypeVar("BatchT", torch.Tensor, Loaded)  # rows of what lies on the device, or images brought there


class LoaderError(RuntimeError):
    """A loader worker failed, died or hangs; the message is one line that names it and what it was at."""


class Own(Protocol):
    """Of a batch, the parts that it is computed in, as far as this process computes them."""

    def __call__(self, batch: BatchT) -> list[BatchT]:
        """Some of the batch, in order."""


class Feed(Protocol):
    """Brings the batches of a data set's splits to the device."""

    def train(self, order: Tensor, num_steps: int, own: Own) -> Iterator[tuple[int, Sequence[Tensor | Loaded]]]:
        """Batches of nearly equal size, of training images in this order: how many, and what of them is asked for."""

    def val(self, rows: Tensor, batch_size: int) -> Iterator[Tensor | Loaded]:
        """These validation images in order."""

    def first(self) -> Tensor | Loaded:
        """One validation image."""


def feed(dataset: Dataset, config: TrainConfig, device: torch.device) -> tuple[Feed, Dataset]:
    """What `config.fit.loading` asks for, and the data set, its images on the device if they are to stay there.

    Raises:
        DataError: a stream is to be resident.
    """
    if isinstance(dataset.train, StreamSplit):
        if config.fit.loading == "resident":
            dataset.train.check_random_access("loading=resident")
        return Streamed(dataset, config.fit, device), dataset
    loading = config.fit.loading
    if loading == "auto":
        fits = _resident_bytes(dataset, config.augment.crop) <= FREE_SHARE * free_bytes(device)
        loading = "resident" if fits else "workers"
    if loading == "workers":
        return Brought(dataset, config.fit.loader_workers, device), dataset
    dataset = replace(dataset, train=dataset.train.to(device), val=dataset.val.to(device))
    return Resident(device), dataset


def free_bytes(device: torch.device) -> int:
    """The memory that a device has to spare; of what shares the machine's memory, what that can give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _resident_bytes(dataset: Dataset, padding: int) -> int:
    """What training and validation images take up on the device, with the copy that random crops are cut from."""
    train = dataset.train.num_bytes
    height, width = dataset.info.height, dataset.info.width
    padded = train * (height + 2 * padding) * (width + 2 * padding) // (height * width) if padding else 0
    return train + padded + dataset.val.num_bytes


class Resident:
    """Images lie on the device: a batch is its rows."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def train(self, order: Tensor, num_steps: int, own: Own) -> Iterator[tuple[int, Sequence[Tensor]]]:
        """See `Feed`."""
        for rows in order.to(self._device).tensor_split(num_steps):
            yield len(rows), own(rows)

    def val(self, rows: Tensor, batch_size: int) -> Iterator[Tensor]:
        """See `Feed`."""
        yield from torch.split(rows.to(self._device), batch_size)

    def first(self) -> Tensor:
        """See `Feed`."""
        return torch.arange(1, device=self._device)


class Brought:
    """Loader workers gather the rows of each batch; they are kept over epochs and serve both splits."""

    def __init__(self, dataset: Dataset, num_workers: int, device: torch.device) -> None:
        self._splits = {"train": dataset.train, "val": dataset.val}
        self._device = device
        self._loader = Loader(_Gathered(self._splits), num_workers, device)

    def train(self, order: Tensor, num_steps: int, own: Own) -> Iterator[tuple[int, Sequence[Loaded]]]:
        """See `Feed`; nothing but what is asked for is brought."""
        steps = order.tensor_split(num_steps)
        asked = [own(rows) for rows in steps]
        loaded = self._batches("train", [torch.cat(parts) for parts in asked])
        for rows, parts, batch in zip(steps, asked, loaded, strict=True):
            yield len(rows), batch.split([len(part) for part in parts])

    def val(self, rows: Tensor, batch_size: int) -> Iterator[Loaded]:
        """See `Feed`."""
        yield from self._batches("val", torch.split(rows, batch_size))

    def first(self) -> Loaded:
        """See `Feed`."""
        val, row = self._splits["val"], torch.arange(1)
        return Loaded(images=val.take(row).to(self._device), labels=val.labels[:1].to(self._device))

    def _batches(self, name: str, parts: Sequence[Tensor]) -> Iterator[Loaded]:
        labels = self._splits[name].labels
        loaded = self._loader.run([(name, part) for part in parts])
        theirs = (labels[part.to(labels.device)] for part in parts)
        yield from ahead(zip(loaded, theirs, strict=True), self._device)


class Streamed:
    """Loader workers read shards from end to end; validation images are brought as any others are."""

    def __init__(self, dataset: Dataset, config: FitConfig, device: torch.device) -> None:
        assert isinstance(dataset.train, StreamSplit), "only a stream is streamed"
        self._rest = Brought(replace(dataset, train=dataset.val), 0, device)
        self._device, self._num_train = device, len(dataset.train.labels)
        shuffled = Shuffled(dataset.train.stream, config.shuffle_buffer)
        self._loader = Loader(shuffled, config.loader_workers, device)

    def train(self, order: Tensor, num_steps: int, own: Own) -> Iterator[tuple[int, Sequence[Loaded]]]:
        """See `Feed`; `order` is the seed of the stream's order. Each rank reads all, and takes its own."""
        sizes = in_pieces(self._num_train, num_steps)
        for batch in ahead(recut(self._loader.run(seed=int(order)), sizes), self._device):
            yield len(batch), own(batch)

    def val(self, rows: Tensor, batch_size: int) -> Iterator[Loaded]:
        """See `Feed`."""
        yield from self._rest.val(rows, batch_size)

    def first(self) -> Loaded:
        """See `Feed`."""
        return self._rest.first()


def recut(chunks: Iterator[tuple[Tensor, Tensor]], sizes: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same images and labels in batches of these sizes."""
    images, labels = next(chunks)
    for size in sizes:
        while len(labels) < size:
            more, their_labels = next(chunks)
            images, labels = torch.cat([images, more]), torch.cat([labels, their_labels])
        yield images[:size], labels[:size]
        images, labels = images[size:], labels[size:]


def ahead(batches: Iterator[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[Loaded]:
    """Batches on the device, the next one on its way there while one is worked on."""
    waiting = None
    for pair in batches:
        ours, theirs = (each.to(device, non_blocking=True) for each in pair)
        if waiting is not None:
            yield waiting
        waiting = Loaded(images=ours, labels=theirs)
    if waiting is not None:
        yield waiting


class Readable(Protocol):
    """What loader workers read: tensors by key, unless it is `Shuffled`."""

    def whereabouts(self, number: int) -> str:
        """What a worker is at, by the number it left."""


@dataclass(frozen=True)
class _Gathered:
    """Rows of splits, by the split's name and the rows."""

    splits: dict[str, Split]

    def __getitem__(self, key: tuple[str, Tensor]) -> Tensor:
        name, rows = key
        note((list(self.splits).index(name) << ROW_BITS) + int(rows[0]))
        return self.splits[name].take(rows)

    def whereabouts(self, number: int) -> str:
        """See `Readable`."""
        name = list(self.splits)[number >> ROW_BITS]
        return f"the batch of {name} that begins with {self.splits[name].name(number % (1 << ROW_BITS))}"


class Shuffled:
    """Chunks of images and labels from shards in another order each pass, their samples through a buffer.

    The order is a function of the seed, the number of workers and the size of the buffer alone.
    """

    board: Any  # its last number is the seed of the present pass

    def __init__(self, stream: Stream, buffer: int) -> None:
        self._stream, self._buffer = stream, buffer

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = torch_data.get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        seed = int(self.board[-1])
        shards = torch.randperm(len(self._stream.files), generator=torch.Generator().manual_seed(seed)).tolist()
        drawn = shuffled(
            self._samples(shards[number::count]), max(1, self._buffer // count), random.Random(f"{seed} {number}")
        )
        at_once = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // math.prod(self._stream.shape)))
        while chunk := list(itertools.islice(drawn, at_once)):
            images, labels = zip(*chunk, strict=True)
            yield torch.from_numpy(np.stack(images)), torch.tensor(labels)

    def _samples(self, shards: Sequence[int]) -> Iterator[tuple[NDArray[np.uint8], int]]:
        for shard in shards:
            note(shard << ROW_BITS)
            for sample, picture, label in self._stream.read(shard):
                note((shard << ROW_BITS) + sample)
                yield picture, label

    def whereabouts(self, number: int) -> str:
        """See `Readable`."""
        return f"{self._stream.files[number >> ROW_BITS]}, sample {number % (1 << ROW_BITS)}"


def shuffled(items: Iterator[T], size: int, generator: random.Random) -> Iterator[T]:
    """All items, each drawn from a buffer of so many that the next ones fill up."""
    buffer: list[T] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = generator.randrange(size)
        yield buffer[place]
        buffer[place] = item
    generator.shuffle(buffer)
    yield from buffer


# -- a loader whose workers can be told of when they fail


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
        if isinstance(source, Shuffled):
            source.board = self._board
        self._loader: torch_data.DataLoader[Any] = torch_data.DataLoader(
            _ToldStream(source) if isinstance(source, Shuffled) else _Told(source),
            batch_size=None,
            sampler=None if isinstance(source, Shuffled) else self._keys,
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

    source: Shuffled

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

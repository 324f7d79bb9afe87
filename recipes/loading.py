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

import itertools
import math
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils import data as torch_data

from recipes.data import Loaded
from recipes.data.shards import in_pieces
from recipes.data.stream import StreamSplit
from recipes.loader import Loader, note
from recipes.memory import free_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from recipes.config import FitConfig, TrainConfig
    from recipes.data import Dataset, Split
    from recipes.data.shards import Stream

FREE_SHARE = 0.5  # of the memory that is free, which `loading=auto` takes for images
ROW_BITS = 40
CHUNK_IMAGES, CHUNK_BYTES = 64, 1 << 22  # of a stream, that a worker hands over at once, at most
MAX_SEED = 2**62


T = TypeVar("T")
BatchT = TypeVar("BatchT", torch.Tensor, Loaded)  # rows of what lies on the device, or images brought there


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

    board: Any = (0,)  # its last number is the seed of the present pass

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

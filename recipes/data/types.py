"""What a data set is: arrays while it is prepared, tensors in three splits when it is used, and what can be wrong."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from recipes.data.stored import Mapped

Task = Literal["classification", "multilabel", "regression"]
CHUNK_BYTES = 1 << 24
TRAIN, VAL, TEST = range(3)
PART_NAMES = {"train": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}


class DataError(ValueError):
    """A data set that is missing, or not what it must be; the message is one line for its owner."""


class UnknownDataError(DataError):
    """No data set has this name; `names` are those that exist."""

    def __init__(self, name: str, names: list[str]) -> None:
        super().__init__(f"unknown data {name!r}; known: {', '.join(names)}")
        self.name, self.names = name, names


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'cats'?` for the nearest of the known names, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table: numbers with their mean and spread in the training split, or categories, told by number.

    `has_gaps` says that values are missing there, which a model may make something of.
    """

    name: str
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    has_gaps: bool = False


def task_from(name: str) -> Task:
    """The task of that name, as a file has it.

    Raises:
        ValueError: there is none.
    """
    for task in get_args(Task):
        if name == task:
            return task  # type: ignore[no-any-return]
    raise ValueError(f"there is no task {name!r}")


def columns_from_json(values: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """The inverse of `asdict` on each."""
    return tuple(Column(**{**column, "categories": tuple(column["categories"])}) for column in values)


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What a model must know of its images; `mean` and `std` are a channel's, of the training split, from 0 to 1.

    `num_classes` is the number of a model's outputs: classes, labels, or numbers, as the `task` says. Of numbers
    `target_mean` and `target_std` are those of the training split, by which they are brought to mean 0 and spread 1.
    A table has `columns`; its rows count as images of one channel, one pixel high.
    """

    channels: int
    height: int
    width: int
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: Task = "classification"
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    columns: tuple[Column, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, for storage beside weights."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ImageInfo:
        """The inverse of `to_json`."""
        plain: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in values.items()}
        return cls(**{**plain, "columns": columns_from_json(values.get("columns", ()))})


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the images of a split are called: by `files` `(N,)` of the whole data set, else by their `numbers` in it."""

    data: str
    numbers: NDArray[np.int64]
    files: NDArray[np.str_] | None

    def __getitem__(self, row: int) -> str:
        number = int(self.numbers[row])
        return f"{self.data} #{number}" if self.files is None else str(self.files[number])


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images `(N, C, H, W)` uint8, or features `(N, ...)` float that need no more preparation; what they should give.

    Labels are classes `(N,)` int64, or float32 `(N, K)`: 0 and 1, or numbers of mean 0 and spread 1.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: Names | None = None

    def to(self, device: torch.device | str) -> Split:
        """The same on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def name(self, row: int) -> str:
        """What the image of a row is called: its file, or its number."""
        return f"#{row}" if self.names is None else self.names[row]

    @property
    def num_bytes(self) -> int:
        """What its images take up."""
        return self.images.nbytes

    @property
    def is_features(self) -> bool:
        """Whether there are features in place of images."""
        return self.images.is_floating_point()

    def check_random_access(self, what: str) -> None:
        """Do nothing if images can be had in any order, as `what` needs.

        Raises:
            DataError: they come in a stream.
        """

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The images of these rows `(B,)`."""
        return self.images[rows]

    def first(self, count: int) -> torch.Tensor:
        """The first images, at most so many."""
        return self.take(self._numbers(0, count))

    def chunks(self) -> Iterator[torch.Tensor]:
        """All images in order, a few megabytes at a time."""
        size = max(1, CHUNK_BYTES * len(self.labels) // max(1, self.num_bytes))
        for start in range(0, len(self.labels), size):
            yield self.take(self._numbers(start, start + size))

    def _numbers(self, start: int, end: int) -> torch.Tensor:
        import torch

        return torch.arange(start, min(end, len(self.labels)), device=self.labels.device)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A batch on the device, before any change: images (or features) and labels as in a split."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def tensor_split(self, num_parts: int) -> list[Loaded]:
        """Parts of nearly equal size, in order, as `torch.tensor_split` makes them."""
        pairs = zip(self.images.tensor_split(num_parts), self.labels.tensor_split(num_parts), strict=True)
        return [Loaded(images=images, labels=labels) for images, labels in pairs]

    def split(self, sizes: list[int]) -> list[Loaded]:
        """Parts of these sizes, in order."""
        import torch

        pairs = zip(torch.split(self.images, sizes), torch.split(self.labels, sizes), strict=True)
        return [Loaded(images=images, labels=labels) for images, labels in pairs]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Three disjoint splits of one data set; training never looks at `test`."""

    info: ImageInfo
    train: Split
    val: Split
    test: Split
    data_fingerprint: str
    split_fingerprint: str

    def to(self, device: torch.device | str) -> Dataset:
        """The same on `device`."""
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is known of N images before one is opened: their labels, and the splits a data set comes with.

    Labels are classes `(N,)` int64, or float32 `(N, K)` for K labels, 0 or 1, or K numbers; `class_names` are the
    names of the classes, the labels or the numbers. `columns` are those of a table, without mean and spread.
    `parts` `(N,)` int8 is the split of each image, where the data set says so itself; a val or test that it lacks is
    cut from its train. None: it says nothing. `files` `(N,)` is where each image lies, seen from the data set's folder,
    where it comes in files of its own.
    """

    labels: NDArray[np.int64] | NDArray[np.float32]
    class_names: tuple[str, ...]
    parts: NDArray[np.int8] | None = None
    task: Task = "classification"
    columns: tuple[Column, ...] = ()
    files: NDArray[np.str_] | None = None

    def take(self, index: NDArray[np.int64]) -> Labels:
        """Those of some images."""
        return replace(
            self,
            labels=self.labels[index],
            parts=None if self.parts is None else self.parts[index],
            files=None if self.files is None else self.files[index],
        )


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """A whole data set: images `(N, C, H, W)` uint8, what they are, and what its owner should be told whenever used.

    In place of images a table has rows `(N, F)` float32: numbers, NaN where one is missing, and numbers of categories.
    Where there are too many to be read whole, the images are those of `mapped`.
    """

    images: NDArray[np.uint8] | NDArray[np.float32]
    about: Labels
    warning: str = ""
    mapped: Mapped | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where arrays come from: `key` changes whenever they do, `read` makes them; `keep` them in the cache or not."""

    key: str
    read: Callable[[], Arrays] = field(compare=False)
    keep: bool = True

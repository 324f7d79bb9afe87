"""A split that is read as a stream: its labels are known, its images come in no order of ours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from recipes.data.types import DataError, Split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recipes.data.shards import Stream

CHUNK_BYTES = 1 << 22


class StreamSplit(Split):
    """Training images in shards; all that would have them in any order is refused."""

    def __init__(self, stream: Stream, labels: torch.Tensor, data: str) -> None:
        vars(self).update(stream=stream, labels=labels, data=data, names=None)

    if TYPE_CHECKING:
        stream: Stream
        data: str

    def check_random_access(self, what: str) -> NoReturn:
        """Refuse.

        Raises:
            DataError: always.
        """
        raise DataError(f"{what} needs training images in any order; data {self.data!r} is a stream")

    @property
    def images(self) -> torch.Tensor:
        """They are never whole."""
        self.check_random_access("this")

    def take(self, rows: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 (there is no way to any row)
        """They are in no order of ours."""
        self.check_random_access("this")

    def to(self, device: torch.device | str) -> Split:  # noqa: ARG002 (images come to the device batch by batch)
        """The same: batches are brought to the device."""
        return self

    @property
    def num_bytes(self) -> int:
        """What its images would take up."""
        return len(self.labels) * int(np.prod(self.stream.shape))

    @property
    def is_features(self) -> bool:
        """They are images."""
        return False

    def chunks(self) -> Iterator[torch.Tensor]:
        """All images in the order of the shards."""
        at_once = max(1, CHUNK_BYTES // math.prod(self.stream.shape))
        for shard in range(len(self.stream.files)):
            found = []
            for _, picture, _ in self.stream.read(shard):
                found.append(picture)
                if len(found) == at_once:
                    yield torch.from_numpy(np.stack(found))
                    found = []
            if found:
                yield torch.from_numpy(np.stack(found))

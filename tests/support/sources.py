"""What loader workers may be given to read, and what they meet there."""

from __future__ import annotations

import os
import signal
import time

import torch

from recipes.loader import note


class Numbers:
    """A tensor of a key's number; the key `bad` is met by what this is made for."""

    def __init__(self, happens: str = "", bad: int = 5) -> None:
        self.happens, self.bad = happens, bad

    def __getitem__(self, key: int) -> torch.Tensor:
        note(key)
        if key == self.bad:
            self._meet()
        return torch.tensor([key])

    def _meet(self) -> None:
        if self.happens == "raise":
            raise ValueError("as the test asked\nand more")
        if self.happens == "hang":
            time.sleep(1000)
        if self.happens == "die":
            os.kill(os.getpid(), signal.SIGKILL)

    def whereabouts(self, number: int) -> str:
        return f"number {number}"

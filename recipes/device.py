"""What a process has one of: its device, how that computes, and the global random generators."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` takes the best there is.

    Raises:
        ValueError: a device that is not there.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    there = [*(["cuda"] if gpus else []), *gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    if name == "auto":
        return torch.device(there[0])
    if name not in there:
        raise ValueError(f"device {name!r} is not there; this machine has: {', '.join(there)}")
    return torch.device(name)


def check_devices(name: str, count: int) -> None:
    """See that one trial can train on `count` devices of that name.

    Raises:
        ValueError: there are not so many, or the name is of one device.
    """
    device = choose_device(name)
    if count == 1 or device.type == "cpu":
        return
    if device.type != "cuda" or device.index is not None:
        raise ValueError(f"devices={count} needs device=cuda or device=cpu; found device={name}")
    if count > torch.cuda.device_count():
        raise ValueError(f"devices={count} is more than the {torch.cuda.device_count()} GPUs of this machine")


def allow_tf32(allowed: bool) -> None:
    """Whether products of fp32 may be rounded to TF32; torch by itself allows it in convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def seed_all(seed: int) -> None:
    """Seed all global generators."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of the global generators, in plain Python and tensors, as `torch.load` is to read them safely.

    Their 1,249 numbers go into tensors: as a list, saving them took as long as saving the weights of a small model.
    """
    version, internal, gauss = random.getstate()
    kind, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())
    states = {
        "python": (version, torch.tensor(internal), gauss),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Go on from what `random_states` gave."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps":
        torch.mps.set_rng_state(states["mps"])

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from recipes import data
from recipes.config import DatasetConfig
from recipes.data import Dataset, ImageInfo, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True, scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the session's own, filled once, and the one thread that all child processes have as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCH_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("OMP_NUM_THREADS", "1")
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        data.fingerprints(DatasetConfig())
        yield
        torch.set_num_threads(num_threads)


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Run a script in a new process and give its standard output; another exit status than `expected` fails."""

    def run(script: str, *arguments: object, expected: int = 0, home: Path | None = None) -> str:
        environment = {**os.environ, **({"ORCH_HOME": str(home)} if home else {})}
        command = [sys.executable, "-c", script, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
        assert done.returncode == expected, done.stderr
        return done.stdout

    return run


@pytest.fixture
def features() -> Dataset:
    """Four classes that a linear layer learns in a step: each row is the one-hot of its label."""
    labels = torch.arange(4).repeat(8)
    split = Split(images=torch.eye(4)[labels], labels=labels)
    info = ImageInfo(channels=1, height=2, width=2, num_classes=4, class_names=tuple("abcd"), mean=(0.0,), std=(1.0,))
    return Dataset(info=info, train=split, val=split, test=split, data_fingerprint="d", split_fingerprint="s")

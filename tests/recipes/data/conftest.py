from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from recipes.config import DatasetConfig
from recipes.data import cache

if TYPE_CHECKING:
    from pathlib import Path

    from recipes.data import Split


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    """A state folder of the test's own, which is not there yet."""
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    cache.prepared.cache_clear()
    return tmp_path / "home"


@pytest.fixture
def grey_folder(tmp_path):
    """Make a folder of grey pictures of one level each: `{"cats": 5}` has levels 0 to 4; 4 x 4 pixels."""

    def make(counts: dict[str, int], name: str = "pictures") -> Path:
        for folder, count in counts.items():
            (tmp_path / name / folder).mkdir(parents=True)
            for level in range(count):
                image = Image.fromarray(np.full((4, 4), level, np.uint8))
                image.save(tmp_path / name / folder / f"{level:03}.png")
        return tmp_path / name

    return make


def folder_config(path: Path, **fields: object) -> DatasetConfig:
    return DatasetConfig.model_validate({"data": f"folder:{path}", **fields})


def levels(split: Split) -> list[int]:
    """The grey level of each picture, sorted."""
    return sorted(split.images[:, 0, 0, 0].tolist())

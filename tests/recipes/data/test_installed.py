"""Data sets of installed packages: entry points of a real package on the path."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from recipes import data
from recipes.config import DatasetConfig
from recipes.data import DataError

NUMBERS = itertools.count()

GOOD = """
    calls.append(1)
    return np.arange(40 * 3 * 25, dtype=np.uint32).astype(np.uint8).reshape(40, 3, 5, 5), [0, 1] * 20, ["no", "yes"]
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package that offers the data set `mine`, with this body of its function."""

    def install(body: str) -> str:
        module = f"mine_{next(NUMBERS)}"
        (tmp_path / f"{module}.py").write_text(f"import numpy as np\ncalls = []\ndef read():{body}")
        meta = tmp_path / f"{module}-1.dist-info"
        meta.mkdir()
        (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
        (meta / "entry_points.txt").write_text(f"[orch.data]\nmine = {module}:read\n")
        monkeypatch.syspath_prepend(tmp_path)
        return module

    return install


def test_installed_data_set_is_known_by_name_and_called_once_a_process(package, home):
    module = package(GOOD)
    assert "mine" in data.names()
    dataset = data.load(DatasetConfig(data="mine"))
    data.fingerprints(DatasetConfig(data="mine", split_seed=1))
    assert len(__import__(module).calls) == 1
    assert dataset.info.class_names == ("no", "yes")
    assert dataset.train.images.shape == (24, 3, 5, 5)
    assert np.bincount(dataset.test.labels).tolist() == [4, 4]
    assert not home.exists()
    assert data.load(DatasetConfig(data="mine", image_size=3, limit=20)).train.images.shape == (12, 3, 3, 3)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (" return 1 / 0\n", r"'mine' \(mine_\d+:read\) fails: ZeroDivisionError: division by zero"),
        (" return 1\n", r"fails: TypeError: cannot unpack"),
        (
            ' return np.zeros((4, 1, 2, 2)), [0, 1] * 2, "ab"\n',
            r"images must be uint8 .*; found float64 \(4, 1, 2, 2\)",
        ),
        (
            ' return np.zeros((4, 2, 2, 2), "u1"), [0, 1] * 2, "ab"\n',
            r"one or three channels; found uint8 \(4, 2, 2, 2\)",
        ),
        (' return np.zeros((0, 1, 2, 2), "u1"), [], "ab"\n', r"images must be .*; found uint8 \(0, 1, 2, 2\)"),
        (' return np.zeros((4, 1, 2, 2), "u1"), [0, 1], "ab"\n', r"labels must be 4 whole numbers"),
        (
            ' return np.zeros((4, 1, 2, 2), "u1"), [0, 1, 1, np.nan], "ab"\n',
            r"labels must be 4 whole .*; found float64",
        ),
        (
            ' return np.zeros((4, 1, 2, 2), "u1"), [0, 1, 2, 0], "ab"\n',
            r"labels go from 0 to 2, but there are 2 classes",
        ),
        (' return np.zeros((9, 1, 2, 2), "u1"), [-1] * 9, "ab"\n', r"labels go from -1 to -1"),
    ],
)
def test_what_is_no_data_set_is_told_in_one_line(package, body, message):
    package(body)
    with pytest.raises(DataError, match=message) as caught:
        data.load(DatasetConfig(data="mine"))
    assert str(caught.value).isprintable()

"""The 1,797 scanned digits of scikit-learn, 8 by 8, 17 grey levels (UCI, Optical Recognition of Digits)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recipes.data.types import Arrays, Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read() -> Arrays:
    """All of them, from 0 to 255."""
    table = read_table()
    return Arrays(
        images=np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8),
        about=Labels(labels=table[:, -1].astype(np.int64), class_names=tuple(str(digit) for digit in range(10))),
    )


def read_table() -> NDArray[np.float64]:
    """A row an image: 64 grey levels from 0 to 16, then the label."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None, "it is required"
    file = Path(str(spec.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():  # read in 5 ms where it lies; to import scikit-learn takes more than a second
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])

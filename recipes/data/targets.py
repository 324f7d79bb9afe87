"""What the columns of a table ask for: a class a row, any number of labels, or numbers.

Of labels, one column holds their names with `|` between them (an empty one has no label), or several columns hold 0 and
1 each.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.data.types import DataError, Labels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recipes.data.types import Task

    Columns = dict[str, list[str]]

BETWEEN_LABELS = "|"
BINARY = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


def read(columns: Columns, targets: Sequence[str], task: Task, table: Path) -> Labels:
    """The labels of all rows.

    Raises:
        DataError: a row without what is asked for, or with something else.
    """
    if task == "regression":
        return _numbers(columns, targets, table)
    if task == "multilabel":
        return _several(columns, targets, table) if len(targets) > 1 else _listed(columns[targets[0]], table)
    if len(targets) > 1:
        raise DataError(f"{table}: {len(targets)} target columns need task=multilabel or task=regression")
    return _classes(columns, targets[0], table)


def check_filled(columns: Columns, name: str, table: Path) -> None:
    """See that a column has a value in each row."""
    missing = [number for number, value in enumerate(columns[name], 1) if not value]
    if missing:
        raise DataError(
            f"{table}: {len(missing)} of {len(columns[name])} rows have no {name!r}, the first is row {missing[0]}"
        )


def _classes(columns: Columns, target: str, table: Path) -> Labels:
    check_filled(columns, target, table)
    values = columns[target]
    names = sorted(set(values), key=int if all(value.isdecimal() for value in values) else None)
    numbers = {name: number for number, name in enumerate(names)}
    return Labels(labels=np.array([numbers[value] for value in values], np.int64), class_names=tuple(names))


def _listed(values: Sequence[str], table: Path) -> Labels:
    """One column of names: `cat|dog`."""
    found = [{name.strip() for name in value.split(BETWEEN_LABELS) if name.strip()} for value in values]
    names = sorted(set().union(*found))
    if not names:
        raise DataError(f"{table}: no row has a label")
    labels = np.array([[name in row for name in names] for row in found], np.float32)
    return Labels(labels=labels, class_names=tuple(names), task="multilabel")


def _several(columns: Columns, targets: Sequence[str], table: Path) -> Labels:
    """A column of 0 and 1 a label."""

    def read(name: str, number: int, value: str) -> float:
        if value.lower() not in BINARY:
            raise DataError(f"{table}: row {number} has {value!r} for the label {name!r}; expected 0 or 1")
        return BINARY[value.lower()]

    labels = _stacked(columns, targets, read)
    for name, column in zip(targets, labels.T, strict=True):
        if not column.any():
            raise DataError(f"{table}: no row has the label {name!r}")
    return Labels(labels=labels, class_names=tuple(targets), task="multilabel")


def _numbers(columns: Columns, targets: Sequence[str], table: Path) -> Labels:
    def read(name: str, number: int, value: str) -> float:
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not math.isfinite(found):
            raise DataError(f"{table}: row {number} has {value!r} for {name!r}; expected a number")
        return found

    return Labels(labels=_stacked(columns, targets, read), class_names=tuple(targets), task="regression")


def _stacked(columns: Columns, targets: Sequence[str], read: Any) -> NDArray[np.float32]:
    """`(N, K)`: `read(name, row, value)` of each value."""
    rows = [[read(name, number, value) for number, value in enumerate(columns[name], 1)] for name in targets]
    return np.array(rows, np.float32).T.copy()

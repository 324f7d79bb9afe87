"""The rows of a table as inputs of a model: numbers as they are, categories by their numbers, NaN for what is missing.

Nothing is scaled or spread out here: the model does it (`recipes.modules.Columns`), so that it takes rows as they are
wherever it runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from recipes.data.splits import divisible, limited
from recipes.data.types import Arrays, Column, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recipes.config import DatasetConfig
    from recipes.data.types import Labels

MAX_CATEGORIES = 1000
GAPS = frozenset({"", "nan", "na", "n/a", "null", "none", "?"})


def read(values: Mapping[str, Sequence[str]], about: Labels, config: DatasetConfig, table: Path) -> Arrays:
    """All columns of these values, at most `limit` rows of them.

    Raises:
        DataError: a column of too many words, or without a value, or a split without rows.
    """
    columns = tuple(_column(name, column, table) for name, column in values.items())
    kept = limited(about, config.limit)
    rows = encoded(columns, values)[kept]
    gaps = [bool(np.isnan(column).any()) for column in rows.T]
    described = tuple(
        Column(name=column.name, categories=column.categories, has_gaps=gap)
        for column, gap in zip(columns, gaps, strict=True)
    )
    return divisible(Arrays(images=rows, about=replace(about.take(kept), columns=described)), config)


def encoded(columns: Sequence[Column], values: Mapping[str, Sequence[str]]) -> NDArray[np.float32]:
    """Rows `(N, F)` of the values of each column; what a column of numbers or categories does not know is NaN.

    Raises:
        DataError: a column is missing.
    """
    missing = [column.name for column in columns if column.name not in values]
    if missing:
        raise DataError(f"column {missing[0]!r} is missing; there are {', '.join(values)}")
    return np.array([_encoded(column, values[column.name]) for column in columns], np.float32).T.copy()


def _encoded(column: Column, values: Sequence[str]) -> list[float]:
    if not column.categories:
        return [_number(value) for value in values]
    numbers = {name: float(number) for number, name in enumerate(column.categories)}
    return [numbers.get(value, np.nan) for value in values]


def _column(name: str, values: Sequence[str], table: Path) -> Column:
    filled = [value for value in values if value.lower() not in GAPS]
    if not filled:
        raise DataError(f"{table}: column {name!r} is empty")
    if all(np.isfinite(_number(value)) for value in filled):
        return Column(name=name)
    categories = tuple(sorted(set(filled)))
    if len(categories) > MAX_CATEGORIES or len(categories) == len(values) > 2:
        raise DataError(
            f"{table}: column {name!r} has {len(categories)} different words in {len(values)} rows, such as "
            f"{filled[0]!r}; leave it out, or give numbers or categories"
        )
    return Column(name=name, categories=categories)


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return np.nan

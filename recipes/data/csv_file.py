"""`csv:PATH`: a table of picture files and labels, its first row the names of its columns.

Labels are in the column that `target` names, else in `label`, else in the last one. Pictures are in the first column of
which a value is a file, seen from the table's own folder. A column `split` may say train, val or test.
"""

from __future__ import annotations

import csv
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recipes.data import paths, pictures
from recipes.data.types import PART_NAMES, TRAIN, DataError, Labels, Source, nearest

if TYPE_CHECKING:
    from recipes.config import DatasetConfig

    Columns = dict[str, list[str]]

SPLIT = "split"
LABEL = "label"


def source(config: DatasetConfig, path: str) -> Source:
    """The pictures that a table names.

    Raises:
        DataError: no table, no such column, or a row without its label.
    """
    table = Path(path)
    paths.check_file(table)
    columns = _read(table)
    target = _target(columns, config.target, table)
    image = _image_column(columns, target, table)
    files = [table.parent / value for value in columns[image]]
    about = _labels(columns, target, table)
    key = paths.key_of([table, *files], pictures.VERSION, target, image)
    return Source(key=key, read=functools.partial(pictures.read, files, about, config, table.parent))


def _read(table: Path) -> Columns:
    """The values of each column, without spaces around them."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [[value.strip() for value in row] for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not a CSV file in UTF-8: {error}") from error
    if len(rows) < 2:
        raise DataError(f"{table} has no rows; the first one names the columns")
    names = rows[0]
    if len(set(names)) < len(names):
        raise DataError(f"{table} has two columns of one name: {', '.join(names)}")
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(names):
            raise DataError(f"{table}: row {number} has {len(row)} values, the table has {len(names)} columns")
    return {name: list(values) for name, values in zip(names, zip(*rows[1:], strict=True), strict=True)}


def _target(columns: Columns, target: str, table: Path) -> str:
    if target and target not in columns:
        known = nearest(target, columns) or f"; it has {', '.join(columns)}"
        raise DataError(f"{table} has no column {target!r}, which target= names{known}")
    return target or (LABEL if LABEL in columns else list(columns)[-1])


def _image_column(columns: Columns, target: str, table: Path) -> str:
    others = {name: values for name, values in columns.items() if name not in (target, SPLIT)}
    for name, values in others.items():
        if any(value and (table.parent / value).is_file() for value in values):
            return name
    if others and all(_is_number(value) for values in others.values() for value in values):
        raise DataError(f"{table} is a table of numbers; only tables that name image files can be read so far")
    tried = "; ".join(f"{name!r} has {values[0]!r}" for name, values in others.items()) or "there is no other column"
    raise DataError(f"{table} has no column of image files in {table.parent} beside {target!r}: {tried}")


def _is_number(value: str) -> bool:
    try:
        return not math.isnan(float(value))
    except ValueError:
        return not value


def _labels(columns: Columns, target: str, table: Path) -> Labels:
    _check_filled(columns, target, table)
    values = columns[target]
    names = sorted(set(values), key=int if all(value.isdecimal() for value in values) else None)
    numbers = {name: number for number, name in enumerate(names)}
    return Labels(
        labels=np.array([numbers[value] for value in values], np.int64),
        class_names=tuple(names),
        parts=_parts(columns, table) if SPLIT in columns and target != SPLIT else None,
    )


def _parts(columns: Columns, table: Path) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    _check_filled(columns, SPLIT, table)
    for number, value in enumerate(columns[SPLIT], 1):
        if value not in PART_NAMES:
            hint = nearest(value, PART_NAMES) or "; expected train, val or test"
            raise DataError(f"{table}: row {number} has the split {value!r}{hint}")
    parts = np.array([PART_NAMES[value] for value in columns[SPLIT]], np.int8)
    if not (parts == TRAIN).any():
        raise DataError(f"{table}: no row has the split 'train'")
    return parts


def _check_filled(columns: Columns, name: str, table: Path) -> None:
    missing = [number for number, value in enumerate(columns[name], 1) if not value]
    if missing:
        raise DataError(
            f"{table}: {len(missing)} of {len(columns[name])} rows have no {name!r}, the first is row {missing[0]}"
        )

"""`csv:PATH`: a table of picture files or of numbers and categories, its first row the names of its columns.

Labels are in the columns that `target` names, else in `label`, else in the last one. Pictures are in the first column
of which a value is a file, seen from the table's own folder; without one, all other columns are the inputs. A column
`split` may say train, val or test.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recipes.data import paths, pictures, rows
from recipes.data import targets as target_columns
from recipes.data.types import PART_NAMES, TRAIN, DataError, Source, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recipes.config import DatasetConfig

    Columns = dict[str, list[str]]

SPLIT = "split"
# Changed when the same table gives other rows: those in a cache are then made again.
VERSION = 1
LABEL = "label"


def source(config: DatasetConfig, path: str) -> Source:
    """The pictures that a table names, or its rows.

    Raises:
        DataError: no table, no such column, or a row without its label.
    """
    table = Path(path)
    paths.check_file(table)
    columns = read_columns(table)
    targets = _targets(columns, config.target, table)
    about = target_columns.read(columns, targets, config.task, table)
    if SPLIT in columns and SPLIT not in targets:
        about = replace(about, parts=_parts(columns, table))
    others = {name: values for name, values in columns.items() if name not in (*targets, SPLIT)}
    image = _image_column(others, table)
    if image is None:
        key = paths.key_of([table], VERSION, targets, config.task)
        return Source(key=key, read=functools.partial(rows.read, others, about, config, table))
    files = [table.parent / value for value in columns[image]]
    key = paths.key_of([table, *files], pictures.VERSION, targets, config.task, image)
    return Source(key=key, read=functools.partial(pictures.read, files, about, config, table.parent))


def read_columns(table: Path) -> Columns:
    """The values of each column, without spaces around them.

    Raises:
        DataError: it is no table.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            lines = [[value.strip() for value in row] for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not a CSV file in UTF-8: {error}") from error
    if len(lines) < 2:
        raise DataError(f"{table} has no rows; the first one names the columns")
    names = lines[0]
    if len(set(names)) < len(names):
        raise DataError(f"{table} has two columns of one name: {', '.join(names)}")
    for number, row in enumerate(lines[1:], 1):
        if len(row) != len(names):
            raise DataError(f"{table}: row {number} has {len(row)} values, the table has {len(names)} columns")
    return {name: list(values) for name, values in zip(names, zip(*lines[1:], strict=True), strict=True)}


def _targets(columns: Columns, target: str, table: Path) -> list[str]:
    names = [name.strip() for name in target.split(",")] if target and target not in columns else [target]
    for name in names:
        if name and name not in columns:
            known = nearest(name, columns) or f"; it has {', '.join(columns)}"
            raise DataError(f"{table} has no column {name!r}, which target= names{known}")
    return names if target else [LABEL if LABEL in columns else list(columns)[-1]]


def _image_column(others: Columns, table: Path) -> str | None:
    """The first column with an image file, if there is one."""
    for name, values in others.items():
        if any(value and (table.parent / value).is_file() for value in values):
            return name
    if not others:
        raise DataError(f"{table} has no column beside the labels")
    for name, values in others.items():
        if Path(values[0]).suffix.lower() in pictures.SUFFIXES:
            raise DataError(f"{table}: the files of column {name!r} are not in {table.parent}: {values[0]!r}")
    return None


def _parts(columns: Columns, table: Path) -> NDArray[np.int8]:
    target_columns.check_filled(columns, SPLIT, table)
    for number, value in enumerate(columns[SPLIT], 1):
        if value not in PART_NAMES:
            hint = nearest(value, PART_NAMES) or "; expected train, val or test"
            raise DataError(f"{table}: row {number} has the split {value!r}{hint}")
    parts = np.array([PART_NAMES[value] for value in columns[SPLIT]], np.int8)
    if not (parts == TRAIN).any():
        raise DataError(f"{table}: no row has the split 'train'")
    return parts

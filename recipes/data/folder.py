"""`folder:PATH`: a folder of pictures a class, or such folders below `train`, `val` (or `valid`) and `test`.

Class names are the names of the folders, sorted. Pictures may lie deeper inside a class; what has no suffix of a
picture and what is hidden is passed over. Splits that are there are taken as they are; `splits.split` makes the others.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recipes.data import paths, pictures
from recipes.data.types import PART_NAMES, TRAIN, DataError, Labels, Source, nearest

if TYPE_CHECKING:
    from recipes.config import DatasetConfig


def source(config: DatasetConfig, folder: str) -> Source:
    """The pictures below a folder.

    Raises:
        DataError: no folder, or no classes, an empty class, or a class that training does not know.
    """
    root = Path(folder)
    paths.check_folder(root)
    files, about = _find(root)
    key = paths.key_of(files, pictures.VERSION, about.class_names)
    return Source(key=key, read=functools.partial(pictures.read, files, about, config, root))


def _find(root: Path) -> tuple[list[Path], Labels]:
    parts = _parts(root)
    class_names = _subfolders(root / parts[TRAIN] if parts else root)
    files: list[Path] = []
    labels: list[int] = []
    belongs: list[int] = []
    for part, name in parts.items() or [(TRAIN, "")]:
        for class_name in _known(root / name, class_names):
            found = _pictures(root / name / class_name)
            files += found
            labels += [class_names.index(class_name)] * len(found)
            belongs += [part] * len(found)
    about = Labels(
        labels=np.array(labels, np.int64),
        class_names=tuple(class_names),
        parts=np.array(belongs, np.int8) if parts else None,
    )
    return files, about


def _parts(root: Path) -> dict[int, str]:
    """The splits that a folder has, with the folder of each; none if its folders are classes, whatever they are called.

    Raises:
        DataError: two folders are one split.
    """
    found = [name for name in _subfolders(root) if name in PART_NAMES]
    if "train" not in found or found != _subfolders(root) or not _subfolders(root / "train"):
        return {}
    parts = {PART_NAMES[name]: name for name in found}
    if len(parts) < len(found):
        raise DataError(f"{root} has more than one folder for val: {', '.join(found)}")
    return dict(sorted(parts.items()))


def _known(folder: Path, class_names: list[str]) -> list[str]:
    """The classes in a split."""
    found = _subfolders(folder)
    for name in found:
        if name not in class_names:
            raise DataError(f"{folder / name} is no class of train{nearest(name, class_names)}")
    if not found:
        raise DataError(f"{folder} has no folders; each class is a folder of pictures")
    return found


def _pictures(folder: Path) -> list[Path]:
    """The picture files of a class."""
    found = [file for file in paths.files_below(folder) if file.suffix.lower() in pictures.SUFFIXES]
    if not found:
        raise DataError(f"class {folder.name!r} has no images: {folder} has no file such as .png or .jpg")
    return found


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in paths.entries(folder) if entry.is_dir()]

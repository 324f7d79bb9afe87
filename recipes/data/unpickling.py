"""Pickles of arrays and plain values, read without running what else a pickle may say.

A pickle names functions to call, so whoever writes one runs what he likes where it is loaded; torchvision's CIFAR class
loads its files so. Here only what NumPy needs to build an array is found (Python's manual, `pickle`, "Restricting
Globals"); numbers, text, lists and dicts need no function.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

ADMITTED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),  # as the official files have it
    ("numpy._core.multiarray", "_reconstruct"),  # as NumPy 2 writes it
    ("numpy._core.numeric", "_frombuffer"),  # the same, in protocol 5
    ("_codecs", "encode"),  # bytes in the protocols of Python 2
}


def load_plain(file: Path) -> dict[str, Any]:
    """The dict in a pickle file.

    Raises:
        pickle.UnpicklingError: it holds anything but arrays and plain values.
    """
    with file.open("rb") as opened:
        found = _Plain(opened, encoding="latin1").load()
    if not isinstance(found, dict):
        raise pickle.UnpicklingError(f"{file.name} holds no dict")
    return found


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"a file names {module}.{name}, which no array needs; it is not run")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)

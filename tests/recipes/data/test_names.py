"""What an image is called, wherever it goes: by its file, else by its number."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from recipes import data
from recipes.config import DatasetConfig
from recipes.data import Split, cache, pictures
from tests.recipes.data.conftest import folder_config


def named_levels(dataset: data.Dataset) -> dict[str, int]:
    """The level of each picture, by the picture's name."""
    splits = (dataset.train, dataset.val, dataset.test)
    return {split.name(row): int(split.images[row, 0, 0, 0]) for split in splits for row in range(len(split.labels))}


@pytest.mark.parametrize("fields", [{}, {"limit": 9}, {"on_bad_image": "skip"}], ids=["all", "limit", "skip"])
def test_pictures_of_a_folder_are_called_by_their_files_also_from_the_cache(grey_folder, fields):
    folder = grey_folder({"a": 10, "b": 10})
    if "on_bad_image" in fields:
        (folder / "a" / "000.png").write_bytes(b"")
    for _ in range(2):
        cache.prepared.cache_clear()
        found = named_levels(data.load(folder_config(folder, **fields)))
        assert len(found) == {"limit": 9, "on_bad_image": 19}.get(next(iter(fields), ""), 20)
        assert all(int(name[2:5]) == level for name, level in found.items()), "the file says the level"
        assert {name[:2] for name in found} == {"a/", "b/"}


def test_pictures_of_a_table_are_called_as_from_its_folder(grey_folder, tmp_path):
    folder = grey_folder({"a": 10})
    rows = [f"{folder / 'a' / f'{number:03}.png'},{number % 2}" for number in range(10)]
    (tmp_path / "table.csv").write_text("\n".join(["file,label", *rows]))
    found = named_levels(data.load(DatasetConfig(data=f"csv:{tmp_path / 'table.csv'}")))
    assert found == {f"pictures/a/{number:03}.png": number for number in range(10)}


def test_name_of_a_file_that_is_no_text_is_the_file_s(grey_folder):
    folder = grey_folder({"a": 5, "b": 5})
    name = os.fsdecode(b"\xff.png")
    (folder / "a" / "000.png").rename(folder / "a" / name)
    for _ in range(2):
        cache.prepared.cache_clear()
        assert f"a/{name}" in named_levels(data.load(folder_config(folder)))


def test_arrays_that_were_cached_without_names_are_made_again(grey_folder, home, monkeypatch):
    config = folder_config(grey_folder({"a": 10, "b": 10}))
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "VERSION", 1)  # of which there were no names
        before = data.fingerprints(config)
    (cached,) = home.glob("cache/*.npz")
    with np.load(cached) as file:
        older = {name: file[name] for name in file if name != "files"}
    np.savez(cached, allow_pickle=False, **older)
    cache.prepared.cache_clear()
    assert data.load(config).val.name(0).endswith(".png")
    assert data.fingerprints(config) == before, "names are no part of the data's identity"


def test_digits_are_called_by_their_number_whatever_the_split():
    splits = [data.load(DatasetConfig(split_seed=seed)) for seed in (0, 1)]
    found = [
        {split.name(row): split.images[row].tolist() for split in (each.train, each.val, each.test) for row in range(9)}
        for each in splits
    ]
    shared = found[0].keys() & found[1].keys()
    assert shared
    assert all(found[0][name] == found[1][name] for name in shared)
    assert all(name.startswith("digits #") for name in found[0])


def test_images_without_names_are_called_by_their_row():
    assert Split(images=torch.zeros(2, 1, 1, 1), labels=torch.zeros(2)).name(1) == "#1"

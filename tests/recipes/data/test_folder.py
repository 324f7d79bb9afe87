"""`folder:PATH`: which pictures are of which class and split, and what is said of folders that are no data set."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from recipes import data
from recipes.data import DataError
from tests.recipes.data.conftest import folder_config, levels


def test_folders_are_classes_in_the_order_of_their_names(grey_folder):
    dataset = data.load(folder_config(grey_folder({"dogs": 10, "cats": 20})))
    assert dataset.info.class_names == ("cats", "dogs")
    assert (dataset.info.channels, dataset.info.height, dataset.info.width) == (1, 4, 4)
    counts = [np.bincount(split.labels).tolist() for split in (dataset.train, dataset.val, dataset.test)]
    assert counts == [[12, 6], [4, 2], [4, 2]]
    cats = [levels_of(split, 0) for split in (dataset.train, dataset.val, dataset.test)]
    assert sorted(level for part in cats for level in part) == list(range(20))


def levels_of(split: data.Split, label: int) -> list[int]:
    return split.images[split.labels == label][:, 0, 0, 0].tolist()


def test_split_seed_shares_the_pictures_out_anew(grey_folder):
    folder = grey_folder({"a": 20, "b": 20})
    zero, one = (data.load(folder_config(folder, split_seed=seed)) for seed in (0, 1))
    assert levels_of(zero.test, 0) != levels_of(one.test, 0)
    assert zero.data_fingerprint == one.data_fingerprint
    assert zero.split_fingerprint != one.split_fingerprint


@pytest.mark.parametrize("val", ["val", "valid"])
def test_splits_that_are_there_are_taken_as_they_are(grey_folder, val):
    counts = {"train/a": 6, "train/b": 5, f"{val}/a": 3, f"{val}/b": 2, "test/a": 1, "test/b": 4}
    dataset = data.load(folder_config(grey_folder(counts)))
    found = [np.bincount(split.labels).tolist() for split in (dataset.train, dataset.val, dataset.test)]
    assert found == [[6, 5], [3, 2], [1, 4]]
    assert dataset.info.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("given", "sizes"),
    [("val", (16, 3, 4)), ("test", (16, 4, 3)), ("", (12, 4, 4))],
    ids=["without test", "without val", "train alone"],
)
def test_split_that_is_missing_is_a_fifth_of_train(grey_folder, given, sizes):
    counts = {"train/a": 20, "train/b": 20, **({f"{given}/a": 3, f"{given}/b": 3} if given else {})}
    folder = grey_folder(counts)
    dataset = data.load(folder_config(folder))
    parts = (dataset.train, dataset.val, dataset.test)
    assert [np.bincount(part.labels).tolist() for part in parts] == [[size, size] for size in sizes]
    other = data.load(folder_config(folder, split_seed=1))
    assert levels(other.train) != levels(dataset.train)
    if given:
        assert torch.equal(getattr(other, given).images, getattr(dataset, given).images)


def test_classes_may_be_called_like_splits(grey_folder):
    dataset = data.load(folder_config(grey_folder({"train": 5, "plane": 5})))
    assert dataset.info.class_names == ("plane", "train")
    assert data.load(folder_config(grey_folder({"train": 5, "test": 5}, "exam"))).info.class_names == ("test", "train")


def test_other_files_are_passed_over_and_pictures_found_deeper_and_through_links(grey_folder, tmp_path):
    folder = grey_folder({"a": 5, "b/deep/er": 5})
    (folder / "a" / "notes.txt").write_text("no picture")
    (folder / ".hidden").mkdir()
    (folder / "a" / ".thumb.png").write_text("no picture")
    elsewhere = grey_folder({"c": 5}, "elsewhere")
    (folder / "c").symlink_to(elsewhere / "c")
    (folder / "b" / "round").symlink_to(folder / "b")
    dataset = data.load(folder_config(folder))
    assert dataset.info.class_names == ("a", "b", "c")
    assert sum(len(split.labels) for split in (dataset.train, dataset.val, dataset.test)) == 15


def test_limit_takes_as_many_of_every_class_and_split(grey_folder):
    folder = grey_folder({"a": 40, "b": 20})
    dataset = data.load(folder_config(folder, limit=30))
    assert np.bincount(torch.cat([dataset.train.labels, dataset.val.labels, dataset.test.labels])).tolist() == [20, 10]
    counts = {"train/a": 40, "train/b": 10, "test/a": 20, "test/b": 1}
    dataset = data.load(folder_config(grey_folder(counts, "parts"), limit=36))
    assert np.bincount(torch.cat([dataset.train.labels, dataset.val.labels])).tolist() == [20, 5]
    assert np.bincount(dataset.test.labels).tolist() == [10, 1]


def test_relative_path_is_the_same_data_from_anywhere(grey_folder, monkeypatch, tmp_path):
    folder = grey_folder({"a": 5, "b": 5})
    monkeypatch.chdir(tmp_path)
    config = folder_config("pictures/")
    assert data.absolute(config).data == f"folder:{folder}"
    assert data.fingerprints(config) == data.fingerprints(folder_config(folder))


def test_changed_picture_is_seen_and_an_unchanged_folder_is_not_decoded_again(grey_folder, home):
    folder = grey_folder({"a": 5, "b": 5})
    config = folder_config(folder)
    first = data.fingerprints(config)
    (cached,) = home.glob("cache/*.npz")
    inode = cached.stat().st_ino
    data.cache.prepared.cache_clear()
    assert data.fingerprints(config) == first
    assert cached.stat().st_ino == inode
    shutil.copyfile(folder / "a" / "001.png", folder / "a" / "000.png")
    data.cache.prepared.cache_clear()
    assert data.fingerprints(config)[0] != first[0]
    assert cached.stat().st_ino != inode
    (folder / "b" / "004.png").rename(folder / "b" / "003b.png")
    (folder / "b" / "000.png").unlink()
    assert data.fingerprints(config)[1] != first[1]
    assert len(list(home.glob("cache/*.npz"))) == 1


@pytest.mark.parametrize(
    ("counts", "path", "message"),
    [
        ({"cats": 5, "dogs": 5}, "pictrues", r"folder .*/pictrues does not exist; did you mean 'pictures'\?"),
        ({"cats": 5, "dogs": 5}, "pictures/cats/000.png", r"pictures/cats/000.png is not a folder"),
        ({"cats": 5, "dogs": 5}, "pictures/cats", r"pictures/cats has no folders; each class is a folder"),
        ({"cats": 5, "dogs": 0}, "pictures", r"class 'dogs' has no images: .*/dogs has no file such as"),
        ({"cats": 5}, "pictures", r"5 images of 1 classes: at least two classes are needed"),
        ({"cats": 1, "dogs": 1}, "pictures", r"2 images of 2 classes are too few: none is left for val"),
        ({"train/cats": 5, "train/dogs": 5, "val/cat": 1}, "pictures", r"val/cat is no class of train; did .*'cats'\?"),
        (
            {"train/a": 5, "train/b": 5, "val/a": 1, "valid/a": 1},
            "pictures",
            r"more than one folder for val: train, va",
        ),
        ({"train/a": 5, "train/b": 5, "test": 0}, "pictures", r"test has no folders"),
    ],
)
def test_folder_that_is_no_data_set_is_told_in_one_line(grey_folder, tmp_path, home, counts, path, message):
    grey_folder(counts)
    config = folder_config(tmp_path / path)
    with pytest.raises(DataError, match=message) as caught:
        data.fingerprints(config)
    assert str(caught.value).isprintable()
    assert not home.exists()

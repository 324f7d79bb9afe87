from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from recipes import data
from recipes.config import DatasetConfig
from recipes.data import ImageInfo, UnknownDataError, cache, describe, digits, splits
from recipes.data.types import Arrays, Labels

# Studies are refused on another split of theirs, so these may never change.
DATA_FINGERPRINT = "2d57196b5bcd0af311c93451abcbf4dafe2137732f69fab338b167a2af24d56e"
SPLIT_FINGERPRINTS = {
    0: "73c8190cf300418061951c5e6c0cffd3e294ecffa9a1de5ac681ad299467e43a",
    1: "36312ca8f2826ed0a426d673d7ce9cdd3c01b68b74c82a9e999bf83396447e9f",
}

NAMES = ["cifar10", "cifar100", "csv:PATH", "digits", "eurosat", "fashion_mnist", "folder:PATH", "mnist"]
NAMES += ["shards:PATH", "svhn"]

FINGERPRINTS = """
import json, sys
from recipes import data
from recipes.config import DatasetConfig
found = [data.names(), *data.fingerprints(DatasetConfig())]
print(json.dumps([*found, [name for name in ("torch", "sklearn") if name in sys.modules]]))
"""


def test_digits_are_shared_out_60_20_20_in_every_class():
    dataset = data.load(DatasetConfig())
    sizes = {name: len(getattr(dataset, name).labels) for name in ("train", "val", "test")}
    assert sum(sizes.values()) == 1797
    total = np.bincount(torch.cat([dataset.train.labels, dataset.val.labels, dataset.test.labels]))
    for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        counts = np.bincount(getattr(dataset, name).labels)
        assert np.abs(counts - share * total).max() <= 1, name


def test_splits_are_disjoint_and_hold_every_image():
    labels = np.repeat(np.arange(3), (7, 50, 13))
    indices = splits.split(Labels(labels=labels, class_names=("a", "b", "c")), seed=3)
    assert sorted(np.concatenate(indices)) == list(range(70))


def test_images_and_labels_stay_together():
    whole = digits.read()
    train, *_ = splits.split(whole.about, seed=0)
    dataset = data.load(DatasetConfig())
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.train.images.shape == (len(train), 1, 8, 8)
    assert dataset.train.images.max() == 255
    assert np.array_equal(dataset.train.images, whole.images[train])
    assert np.array_equal(dataset.train.labels, whole.about.labels[train])


def test_split_seed_changes_the_split_and_not_the_data():
    zero, one = (data.load(DatasetConfig(split_seed=seed)) for seed in (0, 1))
    assert zero.data_fingerprint == one.data_fingerprint
    assert zero.split_fingerprint != one.split_fingerprint
    assert not torch.equal(zero.val.images, one.val.images)


@pytest.mark.parametrize("seed", [0, 1])
def test_fingerprints_are_those_of_every_other_machine(seed):
    config = DatasetConfig(split_seed=seed)
    dataset = data.load(config)
    assert (dataset.data_fingerprint, dataset.split_fingerprint) == data.fingerprints(config)
    assert data.fingerprints(config) == (DATA_FINGERPRINT, SPLIT_FINGERPRINTS[seed])


def test_fingerprint_sees_a_pixel_a_label_and_a_name():
    images, about = np.zeros((2, 1, 2, 2), np.uint8), Labels(labels=np.array([0, 1]), class_names=("a", "b"))
    arrays = [
        Arrays(images=images, about=about),
        Arrays(images=images + np.eye(2, dtype=np.uint8), about=about),
        Arrays(images=images, about=about.take(np.array([1, 0]))),
        Arrays(images=images, about=replace(about, class_names=("a", "c"))),
        Arrays(images=images.reshape(2, 2, 2, 1), about=about),
    ]
    assert len({data._data_fingerprint(each) for each in arrays}) == len(arrays)


def test_fingerprints_need_neither_sklearn_nor_torch(run_python, tmp_path):
    first, second = (json.loads(run_python(FINGERPRINTS, home=tmp_path)) for _ in range(2))
    assert first == second == [NAMES, DATA_FINGERPRINT, SPLIT_FINGERPRINTS[0], []]


def test_digits_are_those_that_sklearn_gives(monkeypatch):
    read = digits.read_table()
    monkeypatch.setattr(digits.Path, "is_file", lambda _: False)
    assert np.array_equal(read, digits.read_table())


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_broken_cache_is_made_again_with_a_warning(monkeypatch, tmp_path, caplog, cut):
    monkeypatch.setenv("ORCH_HOME", str(tmp_path))
    path = data.cache_folder() / "digits.npz"
    data.fingerprints(DatasetConfig())
    path.write_bytes(path.read_bytes()[:cut])
    cache.prepared.cache_clear()
    assert data.fingerprints(DatasetConfig()) == (DATA_FINGERPRINT, SPLIT_FINGERPRINTS[0])
    assert str(path) in caplog.text
    cache.prepared.cache_clear()
    caplog.clear()
    data.fingerprints(DatasetConfig())
    assert not caplog.text
    assert sorted(p.name for p in path.parent.iterdir()) == ["digits.lock", "digits.npz"]


def test_flipped_byte_of_the_cache_is_seen(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("ORCH_HOME", str(tmp_path))
    data.fingerprints(DatasetConfig())
    path = data.cache_folder() / "digits.npz"
    content = bytearray(path.read_bytes())
    content[50_000] ^= 1
    path.write_bytes(content)
    cache.prepared.cache_clear()
    assert data.fingerprints(DatasetConfig())[0] == DATA_FINGERPRINT
    assert str(path) in caplog.text


def test_unknown_data_names_what_there_is():
    with pytest.raises(UnknownDataError, match="'digit'; known: cifar10, ") as caught:
        data.fingerprints(DatasetConfig(data="digit"))
    assert (caught.value.name, caught.value.names) == ("digit", NAMES)


def test_mean_and_std_are_those_of_the_training_split():
    dataset = data.load(DatasetConfig())
    pixels = dataset.train.images.double() / 255
    assert dataset.info.mean == pytest.approx([pixels.mean().item()])
    assert dataset.info.std == pytest.approx([pixels.std(correction=0).item()])


def test_constant_channel_has_a_spread_to_divide_by():
    about = Labels(labels=np.array([0, 1]), class_names=("a", "b"))
    arrays = Arrays(images=np.zeros((2, 1, 2, 2), np.uint8), about=about)
    assert describe.info(arrays, np.array([0, 1])).std == (1 / 255,)


def test_image_info_survives_json():
    info = data.load(DatasetConfig()).info
    assert ImageInfo.from_json(json.loads(json.dumps(info.to_json()))) == info

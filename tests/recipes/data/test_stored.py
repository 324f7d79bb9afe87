"""Data sets that are not read whole: the same numbers from a mapped file, within bounds of memory."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from recipes import cnn, data, loading
from recipes.config import make
from recipes.data import cache, stored, types
from recipes.data.stored import Pile
from recipes.speed import results
from tests.recipes.data.conftest import folder_config

pytestmark = pytest.mark.slow  # together they take a quarter of what the quick tests may


@pytest.fixture
def folder(tmp_path):
    """Sixty pictures of noise, 20 x 16 pixels, of two classes; the last is coloured."""
    random = np.random.RandomState(0)
    for number in range(60):
        path = tmp_path / "noise" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (16, 20, 3) if number == 59 else (16, 20)
        Image.fromarray(random.randint(0, 256, shape, np.uint8)).save(path)
    return tmp_path / "noise"


@pytest.fixture
def mapping(monkeypatch):
    """Everything is mapped from now on."""
    monkeypatch.setattr(stored, "MAPPED_BYTES", 0)
    cache.prepared.cache_clear()


def parts(dataset: data.Dataset) -> list[data.Split]:
    return [dataset.train, dataset.val, dataset.test]


def test_mapped_images_are_those_that_are_read_whole(folder, home, monkeypatch, request):
    whole = data.load(folder_config(folder))
    request.getfixturevalue("mapping")
    for state in ("mapped from what was written whole", "remembered", "written while mapped"):
        if state.startswith("written"):
            for file in home.glob("cache/*"):
                file.unlink()
        cache.prepared.cache_clear()
        found = data.load(folder_config(folder))
        assert isinstance(found.train, stored.StoredSplit), state
        assert found.info == whole.info, state
        assert (found.data_fingerprint, found.split_fingerprint) == (whole.data_fingerprint, whole.split_fingerprint)
        assert data.fingerprints(folder_config(folder)) == (whole.data_fingerprint, whole.split_fingerprint)
        for split, expected in zip(parts(found), parts(whole), strict=True):
            assert split.num_bytes == expected.num_bytes
            assert torch.equal(split.take(torch.tensor([3, 1])), expected.images[[3, 1]]), state
            assert torch.equal(split.first(5), expected.images[:5])
            monkeypatch.setattr(types, "CHUNK_BYTES", 5000)
            assert len(list(split.chunks())) > 1
            assert torch.equal(torch.cat(list(split.chunks())), expected.images)
            assert torch.equal(split.images, expected.images)
            assert torch.equal(split.labels, expected.labels)
            assert torch.equal(split.to("cpu").images, expected.images)


def test_training_on_mapped_images_has_the_same_bits(folder, request):
    values = {"data": f"folder:{folder}", "epochs": 2, "width": 4, "batch_size": 16, "crop": 2, "flip": 0.5}

    def run(**more: object) -> list[dict[str, float]]:
        return [results(epoch.metrics) for epoch in cnn.train(make(cnn.Config, {**values, **more}))]

    whole = run()
    request.getfixturevalue("mapping")
    assert run(loading="resident") == whole
    for num_workers in (0, 2):
        assert run(loading="workers", loader_workers=num_workers) == whole, num_workers


def test_workers_read_the_file_that_training_began_with(folder, mapping):
    dataset = data.load(folder_config(folder))
    (file,) = cache.cache_folder().glob("*.npz")
    expected = dataset.val.images
    file.unlink()
    file.write_bytes(b"another")
    (batch,) = loading.Brought(dataset, 1, torch.device("cpu")).val(torch.arange(len(dataset.val.labels)), 100)
    assert torch.equal(batch.images, expected)


def test_changed_picture_is_seen_in_what_was_remembered(folder, mapping):
    first = data.load(folder_config(folder))
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(folder / "a" / "00.png")
    cache.prepared.cache_clear()
    second = data.load(folder_config(folder))
    assert second.data_fingerprint != first.data_fingerprint
    assert second.split_fingerprint == first.split_fingerprint
    assert torch.cat([split.images for split in parts(second)]).eq(0).all((1, 2, 3)).sum() == 1


@pytest.mark.parametrize("cut", [0, 200, -1])
def test_mapped_file_that_is_cut_short_is_made_again(folder, mapping, caplog, cut):
    first = data.fingerprints(folder_config(folder))
    (file,) = cache.cache_folder().glob("*.npz")
    file.write_bytes(file.read_bytes()[:cut])
    cache.prepared.cache_clear()
    assert data.fingerprints(folder_config(folder)) == first
    assert str(file) in caplog.text


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_pile_gives_all_pictures_three_channels_if_one_has_them(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(stored, "MAPPED_BYTES", limit)
    pile = Pile(tmp_path)
    grey, coloured = np.full((1, 2, 3), 7, np.uint8), np.arange(18, dtype=np.uint8).reshape(3, 2, 3)
    pile.add(grey)
    assert pile.array().tolist() == [grey.tolist()]
    pile.add(coloured)
    assert pile.array().tolist() == [[grey[0].tolist()] * 3, coloured.tolist()]
    assert list(tmp_path.iterdir()) == []


BOUNDED = """
import json, resource, sys
import psutil, torch
from recipes import data, loading
from recipes.cnn import Config
from recipes.config import make
from recipes.data import stored
torch.set_num_threads(1)
torch.arange(1), stored
stored.MAPPED_BYTES = 1 << 20
image_bytes = int(sys.argv[2])
limit = psutil.Process().memory_info().data + image_bytes * 6 // 10
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
config = make(Config, {"data": sys.argv[1], "loader_workers": 0, "loading": "workers", "batch_size": 4})
dataset = data.load(config.dataset)
feed, _ = loading.feed(dataset, config, torch.device("cpu"))
order = torch.arange(len(dataset.train.labels))
seen = [sum(count for count, _ in feed.train(order, 20, lambda rows: [rows]))]
seen += [sum(len(batch) for batch in feed.val(torch.arange(len(dataset.val.labels)), 4))]
try:
    [split.images for split in (dataset.train, dataset.val, dataset.test)]
except (MemoryError, RuntimeError):
    seen.append("too large")
print(json.dumps([*seen, dataset.info.mean]))
"""


def test_folder_larger_than_memory_is_prepared_and_trained_on(tmp_path, run_python):
    """The child may have no more than 0.6 of the images' size in memory of its own."""
    side, count = 1100, 150
    for number in range(count):
        path = tmp_path / "large" / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (side, side), number).save(path, compress_level=1)
    found = json.loads(run_python(BOUNDED, f"folder:{tmp_path / 'large'}", side * side * count))
    assert found[:3] == [90, 30, "too large"]
    assert found[3][0] == pytest.approx(74.5 / 255, abs=0.1)

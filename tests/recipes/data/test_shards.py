"""`shards:PATH`: training images come from tar files as a stream, in an order that can be had again."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from recipes import cnn, data, loading
from recipes.config import DatasetConfig, make
from recipes.data import DataError
from recipes.data.stream import StreamSplit
from recipes.loader import LoaderError
from recipes.loop import Attempt
from recipes.speed import results

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def png(level: int, side: int = 4, mode: str = "L") -> bytes:
    content = io.BytesIO()
    Image.new(mode, (side, side), level).save(content, "PNG")
    return content.getvalue()


def member(archive: tarfile.TarFile, name: str, content: bytes, **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(content))


def write_shard(path: Path, levels: range | list[int], side: int = 4) -> None:
    """A sample a level, whose class is `odd` or `even`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for level in levels:
            member(archive, f"{level:04}.png", png(level, side))
            member(archive, f"{level:04}.json", b"{}")
            member(archive, f"{level:04}.cls", b"odd\n" if level % 2 else b"even")


@pytest.fixture
def shards(tmp_path) -> Path:
    """Levels 0 to 59 in six training shards, 60 to 69 in one of val, 70 to 79 in one of test."""
    folder = tmp_path / "shards"
    for number in range(6):
        write_shard(folder / f"train-{number:03}.tar", range(number * 10, number * 10 + 10))
    write_shard(folder / "val-000.tar", range(60, 70))
    write_shard(folder / "test-000.tar", range(70, 80))
    return folder


def config(folder: Path, **fields: object) -> DatasetConfig:
    return DatasetConfig.model_validate({"data": f"shards:{folder}", **fields})


def levels_of(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_val_and_test_are_whole_and_train_is_a_stream(shards):
    dataset = data.load(config(shards))
    assert isinstance(dataset.train, StreamSplit)
    assert dataset.info.class_names == ("even", "odd")
    assert (dataset.info.channels, dataset.info.height, dataset.info.width) == (1, 4, 4)
    assert dataset.info.mean == pytest.approx([np.arange(60).mean() / 255])
    assert dataset.info.std == pytest.approx([np.arange(60).std() / 255])
    assert levels_of(dataset.val.images) == list(range(60, 70))
    assert levels_of(dataset.test.images) == list(range(70, 80))
    assert dataset.val.labels.tolist() == [level % 2 for level in range(60, 70)]
    assert dataset.train.labels.tolist() == [level % 2 for level in range(60)]
    assert levels_of(torch.cat(list(dataset.train.chunks()))) == list(range(60))
    assert data.fingerprints(config(shards)) == (dataset.data_fingerprint, dataset.split_fingerprint)


def feed_of(folder: Path, **values: Any) -> loading.Feed:
    found = make(cnn.Config, {"data": f"shards:{folder}", "shuffle_buffer": 16, **values})
    feed, _ = loading.feed(data.load(found.dataset), found, CPU)
    return feed


def epoch(feed: loading.Feed, seed: int, num_steps: int = 7) -> list[list[int]]:
    batches = [batch for _, (batch,) in feed.train(torch.tensor([seed]), num_steps, lambda batch: [batch])]
    for batch in batches:
        assert [level % 2 for level in levels_of(batch.images)] == batch.labels.tolist()
    return [levels_of(batch.images) for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_image_comes_once_an_epoch_in_an_order_of_the_seed_alone(shards, num_workers):
    feed = feed_of(shards, loader_workers=num_workers)
    first, second = epoch(feed, 1), epoch(feed, 2)
    assert [len(batch) for batch in first] == [9, 9, 9, 9, 8, 8, 8]
    orders = [[level for batch in batches for level in batch] for batches in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(60))
    assert orders[0] != orders[1] != sorted(orders[1])
    neighbours = list(zip(orders[0], orders[0][1:], strict=False))
    assert sum(a // 10 != b // 10 for a, b in neighbours) > 15, "shards are mixed, not read one after another"
    assert epoch(feed_of(shards, loader_workers=num_workers), 1) == first


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stopped_training_on_a_stream_goes_on_with_the_same_bits(shards, tmp_path, num_workers):
    values = {"data": f"shards:{shards}", "epochs": 3, "width": 4, "batch_size": 16, "crop": 1, "accumulate": 2}
    values |= {"loader_workers": num_workers, "shuffle_buffer": 8, "balance": "loss"}
    trained = make(cnn.Config, values)
    straight = [results(each.metrics) for each in cnn.train(trained, Attempt(folder=tmp_path / "straight"))]
    stopped = cnn.train(trained, Attempt(folder=tmp_path / "first"))
    begun = [results(next(stopped).metrics)]
    stopped.close()
    again = cnn.train(trained, Attempt(folder=tmp_path / "second", resume_from=tmp_path / "first"))
    assert [*begun, *(results(each.metrics) for each in again)] == straight


def test_training_shards_are_held_out_where_there_is_no_val_or_test(shards):
    (shards / "val-000.tar").unlink()
    (shards / "test-000.tar").unlink()
    splits = []
    for seed in (0, 1, 2):
        dataset = data.load(config(shards, split_seed=seed))
        parts = [levels_of(torch.cat(list(split.chunks()))) for split in (dataset.train, dataset.val, dataset.test)]
        assert [len(part) for part in parts] == [40, 10, 10]
        assert sorted(level for part in parts for level in part) == list(range(60))
        splits.append((dataset.data_fingerprint, dataset.split_fingerprint))
    assert len({of_data for of_data, _ in splits}) == 1
    assert len({of_split for _, of_split in splits}) > 1


def test_index_is_made_once_until_a_shard_changes(shards, home):
    first = data.fingerprints(config(shards))
    (index,) = home.glob("cache/*.index.json")
    inode = index.stat().st_ino
    assert data.fingerprints(config(shards)) == first
    assert index.stat().st_ino == inode
    write_shard(shards / "train-002.tar", [20, 21, 22, 23, 24, 25, 26, 27, 28, 31])
    assert data.fingerprints(config(shards))[0] != first[0]


def test_limit_takes_as_many_of_every_class_and_split(shards):
    dataset = data.load(config(shards, limit=16))
    counts = [np.bincount(split.labels).tolist() for split in (dataset.train, dataset.val, dataset.test)]
    assert counts == [[6, 6], [1, 1], [1, 1]]
    assert len(torch.cat(list(dataset.train.chunks()))) == 12


def test_grey_pictures_among_coloured_ones_get_three_channels_and_numbers_their_order(shards):
    for name, labels in (("train-000", ["10", "9"]), ("val-000", ["9"])):
        with tarfile.open(shards / f"{name}.tar", "w") as archive:
            for number, label in enumerate(labels):
                member(archive, f"deep/{number}.jpg", png(number * 10, mode="RGB" if number else "L"))
                member(archive, f"deep/{number}.cls", label.encode())
    for file in [*shards.glob("train-00[1-5].tar"), *shards.glob("test*")]:
        file.unlink()
    write_shard(shards / "test-000.tar", [])
    with tarfile.open(shards / "test-000.tar", "w") as archive:
        member(archive, "0.png", png(1))
        member(archive, "0.cls", b"9")
    dataset = data.load(config(shards))
    assert dataset.info.class_names == ("9", "10")
    assert dataset.info.channels == 3
    assert dataset.val.images.shape == (1, 3, 4, 4)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("../out.png", {}, r"train-000.tar: '../out.png' leads out of the archive"),
        ("/etc/out.png", {}, r"train-000.tar: '/etc/out.png' leads out of the archive"),
        ("a.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, r"'a.png' is a link or a device"),
        ("a.png", {"type": tarfile.LNKTYPE, "linkname": "b"}, r"'a.png' is a link or a device"),
        ("a.png", {"type": tarfile.FIFOTYPE}, r"'a.png' is a link or a device"),
        ("a.png", {}, r"'a.png' has no class: a.cls is missing or empty"),
    ],
)
def test_member_that_is_no_part_of_a_sample_is_refused_by_name(shards, home, name, fields, message):
    with tarfile.open(shards / "train-000.tar", "w") as archive:
        member(archive, name, b"" if fields else png(1), **fields)
    with pytest.raises(DataError, match=message) as caught:
        data.fingerprints(config(shards))
    assert str(caught.value).isprintable()
    assert not home.exists()


def test_shard_that_is_cut_short_or_no_archive_is_named(shards, home):
    whole = (shards / "train-000.tar").read_bytes()
    for content in (whole[:1000], b"no archive" * 100):
        (shards / "train-000.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"train-000.tar cannot be read as a tar file"):
            data.fingerprints(config(shards))
    assert not home.exists()


def test_bad_pictures_are_counted_and_named_or_left_out(shards, caplog):
    with tarfile.open(shards / "train-000.tar", "w") as archive:
        for number in range(3):
            member(archive, f"{number}.png", b"" if number else png(3))
            member(archive, f"{number}.cls", b"odd")
    with pytest.raises(DataError, match=r"2 of 73 images .* the first is .*-000.tar: '1.png': it is empty"):
        data.fingerprints(config(shards))
    dataset = data.load(config(shards, on_bad_image="skip"))
    assert len(dataset.train.labels) == 51
    assert "2 of 73 images cannot be read" in caplog.text


def test_pictures_of_two_sizes_want_image_size(shards):
    write_shard(shards / "train-000.tar", range(10), side=6)
    with pytest.raises(DataError, match=r"'0070.png' has 4 x 4 pixels, .*'0000.png' has 6 x 6 pixels; give"):
        data.load(config(shards))
    assert data.load(config(shards, image_size=5)).info.height == 5


def test_folder_without_shards_and_too_few_are_told(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none has no train-\*.tar"):
        data.fingerprints(config(tmp_path / "none"))
    write_shard(tmp_path / "few" / "train-0.tar", range(10))
    with pytest.raises(DataError, match=r"few has 1 train-\*.tar, too few to hold some out"):
        data.fingerprints(config(tmp_path / "few"))


@pytest.mark.parametrize(("field", "value"), [("balance", "sampler"), ("loading", "resident")])
def test_what_needs_any_image_at_any_time_refuses_a_stream_in_one_line(shards, field, value):
    refused = make(cnn.Config, {"data": f"shards:{shards}", "epochs": 1, field: value})
    with pytest.raises(DataError, match=rf"^{field}={value} needs training images in any order; data 'shards:.*' is a"):
        next(cnn.train(refused))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_shard_that_changes_under_training_is_named(shards, num_workers):
    feed = feed_of(shards, loader_workers=num_workers)
    write_shard(shards / "train-003.tar", range(30, 35))
    with pytest.raises(LoaderError if num_workers else DataError, match=r"train-003.tar") as caught:
        epoch(feed, 0)
    assert "is no longer what it was" in str(caught.value)


@pytest.mark.slow
def test_stream_is_not_held_in_memory_whole(tmp_path, run_python):
    side, folder = 500, tmp_path / "large"
    for number in range(8):
        write_shard(folder / f"train-{number}.tar", range(number * 50, number * 50 + 50), side)
    write_shard(folder / "val-0.tar", range(4), side)
    write_shard(folder / "test-0.tar", range(4), side)
    found = json.loads(run_python(BOUNDED, folder, 400 * side * side))
    assert found == 400


BOUNDED = """
import json, resource, sys
import psutil, torch
from recipes import data, loading
from recipes.cnn import Config
from recipes.config import make
torch.set_num_threads(1)
torch.arange(1)
limit = psutil.Process().memory_info().data + int(sys.argv[2]) * 3 // 4
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
config = make(Config, {"data": "shards:" + sys.argv[1], "loader_workers": 0, "shuffle_buffer": 20})
dataset = data.load(config.dataset)
feed, _ = loading.feed(dataset, config, torch.device("cpu"))
print(json.dumps(sum(len(batch) for _, (batch,) in feed.train(torch.tensor([3]), 50, lambda batch: [batch]))))
"""

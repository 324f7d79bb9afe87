"""torchvision's data sets in torchvision's own files, which these tests write from the digits, larger by repetition."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.io
from PIL import Image

from recipes import data
from recipes.config import DatasetConfig
from recipes.data import DataError, digits

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def halves() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images `(N, 32, 32)` and labels of both halves."""
    whole = digits.read()
    images, labels = whole.images[:, 0].repeat(4, 1).repeat(4, 2), whole.about.labels
    return {"train": (images[:200], labels[:200]), "test": (images[200:250], labels[200:250])}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def config(name: str, root: Path, **fields: object) -> DatasetConfig:
    return DatasetConfig.model_validate({"data": name, "data_root": str(root), **fields})


def write_idx(root: Path, name: str, halves: dict, *, zipped: bool = False) -> Path:
    """MNIST's files (http://yann.lecun.com/exdb/mnist, "File formats")."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for half, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = halves[half]
        contents = {
            "images-idx3": struct.pack(">IIII", 0x803, *images.shape) + images.tobytes(),
            "labels-idx1": struct.pack(">II", 0x801, len(labels)) + labels.astype(np.uint8).tobytes(),
        }
        for kind, content in contents.items():
            if zipped:
                (raw / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
            else:
                (raw / f"{prefix}-{kind}-ubyte").write_bytes(content)
    return root


def write_cifar(root: Path, halves: dict, *, fine: bool = False, protocol: int = 2) -> Path:
    folder = root / ("cifar-100-python" if fine else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    key = "fine_labels" if fine else "labels"

    def dump(name: str, value: object) -> None:
        (folder / name).write_bytes(pickle.dumps(value, protocol))

    def batch(images: np.ndarray, labels: np.ndarray) -> dict:
        rows = np.repeat(images[:, None], 3, 1).reshape(len(images), -1)
        return {"batch_label": "from the digits", key: labels.tolist(), "data": np.ascontiguousarray(rows)}

    pieces = [(halves["train"], ["train"] if fine else [f"data_batch_{number}" for number in range(1, 6)])]
    pieces.append((halves["test"], ["test"] if fine else ["test_batch"]))
    for (images, labels), names in pieces:
        for name, index in zip(names, np.array_split(np.arange(len(labels)), len(names)), strict=True):
            dump(name, batch(images[index], labels[index]))
    names = [f"digit {number}" for number in range(10)]
    dump("meta" if fine else "batches.meta", {"fine_label_names" if fine else "label_names": names})
    return root


def write_svhn(root: Path, halves: dict) -> Path:
    root.mkdir()
    for half, (images, labels) in halves.items():
        x = np.repeat(images[:, :, :, None], 3, 3).transpose(1, 2, 3, 0)
        scipy.io.savemat(root / f"{half}_32x32.mat", {"X": x, "y": np.where(labels == 0, 10, labels)[:, None]})
    return root


WRITERS = {
    "mnist": lambda root, halves: write_idx(root, "MNIST", halves),
    "fashion_mnist": lambda root, halves: write_idx(root, "FashionMNIST", halves, zipped=True),
    "cifar10": write_cifar,
    "cifar100": lambda root, halves: write_cifar(root, halves, fine=True, protocol=5),
    "svhn": write_svhn,
}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_files_in_torchvision_s_layout_load_with_their_own_test_split(name, root, halves):
    dataset = data.load(config(name, WRITERS[name](root, halves)))
    images, labels = halves["test"]
    channels = 1 if "mnist" in name else 3
    assert dataset.test.images.shape == (50, channels, 32, 32)
    assert np.array_equal(dataset.test.images[:, channels - 1], images)
    assert np.array_equal(dataset.test.labels, labels)
    counts = np.bincount(dataset.val.labels)
    assert np.abs(counts - np.bincount(halves["train"][1]) / 5).max() <= 0.5
    both = np.concatenate([dataset.train.images[:, 0], dataset.val.images[:, 0]])
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in halves["train"][0])
    first = {"mnist": "0 - zero", "fashion_mnist": "T-shirt/top", "svhn": "0"}
    assert dataset.info.class_names[0] == first.get(name, "digit 0")


def test_split_seed_leaves_the_official_test_split_alone(root, halves):
    write_idx(root, "MNIST", halves)
    zero, one = (data.load(config("mnist", root, split_seed=seed)) for seed in (0, 1))
    assert np.array_equal(zero.test.images, one.test.images)
    assert not np.array_equal(zero.val.images, one.val.images)


def test_image_size_and_limit_hold_for_torchvision_s_sets(root, halves):
    dataset = data.load(config("mnist", write_idx(root, "MNIST", halves), image_size=16, limit=125))
    sizes = [len(split.labels) for split in (dataset.train, dataset.val, dataset.test)]
    assert sum(sizes) == 125
    assert abs(sizes[2] - 25) <= 5
    assert dataset.train.images.shape[1:] == (1, 16, 16)


def test_eurosat_is_a_folder_a_class_and_split_60_20_20(root, halves):
    images, _ = halves["train"]
    for number, name in enumerate(["Forest", "River"]):
        (root / "eurosat" / "2750" / name).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(images[10 * number + index]).save(root / "eurosat" / "2750" / name / f"{name}_{index}.jpg")
    dataset = data.load(config("eurosat", root))
    assert dataset.info.class_names == ("Forest", "River")
    assert [len(split.labels) for split in (dataset.train, dataset.val, dataset.test)] == [12, 4, 4]


def test_changed_file_is_read_again(root, halves):
    write_idx(root, "MNIST", halves)
    first = data.fingerprints(config("mnist", root))
    file = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert data.fingerprints(config("mnist", root))[0] != first[0]


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
        ("svhn", "train_32x32.mat"),
        ("eurosat", "eurosat/2750"),
    ],
)
def test_missing_files_are_named(name, missing, root, home):
    with pytest.raises(
        DataError, match=rf"'{name}' is not .*in {root}: .*{missing} is missing; download=true"
    ) as caught:
        data.fingerprints(config(name, root))
    assert str(caught.value).isprintable()
    assert not home.exists()
    assert not root.exists()


def test_one_missing_batch_is_named(root, halves):
    write_cifar(root, halves)
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"not whole in .*/root: cifar-10-batches-py/data_batch_3 is missing"):
        data.load(config("cifar10", root))


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_broken_file_is_told_in_one_line(name, root, halves):
    WRITERS[name](root, halves)
    for file in root.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=rf"data '{name}' in {root} cannot be read: .+") as caught:
        data.load(config(name, root))
    assert str(caught.value).isprintable()


def test_labels_out_of_range_are_told(root, halves):
    images, labels = halves["train"]
    write_idx(root, "MNIST", {**halves, "train": (images, labels + 5)})
    with pytest.raises(DataError, match=r"'mnist': labels go from 0 to 14, but there are 10 classes"):
        data.load(config("mnist", root))


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta"])
def test_pickle_that_calls_a_function_is_not_run(name, root, halves, tmp_path):
    write_cifar(root, halves)
    hostile = {"data": Hostile(tmp_path / "called"), "labels": [0], "label_names": Hostile(tmp_path / "called")}
    (root / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(hostile, 2))
    with pytest.raises(DataError, match=r"names posix.mkdir, which no array needs; it is not run"):
        data.load(config("cifar10", root))
    assert not (tmp_path / "called").exists()


def test_archive_that_unpacks_to_too_much_is_refused(root, halves, monkeypatch):
    monkeypatch.setattr("recipes.data.torchvision_sets.MAX_UNPACKED_BYTES", 1000)
    write_idx(root, "MNIST", halves, zipped=True)
    with pytest.raises(DataError, match=r"ubyte.gz unpacks to more than 1,000 bytes"):
        data.load(config("mnist", root))


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn", "eurosat"])
def test_download_that_is_impossible_is_told_in_one_line(name, root, monkeypatch):
    """Nothing answers at a port that is closed, which is where each address leads."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(DataError, match=rf"'{name}' cannot be downloaded to {root}: .+") as caught:
        data.load(config(name, root, download=True))
    assert str(caught.value).isprintable()

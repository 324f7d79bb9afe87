"""Picture files of all kinds become arrays of one shape; those that are none are counted and named."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from recipes import data
from recipes.config import DatasetConfig
from recipes.data import DataError
from recipes.data.pictures import flattened
from tests.recipes.data.conftest import folder_config
from tests.support import photos


def pixels(image: Image.Image) -> list:
    return np.asarray(flattened(image)).tolist()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (1, 1), 7), [[7]]),
        (Image.new("1", (1, 1), 1), [[255]]),
        (Image.fromarray(np.array([[0x1234, 0xFFFF]], np.uint16)), [[0x12, 0xFF]]),
        (Image.fromarray(np.array([[0x1234, 0xFFFF]], np.int32)), [[0x12, 0xFF]]),
        (Image.new("RGB", (1, 1), (1, 2, 3)), [[[1, 2, 3]]]),
        (Image.new("RGBA", (1, 1), (10, 20, 30, 255)), [[[10, 20, 30]]]),
        (Image.new("RGBA", (1, 1), (10, 20, 30, 0)), [[[255, 255, 255]]]),
        (Image.new("LA", (1, 1), (0, 51)), [[204]]),
        (Image.new("RGB", (1, 1), (1, 2, 3)).convert("P"), [[[0, 0, 0]]]),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 255)), [[[0, 0, 0]]]),
    ],
    ids=["grey", "bits", "16 bits", "16 in 32 bits", "RGB", "opaque", "transparent", "grey veil", "palette", "CMYK"],
)
def test_any_mode_becomes_eight_bits_of_grey_or_rgb(image, expected):
    assert pixels(image) == expected


def test_transparent_colour_of_a_palette_lies_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=1)
    with Image.open(tmp_path / "p.png") as read:
        assert pixels(read) == [[[200, 0, 0], [255, 255, 255]]]


def test_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    Image.new("L", (30, 10)).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as image:
        assert flattened(image).size == (10, 30)


def test_grey_pictures_among_coloured_ones_get_three_channels(grey_folder):
    folder = grey_folder({"a": 5, "b": 5})
    assert data.load(folder_config(folder)).info.channels == 1
    Image.new("RGB", (4, 4), (1, 2, 3)).save(folder / "a" / "coloured.png")
    dataset = data.load(folder_config(folder))
    assert dataset.info.channels == 3
    images = torch.cat([dataset.train.images, dataset.val.images, dataset.test.images])
    equal = (images == images[:, :1]).all(3).all(2).all(1)
    assert (len(images), int(equal.sum())) == (11, 10)


def test_pictures_of_any_size_are_squashed_to_image_size_as_an_export_does(tmp_path):
    folder = photos.write(tmp_path / "photos", 6)
    (wide,) = photos.tiles("china", 1)
    wide.crop((0, 0, 48, 30)).save(folder / "china" / "00.png")
    with pytest.raises(DataError, match=r"china/00.png has 48 x 30 pixels, china/01.png has 48 x 48; give image_size="):
        data.load(folder_config(folder))
    dataset = data.load(folder_config(folder, image_size=16))
    assert dataset.train.images.shape[1:] == (3, 16, 16)
    ours = np.concatenate([split.images for split in (dataset.train, dataset.val, dataset.test)])
    given = torch.from_numpy(np.array(wide.crop((0, 0, 48, 30)))).permute(2, 0, 1)[None].float()
    theirs = torch.nn.functional.interpolate(given, (16, 16), mode="bilinear", antialias=True).numpy()
    assert np.abs(ours - theirs).max(axis=(1, 2, 3)).min() <= 1


def test_arrays_are_resized_and_limited_too():
    dataset = data.load(DatasetConfig(image_size=12, limit=100))
    assert dataset.info.height == dataset.info.width == 12
    labels = torch.cat([dataset.train.labels, dataset.val.labels, dataset.test.labels])
    assert np.bincount(labels).tolist() == [10] * 10
    assert data.load(DatasetConfig(image_size=8)).data_fingerprint == data.load(DatasetConfig()).data_fingerprint


def encoded() -> bytes:
    content = io.BytesIO()
    photos.tiles("china", 1)[0].save(content, "PNG")
    return content.getvalue()


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"not a picture", "it is none of PNG, JPEG"),
        (encoded()[:-100], "image file is truncated|Truncated"),
        (bomb(10_000, 10_000), "its 10000 x 10000 pixels are more than 89,478,485"),
        (bomb(60_000, 60_000), "could be decompression bomb"),
    ],
    ids=["empty", "text", "truncated", "large", "bomb"],
)
def test_file_that_is_no_picture_is_counted_and_named(grey_folder, home, content, reason):
    folder = grey_folder({"a": 5, "b": 5})
    (folder / "a" / "x.png").write_bytes(content)
    (folder / "b" / "x.png").write_bytes(content)
    with pytest.raises(
        DataError, match=rf"2 of 12 images cannot be read, the first is a/x.png: .*({reason})"
    ) as caught:
        data.fingerprints(folder_config(folder))
    assert str(caught.value).isprintable()
    assert str(folder / "a") not in str(caught.value)
    assert not home.exists()


def test_floating_point_pixels_and_what_is_no_file_are_bad_pictures(grey_folder):
    folder = grey_folder({"a": 5, "b": 5})
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(folder / "a" / "x.tif")
    (folder / "a" / "y.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "b" / "z.png")
    with pytest.raises(DataError, match=r"3 of 13 .* a/x.tif: its pixels are floating-point numbers"):
        data.fingerprints(folder_config(folder))


def test_bad_pictures_are_left_out_with_a_warning_whenever_they_are(grey_folder, caplog):
    folder = grey_folder({"a": 10, "b": 10})
    clean = data.load(folder_config(folder))
    (folder / "a" / "x.png").write_bytes(b"")
    for _ in range(2):
        data.cache.prepared.cache_clear()
        caplog.clear()
        found = data.load(folder_config(folder, on_bad_image="skip"))
        assert "1 of 21 images cannot be read, the first is a/x.png: it is empty; they are left out" in caplog.text
    assert found.data_fingerprint == clean.data_fingerprint
    assert found.split_fingerprint == clean.split_fingerprint


def test_class_of_bad_pictures_alone_is_refused(grey_folder):
    folder = grey_folder({"a": 10, "b": 10, "c": 0})
    (folder / "c" / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"20 images of 3 classes: class 'c' has no image to train on"):
        data.load(folder_config(folder, on_bad_image="skip"))

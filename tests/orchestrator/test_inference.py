from __future__ import annotations

import io
import os
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from orchestrator.errors import UsageError
from orchestrator.inference import MAX_PIXELS, Model, decode, image_files
from recipes.data import ImageInfo
from recipes.data.types import Column
from recipes.export import export_onnx
from tests.support.infos import info

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("dark", "medium", "bright")


class Brightness(torch.nn.Module):
    """Tells three kinds of pictures apart by their mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([-4 * mean, 1 - mean.abs(), 4 * mean], 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[int, Path]:
    """Number of channels -> an ONNX file."""
    found = {}
    for channels in (1, 3):
        info = ImageInfo(
            channels=channels,
            height=8,
            width=8,
            num_classes=3,
            class_names=NAMES,
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
        )
        found[channels] = tmp_path_factory.mktemp("onnx") / f"{channels}.onnx"
        export_onnx(Brightness(), info, found[channels], {})
    return found


def picture(folder: Path, name: str, level: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> Path:
    path = folder / name
    Image.new("L", size, level).convert(mode).save(path)
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_many_kinds_and_sizes_are_classified_in_order(files, tmp_path, channels):
    paths = [
        picture(tmp_path, "a.png", 10),
        picture(tmp_path, "b.jpg", 250, (300, 20)),
        picture(tmp_path, "c.png", 127, (8, 8), "RGB"),
        picture(tmp_path, "d.png", 250, (1, 1), "RGBA"),
        picture(tmp_path, "e.jpeg", 5, (300, 20), "CMYK"),
        picture(tmp_path, "f.png", 127, (9, 7), "P"),
    ]
    paths *= 20  # more than a batch
    found = list(Model(files[channels]).predict(paths))
    assert [prediction["path"] for prediction in found] == [str(path) for path in paths]
    assert [prediction["class"] for prediction in found] == [
        "dark",
        "bright",
        "medium",
        "bright",
        "dark",
        "medium",
    ] * 20
    assert found[0] == {"path": str(paths[0]), "class": "dark", "probability": found[0]["probability"]}
    assert 0.9 < found[0]["probability"] <= 1


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 0x4000, np.uint16)).save(path)
    assert (decode(path, 1) == 0x40).all()


def test_a_photo_is_turned_upright(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    Image.new("L", (30, 10)).save(path, exif=exif)
    assert decode(path, 3).shape == (30, 10, 3)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def encoded(kind: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(data, kind)
    return data.getvalue()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a whole PNG or JPEG image; found 0 bytes"),
        (b"not a picture", "is not a whole PNG or JPEG image; found 13 bytes"),
        (encoded("GIF"), "is not a whole PNG or JPEG image"),
        (encoded("PNG")[:1000], "is not a whole PNG or JPEG image"),
        (b"\xff\xd8\xff\xe0" + bytes(20), "is not a whole PNG or JPEG image"),
        (png(60_000, 60_000), f"is too large, at most {MAX_PIXELS:,} pixels"),
        (png(10_000, 10_000), f"is too large, at most {MAX_PIXELS:,} pixels are read: 10000 x 10000"),
        (png(4, 4, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200 << 20)))), "is not a whole PNG or JPEG image"),
    ],
    ids=["empty", "text", "gif", "truncated", "broken jpeg", "bomb", "large", "text bomb"],
)
def test_what_is_no_image_is_one_line_that_names_it(tmp_path, data, message):
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(UsageError) as error:
        decode(path, 1)
    assert str(error.value).startswith(f"{path} {message}")
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_what_is_no_file_is_one_line_that_names_it(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.png does not exist"):
        decode(tmp_path / "gone.png", 1)
    with pytest.raises(UsageError, match="is not a file"):
        decode(tmp_path, 1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe is not a file"):
        decode(tmp_path / "pipe", 1)


def test_pictures_of_another_type_or_shape_are_told_what_is_expected(files):
    model = Model(files[3])
    with pytest.raises(UsageError, match=r"takes pictures uint8 \(N, H, W, 3\); found float32 \(2, 8, 8, 3\)"):
        model.answers(np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(UsageError, match=r"found uint8 \(2, 8, 8, 1\)"):
        model.answers(np.zeros((2, 8, 8, 1), np.uint8))


def test_logits_do_not_depend_on_how_many_come_at_once(files):
    model = Model(files[1])
    pictures = np.random.default_rng(0).integers(0, 256, (150, 8, 8, 1), np.uint8)
    alone = np.concatenate([model.answers(picture[None]) for picture in pictures])
    np.testing.assert_allclose(model.answers(pictures), alone, atol=1e-5)


def test_what_is_no_model_is_one_line_that_names_it(files, tmp_path):
    path = tmp_path / "x.onnx"
    for data in (b"", b"text", files[1].read_bytes()[:-50]):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"x\.onnx is not an ONNX model of ours") as error:
            Model(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"gone\.onnx is not"):
        Model(tmp_path / "gone.onnx")


def test_a_model_that_keeps_weights_in_another_file_is_refused(tmp_path, monkeypatch):
    info = ImageInfo(channels=1, height=8, width=8, num_classes=2, class_names=("a", "b"), mean=(0.0,), std=(1.0,))
    path = tmp_path / "x.onnx"
    export_onnx(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)), info, path, {})
    Model(path)
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=500)
    assert (tmp_path / "weights").stat().st_size
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"is not an ONNX model of ours: .*External data"):
        Model(path)


def test_an_onnx_model_of_someone_else_is_refused(files, tmp_path):
    model = onnx.load(files[1])
    del model.metadata_props[:]
    onnx.save_model(model, tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="is not an ONNX model of ours: 'class_names'"):
        Model(tmp_path / "x.onnx")


def test_many_files_are_classified_in_order_batch_after_batch(files, tmp_path):
    levels = [0, 128, 255] * 50
    paths = [picture(tmp_path, f"{number:03}.png", level) for number, level in enumerate(levels)]
    paths[70].write_text("no image")
    told = []
    found = list(Model(files[1]).predict(paths, told.append))
    expected = [(str(path), NAMES[level // 127]) for path, level in zip(paths, levels, strict=True)]
    assert [(each["path"], each["class"]) for each in found] == expected[:70] + expected[71:]
    assert [str(paths[70]) in str(error) for error in told] == [True]


def test_files_that_are_all_bad_leave_nothing(files, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    told = []
    assert list(Model(files[1]).predict(paths, told.append)) == []
    assert len(told) == 3


def test_images_of_a_folder_are_found_by_their_names_and_sorted(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a.jpeg", "c.txt", "d.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = image_files([tmp_path / "c.txt", tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["c.txt", "a.jpeg", "b/1.png", "b/2.JPG"]


def test_folder_without_images_is_named(tmp_path):
    with pytest.raises(UsageError, match=f"{tmp_path.name} has no files that are called"):
        image_files([tmp_path])


@pytest.mark.slow
def test_labels_and_numbers_are_told_by_name(tmp_path):
    path = picture(tmp_path, "a.png", 250)
    scale = {"target_mean": (10.0, 0.0, 0.0), "target_std": (2.0, 1.0, 1.0)}
    for task, changed in (("multilabel", {}), ("regression", scale)):
        export_onnx(Brightness(), info(NAMES, std=(0.25,), task=task, **changed), tmp_path / f"{task}.onnx", {})
    labels = Model(tmp_path / "multilabel.onnx")
    (found,) = labels.predict([path])
    assert found == {
        "path": str(path),
        "labels": "bright",
        "probability_dark": pytest.approx(0.0, abs=1e-3),
        "probability_medium": pytest.approx(0.28, abs=0.01),
        "probability_bright": pytest.approx(1.0, abs=1e-3),
    }
    assert list(found) == list(labels.kinds)
    numbers = Model(tmp_path / "regression.onnx")
    (found,) = numbers.predict([path])
    mean = (250 / 255 - 0.5) / 0.25
    assert found == {
        "path": str(path),
        "dark": pytest.approx(10 - 8 * mean, rel=1e-4),
        "medium": pytest.approx(1 - mean, rel=1e-4),
        "bright": pytest.approx(4 * mean, rel=1e-4),
    }
    assert list(found) == list(numbers.kinds)


@pytest.fixture(scope="module")
def sums(tmp_path_factory) -> Path:
    """A model on a table, which adds up its columns."""
    columns = (Column(name="x"), Column(name="kind", categories=("a", "b")))
    about = info("s", height=1, width=2, columns=columns, task="regression", target_mean=(0.0,), target_std=(1.0,))
    path = tmp_path_factory.mktemp("onnx") / "sums.onnx"
    export_onnx(Sums(), about, path, {})
    return path


class Sums(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.nan_to_num(100.0).sum(1, keepdim=True)


def test_rows_of_tables_are_told_by_file_and_number(sums, tmp_path):
    (tmp_path / "t.csv").write_text("kind,note,x\nb,hi,1.5\na,,2\n?,,\n")
    found = list(Model(sums).predict_rows([tmp_path / "t.csv"]))
    assert [(row["row"], row["s"]) for row in found] == [(1, 2.5), (2, 2.0), (3, 200.0)]
    assert list(found[0]) == list(Model(sums).kinds) == ["path", "row", "s"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("x,note\n1,2\n", "column 'kind' is missing; there are x, note"), ("x,kind\n", "has no rows"), (None, "t.csv")],
)
def test_table_without_the_columns_is_one_line(sums, tmp_path, text, message):
    if text:
        (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        list(Model(sums).predict_rows([tmp_path / "t.csv"]))


def test_rows_of_another_width_or_type_are_refused(sums):
    with pytest.raises(UsageError, match=r"takes rows float32 \(N, 2\); found float32 \(3, 4\)"):
        Model(sums).answers(np.zeros((3, 4), np.float32))


def test_half_precision_differs_by_its_rounding_alone(files):
    pictures = np.random.default_rng(0).integers(0, 256, (20, 9, 7, 1), np.uint8)
    whole, half = (Model(files[1], half=flag).answers(pictures) for flag in (False, True))
    np.testing.assert_allclose(half, whole, atol=0.02)
    assert not np.array_equal(half, whole)

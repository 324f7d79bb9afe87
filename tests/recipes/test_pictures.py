"""What a training with `pictures=true` leaves, read back with TensorBoard's own reader."""

from __future__ import annotations

import csv
import os
import threading
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, IMAGES, EventAccumulator
from torch import nn

import recipes
from recipes import cnn, data, drawings, event_files, events, loop, mlp, pictures, transfer
from recipes.config import make
from recipes.data import Names, Split, digits
from recipes.loop import Attempt
from recipes.metrics import outputs_of
from recipes.model_file import read_model, restore_model
from recipes.speed import results
from recipes.training import DivergedError, Training
from tests.recipes.test_contract import SMALL
from tests.support import photos

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

pytestmark = pytest.mark.slow  # together they take a quarter of what the quick tests may

FILES = {"curves.png", "batch.png", "confusion.png", "mistakes.png", "mistakes.csv"}
LIVELY = {"dropout": 0.3, "crop": 1, "mixup": 0.2, "cutout": 2, "flip": 0.5}


def configured(module: Any = cnn, **values: Any) -> Any:
    small = {"epochs": 3, "width": 4} if module is cnn else {"epochs": 3, "width": 8}
    return make(module.Config, {**small, "batch_size": 256, "warmup_epochs": 0.0, "pictures": True, **values})


def shown(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), {HISTOGRAMS: 0, IMAGES: 0}).Reload()


def steps(folder: Path) -> dict[str, list[int]]:
    """The steps of every tag, as they stand in the files: doubled ones too."""
    found: dict[str, list[int]] = {}
    for event in event_files.read(folder / "tensorboard"):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(event.step)
    return found


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix in (".png", ".csv")}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "mistakes.csv").open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def is_picture(path: Path) -> bool:
    """Whether it is of a laptop's size and not blank."""
    with Image.open(path) as image:
        return image.width <= 1400 and image.height <= 1000 and len(image.convert("RGB").getcolors(1 << 24)) > 2


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet", "vit"))]
)
def test_every_tag_is_there_at_every_epoch(tmp_path, name, caplog):
    recipe = recipes.load(name)
    values = {**SMALL[name], "epochs": 2, "batch_size": 256, "pictures": True}
    epochs = list(recipe.module.train(make(recipe.config_type, values), Attempt(folder=tmp_path)))
    found, model = shown(tmp_path), restore_model(recipe, tmp_path / "best.safetensors")[0]
    tags = found.Tags()
    assert set(tags["scalars"]) == set(epochs[0].metrics)
    assert [scalar.value for scalar in found.Scalars("val_loss")] == [
        pytest.approx(epoch.metrics["val_loss"]) for epoch in epochs
    ]
    weights = dict(model.named_parameters())
    assert set(tags["histograms"]) == {f"{kind}/{each}" for kind in ("weights", "gradients") for each in weights}
    assert all([event.step for event in found.Histograms(tag)] == [1, 2] for tag in tags["histograms"])
    assert {tag: [image.step for image in found.Images(tag)] for tag in tags["images"]} == {
        "pictures/batch": [0],
        "pictures/confusion": [2],
        "pictures/mistakes": [2],
    }
    assert tags["graph"]
    assert len(found.Graph().node) > 5
    assert files(tmp_path) == FILES
    assert all(is_picture(tmp_path / file) for file in FILES if file.endswith(".png"))
    assert "graph" not in caplog.text


def test_histograms_are_those_of_the_weights_and_of_the_last_gradients(features, tmp_path):
    gradients: list[torch.Tensor] = []

    class Watching(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.weight.register_post_accumulate_grad_hook(lambda weight: gradients.append(weight.grad.clone()))

    config = configured(mlp, epochs=2, batch_size=8)
    list(loop.fit(config, lambda *_: Watching(), Attempt(folder=tmp_path), recipe="mlp", dataset=features))
    found = shown(tmp_path)
    weights = read_model(tmp_path / "best.safetensors")[1]["weight"]
    assert len(gradients) == 8
    last = [found.Histograms(f"{kind}/weight")[1].histogram_value for kind in ("weights", "gradients")]
    for histogram, expected in zip(last, (weights, gradients[-1]), strict=True):
        assert (histogram.min, histogram.max) == pytest.approx(tuple(map(float, expected.aminmax())))
        assert histogram.sum == pytest.approx(expected.sum().item(), abs=1e-6)
        counted = np.histogram(expected, 30, (histogram.min, histogram.max))[0]
        assert sum(histogram.bucket) == 16
        assert np.abs(np.array(histogram.bucket) - counted).sum() <= 2, "one may fall to the other side of a limit"
        assert all(low < high for low, high in pairwise(histogram.bucket_limit))


def test_constant_infinite_and_no_numbers_have_a_histogram_or_none(tmp_path):
    file = events.Events(tmp_path, None, [], ())
    tensors = {"same": torch.full((5,), 2.0), "odd": torch.tensor([1.0, torch.inf, torch.nan, 3.0])}
    file.histograms({**tensors, "none": torch.zeros(0), "lost": torch.tensor([torch.nan])}, 1)
    file.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    assert found.Tags()["histograms"] == ["same", "odd"]
    assert found.Histograms("same")[0].histogram_value.bucket == [5]
    assert sum(found.Histograms("odd")[0].histogram_value.bucket) == 2


def test_pictures_leave_the_bits_as_they_are(tmp_path):
    runs = {}
    for name, is_on in (("plain", False), ("drawn", True)):
        config = configured(**LIVELY, ema=0.9, pictures=is_on)
        found = list(cnn.train(config, Attempt(folder=tmp_path / name)))
        weights = read_model(tmp_path / name / "best.safetensors")[1]
        runs[name] = (
            [results(epoch.metrics) for epoch in found],
            {key: each.tolist() for key, each in weights.items()},
        )
    assert runs["plain"] == runs["drawn"]
    assert not files(tmp_path / "plain")
    assert not (tmp_path / "plain" / "tensorboard").exists()


def test_training_without_an_attempt_draws_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    list(mlp.train(configured(mlp, epochs=1)))
    assert list(tmp_path.iterdir()) == []


def test_batch_is_the_first_of_the_training_and_looks_like_the_images(monkeypatch, tmp_path):
    seen: list[torch.Tensor] = []

    class Watching(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(x)
            return super().forward(x)

    config = configured(mlp, crop=1, mixup=0.5, epochs=1)
    dataset = data.load(config.dataset)
    training = Training(config, Watching(nn.Flatten(), nn.Linear(64, 10)), dataset, torch.device("cpu"))
    batches = [training.next_batch() for _ in range(2)]
    training.epoch([])
    assert all(torch.equal(images, seen[0]) for images, _ in batches)

    drawn: list[Any] = []
    grid = drawings.grid
    monkeypatch.setattr(drawings, "grid", lambda *arguments: drawn.append(arguments) or grid(*arguments))
    list(mlp.train(configured(mlp, epochs=1), Attempt(folder=tmp_path)))
    images, captions, _ = drawn[0]
    pairs = zip(dataset.train.images.numpy(), dataset.train.labels.tolist(), strict=True)
    known = {image.tobytes(): str(label) for image, label in pairs}
    assert [known[image.tobytes()] for image in images] == captions, "not changed, and each with its class"


def forgotten(folder: Path, epoch: int) -> None:
    """Take the checkpoint of the last epoch away, and cut the events off in the middle of a record."""
    (folder / f"epoch-{epoch:04}.json").unlink()
    (file,) = (folder / "tensorboard").iterdir()
    os.truncate(file, file.stat().st_size - 7)


@pytest.mark.parametrize(
    ("same_folder", "is_killed"),
    [
        (False, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((True, True), (True, False), (False, False))),
    ],
)
def test_resumed_training_neither_loses_nor_doubles_an_epoch(tmp_path, same_folder, is_killed):
    config = configured(epochs=4, **LIVELY)
    list(cnn.train(config, Attempt(folder=tmp_path / "straight")))
    first, second = tmp_path / "first", tmp_path / ("first" if same_folder else "second")
    stopped = cnn.train(config, Attempt(folder=first))
    for _ in range(3):
        next(stopped)
    stopped.close()
    if is_killed:
        forgotten(first, 3)
    list(cnn.train(config, Attempt(folder=second, resume_from=first)))
    expected = steps(tmp_path / "straight")
    assert steps(second) == expected
    assert expected["val_loss"] == [1, 2, 3, 4]
    assert len(list((second / "tensorboard").iterdir())) == 1
    assert shown(second).Tags()["graph"]
    for name in FILES - {"batch.png"}:  # which shows the batch that the resumed one begins with
        assert (second / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


@pytest.mark.slow
def test_training_of_two_processes_leaves_pictures_once_and_goes_on_with_its_events(tmp_path):
    config = configured(mlp, devices=2, device="cpu", limit=300, batch_size=45)
    stopped = mlp.train(config, Attempt(folder=tmp_path / "1"))
    next(stopped)
    stopped.close()
    list(mlp.train(config, Attempt(folder=tmp_path / "2", resume_from=tmp_path / "1")))
    assert files(tmp_path / "2") == FILES
    found = steps(tmp_path / "2")
    assert found["val_loss"] == found["weights/1.weight"] == found["gradients/1.weight"] == [1, 2, 3]
    assert len(found["pictures/batch"]) == len(found["pictures/mistakes"]) == 1
    assert len(list((tmp_path / "2" / "tensorboard").iterdir())) == 1


def test_events_that_are_gone_come_back_from_the_history(tmp_path):
    config = configured(mlp, epochs=4)
    stopped = mlp.train(config, Attempt(folder=tmp_path / "1"))
    for _ in range(2):
        next(stopped)
    stopped.close()
    for file in (tmp_path / "1" / "tensorboard").iterdir():
        file.unlink()
    list(mlp.train(config, Attempt(folder=tmp_path / "2", resume_from=tmp_path / "1")))
    assert steps(tmp_path / "2")["val_loss"] == [1, 2, 3, 4]
    assert steps(tmp_path / "2")["pictures/batch"] == [0]


def writers() -> list[threading.Thread]:
    """The threads of events files that are open."""
    return [thread for thread in threading.enumerate() if "AsyncWriter" in type(thread).__name__]


def test_stopped_training_closes_its_files_and_draws_what_it_has(tmp_path):
    training = mlp.train(configured(mlp), Attempt(folder=tmp_path))
    next(training)
    assert len(writers()) == 1
    assert steps(tmp_path)["val_loss"] == [1], "each epoch is there while the next one trains"
    training.close()
    assert files(tmp_path) == FILES
    assert steps(tmp_path)["pictures/mistakes"] == [1]
    assert not writers()


def test_training_that_diverges_closes_its_file_and_says_so(tmp_path):
    with pytest.raises(DivergedError):
        list(mlp.train(configured(mlp, optimizer="sgd", lr=1e30), Attempt(folder=tmp_path)))
    assert files(tmp_path) == {"batch.png"}
    assert not writers()


def test_model_that_cannot_be_traced_trains_on_with_a_warning(tmp_path, caplog, capsys):
    class Stubborn(nn.Flatten):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.jit.is_tracing():
                raise RuntimeError("not to be traced\nat all")
            return super().forward(x)

    def build(_config: Any, _info: data.ImageInfo) -> nn.Module:
        return nn.Sequential(Stubborn(), nn.Linear(64, 10))

    assert len(list(loop.fit(configured(mlp), build, Attempt(folder=tmp_path), recipe="mlp"))) == 3
    assert "no graph of the model: RuntimeError: not to be traced" in caplog.text
    assert not shown(tmp_path).Tags()["graph"]
    assert files(tmp_path) == FILES
    assert capsys.readouterr().out == ""


def test_graph_leaves_the_model_as_it_is(tmp_path):
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x)

    model = Counting(4, 4).train()
    file = events.Events(tmp_path, None, [], ())
    file.graph(model, torch.zeros(1, 4))
    file.close()
    assert (model.calls, model.training) == (0, True)
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["graph"]


def test_mistakes_are_those_of_the_best_epoch_with_their_names(tmp_path):
    epochs = list(mlp.train(configured(mlp, lr=0.3, epochs=4, ema=0.5), Attempt(folder=tmp_path)))
    model, info, metadata = restore_model(recipes.load("mlp"), tmp_path / "best.safetensors")
    val = data.load(mlp.Config().dataset).val
    logits = outputs_of(model, val, info)
    wrong = logits.argmax(1) != val.labels
    rows = table(tmp_path)
    assert len(rows) == int(wrong.sum())
    assert len(rows) == pytest.approx(360 * (1 - epochs[metadata["epoch"] - 1].metrics["val_accuracy"]))
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert sum(losses) == pytest.approx(
        nn.functional.cross_entropy(logits[wrong], val.labels[wrong], reduction="sum").item(), rel=1e-4
    )
    labels = digits.read().about.labels
    assert all(str(labels[int(row["file"].removeprefix("digits #"))]) == row["class"] for row in rows)
    worst = int(nn.functional.cross_entropy(logits, val.labels, reduction="none").where(wrong, 0.0).argmax())
    assert (rows[0]["file"], rows[0]["taken for"]) == (val.name(worst), str(int(logits[worst].argmax())))
    assert float(rows[0]["probability"]) == pytest.approx(logits[worst].softmax(0).max().item(), rel=1e-4)


def test_colour_pictures_of_two_classes_are_called_by_their_files(tmp_path):
    folder = photos.write(tmp_path / "photos", 12)
    config = configured(epochs=1, data=f"folder:{folder}", image_size=16, lr=1e-6, flip=0.5)
    list(cnn.train(config, Attempt(folder=tmp_path / "1")))
    rows = table(tmp_path / "1")
    assert rows, "it has learnt nothing"
    assert all((folder / row["file"]).is_file() for row in rows)
    assert all(row["file"].startswith(f"{row['class']}/") and row["class"] != row["taken for"] for row in rows)
    assert files(tmp_path / "1") == FILES


@pytest.mark.slow
def test_frozen_features_have_no_batch_and_their_mistakes_show_the_images(tmp_path):
    list(cnn.train(configured(epochs=1, pictures=False), Attempt(folder=tmp_path / "cnn")))
    init = str(tmp_path / "cnn" / "best.safetensors")
    values = {"init": init, "features": "last", "epochs": 1, "pictures": True}
    list(transfer.train(make(transfer.Config, values), Attempt(folder=tmp_path / "frozen")))
    assert files(tmp_path / "frozen") == FILES - {"batch.png"}
    assert set(shown(tmp_path / "frozen").Tags()["images"]) == {"pictures/confusion", "pictures/mistakes"}
    assert table(tmp_path / "frozen")[0]["file"].startswith("digits #")
    tuned = {**values, "freeze": False, "batch_size": 512}
    list(transfer.train(make(transfer.Config, tuned), Attempt(folder=tmp_path / "tuned")))
    assert files(tmp_path / "tuned") == FILES
    assert shown(tmp_path / "tuned").Tags()["graph"]


def test_features_of_unknown_images_have_a_table_alone(features, tmp_path):
    def still(*_: Any) -> nn.Module:
        model = nn.Linear(4, 4)
        nn.init.zeros_(model.weight)
        return model

    config = configured(mlp, lr=1e-9)
    list(loop.fit(config, still, Attempt(folder=tmp_path), recipe="mlp", dataset=features))
    assert files(tmp_path) == {"curves.png", "confusion.png", "mistakes.csv"}
    assert [row["file"][0] for row in table(tmp_path)] == ["#"] * 24


@pytest.mark.parametrize(
    ("task", "header", "values"),
    [("regression", "length", "{0}.5"), ("multilabel", "long", "{1}")],
)
def test_numbers_and_labels_have_curves_and_a_batch_and_no_classes_to_mistake(tmp_path, task, header, values):
    photos.write(tmp_path, 12)
    rows = [
        f"{name}/{n:02}.png," + values.format(n, "ab"[n % 2] + "|c" * (n % 3 > 0))
        for name in photos.CLASSES
        for n in range(12)
    ]
    (tmp_path / "table.csv").write_text("\n".join([f"file,{header}", *rows]))
    config = configured(mlp, data=f"csv:{tmp_path / 'table.csv'}", task=task, image_size=8, epochs=2)
    list(mlp.train(config, Attempt(folder=tmp_path / "1")))
    assert files(tmp_path / "1") == {"curves.png", "batch.png"}
    assert set(steps(tmp_path / "1")) >= {"val_loss", "pictures/batch", "weights/1.weight", "gradients/1.weight"}


def answered(num_classes: int, shares: float, shape: Iterable[int] = (1, 8, 8), count: int = 400) -> tuple[Any, Split]:
    """Answers to images of noise, of which a share is taken for the class before."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % num_classes
    answers = torch.where(torch.rand(count, generator=generator) < shares, (labels - 1) % num_classes, labels)
    images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    return nn.functional.one_hot(answers, num_classes) * 5.0, Split(images=images, labels=labels)


@pytest.mark.parametrize("num_classes", [2, 20, 21, 100, pytest.param(1000, marks=pytest.mark.slow)])
def test_any_number_of_classes_and_any_name_has_room(tmp_path, num_classes):
    hostile = ["<img src=x onerror=alert(1)>", r"$\frac{1$", "a\nb\x1b[31m", "", "W" * 300, "日本"]
    names = [*hostile, *map(str, range(num_classes))][:num_classes]
    logits, split = answered(num_classes, 0.2, shape=(3, 24, 16), count=2 * num_classes + 50)
    drawn = pictures.write_answers(tmp_path, logits, split, names)
    assert all(is_picture(tmp_path / name) for name in ("confusion.png", "mistakes.png"))
    assert set(drawn) == {"pictures/confusion", "pictures/mistakes"}
    rows = table(tmp_path)
    assert {row["class"] for row in rows} <= set(names), "as they are"


def test_long_names_that_differ_at_their_end_stay_apart():
    assert drawings.short("a" * 30 + "1") != drawings.short("a" * 30 + "2")
    assert all(len(drawings.short("x" * length)) <= drawings.NAME_LENGTH for length in range(40))


def test_no_mistakes_at_all_are_said(tmp_path):
    logits, split = answered(3, 0.0)
    blank = pictures.write_answers(tmp_path, logits, split, "abc")["pictures/mistakes"]
    assert table(tmp_path) == []
    assert (tmp_path / "mistakes.csv").read_text().strip() == "file,class,taken for,probability,loss"
    assert blank.min() < 100, "something is written there"


def test_confusion_has_classes_in_rows(monkeypatch, tmp_path):
    logits, split = answered(4, 0.3)
    taken: list[Any] = []
    draw = drawings.confusion
    monkeypatch.setattr(drawings, "confusion", lambda *arguments: taken.append(arguments) or draw(*arguments))
    pictures.write_answers(tmp_path, logits, split, "abcd")
    matrix = taken[0][0]
    assert matrix.sum(1).tolist() == [100] * 4
    assert (matrix - np.diag(np.diag(matrix)))[1, 0] > 0, "taken for the class before"
    assert matrix[0, 1] == 0


def test_name_of_a_file_that_is_no_text_stays_in_the_table(tmp_path):
    logits, split = answered(2, 1.0, count=1)
    name = os.fsdecode(b"\xff.png")
    names = Names(data="folder:x", numbers=np.array([0]), files=np.array([name]))
    pictures.write_answers(tmp_path, logits, replace(split, names=names), "ab")
    assert table(tmp_path)[0]["file"] == name


IMPORTS = """
import sys
from pathlib import Path
from recipes import mlp
from recipes.config import make
from recipes.loop import Attempt
for pictures in (False, True):
    config = make(mlp.Config, {"epochs": 1, "pictures": pictures})
    list(mlp.train(config, Attempt(folder=Path(sys.argv[1]) / str(pictures))))
    print(*[name in sys.modules for name in ("matplotlib", "tensorboard", "matplotlib.pyplot", "tensorflow")])
"""


@pytest.mark.slow
def test_only_pictures_import_what_draws_them_and_nothing_with_global_state(run_python, tmp_path):
    plain, drawn = run_python(IMPORTS, tmp_path).splitlines()
    assert plain == "False False False False"
    assert drawn == "True True False False"

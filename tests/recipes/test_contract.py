"""What holds for every recipe."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch

import recipes
from recipes import checkpoint, data
from recipes.augment import Batches
from recipes.config import fields, flatten, make
from recipes.data import ImageInfo
from recipes.loop import Attempt
from recipes.model_file import read_model, restore_model
from recipes.speed import results

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Enough to be quick: the fields that make a recipe small.
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 32},
    "cnn": {"width": 4},
    "resnet": {"width": 4, "depth": 1},
    "vit": {"dim": 16, "depth": 2, "heads": 2},
    "transfer": {},
}
# All that draws random numbers or has a state of its own.
RESTLESS = {
    "epochs": 3,
    "batch_size": 128,
    "warmup_epochs": 2.0,
    "clip_norm": 1.0,
    "label_smoothing": 0.1,
    "dropout": 0.3,
}
STOCHASTIC: dict[str, dict[str, Any]] = {
    "resnet": {"stochastic_depth": 0.4},
    "vit": {"stochastic_depth": 0.4, "pool": "token"},
}
AUGMENTED = {
    "crop": 1,
    "resized_crop": 0.5,
    "flip": 0.5,
    "rotation": 10,
    "contrast": 0.3,
    "trivial_augment": 0.3,
    "noise": 0.05,
    "cutout": 2,
    "mixup": 0.2,
    "cutmix": 1.0,
}


# The features of a pretrained network take seconds to compute.
@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "transfer")) for name in recipes.BUILT_IN]
)
def recipe(request: pytest.FixtureRequest) -> recipes.Recipe:
    return recipes.load(request.param)


def test_defaults_flatten_and_make_the_same_config(recipe):
    config = recipe.config_type()
    flat = flatten(config)
    assert list(flat) == list(fields(recipe.config_type))
    assert make(recipe.config_type, json.loads(json.dumps(flat))) == config
    assert {"epochs", "lr", "seed", "data", "split_seed", "device", "dropout"} <= set(flat)


def test_one_value_given_leaves_the_recipes_other_defaults(recipe):
    flat = flatten(recipe.config_type())
    for name, value in (("momentum", 0.5), ("seed", 5), ("split_seed", 3), ("dropout", 0.25)):
        assert flatten(make(recipe.config_type, {name: value})) == {**flat, name: value}


def test_every_field_says_what_it_is(recipe):
    assert [name for name, path in fields(recipe.config_type).items() if not path.info.description] == []


@pytest.mark.parametrize(
    "values", [{"epochs": 0}, {"lr": 0.0}, {"batch_size": -1}, {"dropout": 1.0}, {"optimizer": "x"}]
)
def test_impossible_value_is_refused(recipe, values):
    with pytest.raises(ValueError, match=next(iter(values))):
        make(recipe.config_type, values)


def test_digits_are_learnt_saved_and_restored(recipe, tmp_path):
    config = make(recipe.config_type, {**SMALL[recipe.name], "epochs": 4, "batch_size": 32, "warmup_epochs": 0.5})
    epochs = list(recipe.module.train(config, Attempt(folder=tmp_path)))
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]
    assert all({"train_loss", "val_loss", "val_accuracy", "lr"} <= set(epoch.metrics) for epoch in epochs)
    assert all(epoch.saved.exception() is None for epoch in epochs)
    assert [each["metrics"] for each in checkpoint.read_history(tmp_path)] == [epoch.metrics for epoch in epochs]
    assert epochs[0].metrics["num_parameters"] > 0
    assert epochs[0].metrics["flops"] > 0
    best = [epoch for epoch in epochs if epoch.is_best][-1].metrics["val_accuracy"]
    assert best > 0.3, "chance is 0.1"

    model, info, metadata = restore_model(recipe, tmp_path / "best.safetensors")
    assert metadata["recipe"] == recipe.name
    assert metadata["config"] == flatten(config)
    dataset = data.load(config.dataset)
    assert info == dataset.info
    prepare = Batches(dataset.val, info, memory_format=torch.contiguous_format)
    with torch.inference_mode():
        images, labels = prepare(torch.arange(len(dataset.val.labels)))
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    # An image on the edge may fall to the other side in another memory layout.
    assert accuracy == pytest.approx(best, abs=1 / len(dataset.val.labels))


@pytest.mark.slow
def test_digits_changed_in_every_way_are_learnt_and_the_same_again():
    values = {**AUGMENTED, "width": 16, "epochs": 2, "batch_size": 16, "warmup_epochs": 0.5}
    cnn = recipes.load("cnn")
    first, again = (
        [results(epoch.metrics) for epoch in cnn.module.train(make(cnn.config_type, values))] for _ in range(2)
    )
    assert first == again
    assert first[1]["train_loss"] < first[0]["train_loss"]
    assert first[1]["val_accuracy"] > 0.3, "chance is 0.1"


def test_training_without_an_attempt_writes_nothing(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make(recipe.config_type, {**SMALL[recipe.name], "epochs": 1})
    (epoch,) = recipe.module.train(config)
    assert epoch.saved is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 96, 64)])
def test_model_gives_a_logit_a_class_for_small_and_large_images(recipe, shape):
    channels, height, width = shape
    info = ImageInfo(
        channels=channels,
        height=height,
        width=width,
        num_classes=3,
        class_names=("a", "b", "c"),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )
    model = recipe.module.build_model(make(recipe.config_type, SMALL[recipe.name]), info).eval()
    with torch.inference_mode():
        assert model(torch.randn(5, *shape)).shape == (5, 3)


# The process is killed in the middle of an epoch, before the optimiser's `steps`-th step.
TRAIN = """
import json, os, signal, sys
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_pre_hook
import recipes
from recipes.config import make
from recipes.loop import Attempt
name, values, folder, resume_from, straight, steps = json.loads(sys.argv[1])
recipe = recipes.load(name)
config = make(recipe.config_type, values)

def count_down(*_):
    global steps
    steps -= 1
    if not steps:
        os.kill(os.getpid(), signal.SIGKILL)

if steps:
    register_optimizer_step_pre_hook(count_down)
attempt = Attempt(folder=Path(folder), resume_from=resume_from and Path(resume_from))
for epoch in recipe.module.train(config, attempt):
    epoch.saved.result()
    print(epoch.number, flush=True)
if straight:
    list(recipe.module.train(config, Attempt(folder=Path(straight))))
"""


def train_killed_and_resumed(run_python: Callable[..., str], folder: Path, name: str, values: dict[str, Any]) -> None:
    """In `folder`: `killed` in mid-epoch 2, `resumed` in a new process, `straight` through."""
    killed, resumed, straight = (str(folder / part) for part in ("killed", "resumed", "straight"))
    steps = 9 + 5  # 1,078 images are 9 steps of at most 128
    first = run_python(TRAIN, json.dumps([name, values, killed, None, None, steps]), expected=-signal.SIGKILL)
    assert first.split() == ["1"]
    second = run_python(TRAIN, json.dumps([name, values, resumed, killed, straight, None]))
    assert second.split() == ["2", "3"]


def assert_same_bits(folder: Path) -> None:
    resumed, straight = (checkpoint.newest(folder / part) for part in ("resumed", "straight"))
    assert resumed is not None
    assert straight is not None
    epochs = [
        [(epoch["number"], results(epoch["metrics"]), epoch["is_best"]) for epoch in each.record["history"]]
        for each in (resumed, straight)
    ]
    assert epochs[0] == epochs[1]
    assert_same_tree(resumed.state(), straight.state())
    (metadata, tensors), (other_metadata, other_tensors) = (
        read_model(folder / part / "best.safetensors") for part in ("resumed", "straight")
    )
    assert metadata == other_metadata
    assert_same_tree(tensors, other_tensors)


def assert_same_tree(one: Any, other: Any, path: str = "state") -> None:
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_same_tree(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same_tree(*pair, f"{path}.{index}")
    else:
        assert one == other, path


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recipes.BUILT_IN if name != "transfer"])
def test_killed_and_resumed_is_the_same_to_the_bit(run_python, tmp_path, name):
    train_killed_and_resumed(
        run_python, tmp_path, name, {**SMALL[name], **RESTLESS, **AUGMENTED, **STOCHASTIC.get(name, {})}
    )
    assert_same_bits(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["frozen", "fine-tuned"])
def test_transfer_killed_and_resumed_is_the_same_to_the_bit(run_python, tmp_path, case):
    values: dict[str, Any] = dict(RESTLESS)
    if case == "fine-tuned":
        cnn = recipes.load("cnn")
        list(cnn.module.train(make(cnn.config_type, {**SMALL["cnn"], "epochs": 1}), Attempt(folder=tmp_path / "cnn")))
        init = str(tmp_path / "cnn" / "best.safetensors")
        values |= {**AUGMENTED, "init": init, "freeze": False, "features": "last", "unfreeze_epochs": 2}
    train_killed_and_resumed(run_python, tmp_path, "transfer", values)
    assert_same_bits(tmp_path)


def test_recipe_in_a_file_of_the_users_own_is_restored(tmp_path):
    source = tmp_path / "mine.py"
    source.write_text(
        "from recipes.mlp import Config, build_model\n"
        "from recipes.loop import fit\n"
        "def train(config, attempt=None):\n"
        "    return fit(config, build_model, attempt, recipe=__file__)\n"
    )
    mine = recipes.load(str(source))
    list(mine.module.train(make(mine.config_type, {"epochs": 1, "width": 8}), Attempt(folder=tmp_path / "1")))
    metadata, _ = read_model(tmp_path / "1" / "best.safetensors")
    model, *_ = restore_model(recipes.load(metadata["recipe"]), tmp_path / "1" / "best.safetensors")
    assert not model.training

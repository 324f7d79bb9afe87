from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from pydantic import ValidationError
from sklearn.datasets import load_sample_image
from torch import nn

import recipes
from recipes import data, optim, pretrained, transfer
from recipes.augment import Batches
from recipes.config import DatasetConfig, make
from recipes.data import ImageInfo
from recipes.loop import Attempt, fit
from recipes.model_file import METADATA_KEY, ModelFileError, read_model, restore_model
from recipes.pretrained import Backbone, InitError, Pretrained, load, timm_name

if TYPE_CHECKING:
    from torch import Tensor

DIGITS = ImageInfo(
    channels=1, height=8, width=8, num_classes=10, class_names=tuple("0123456789"), mean=(0.3,), std=(0.4,)
)
COLOURS = ImageInfo(
    channels=3, height=12, width=9, num_classes=2, class_names=("a", "b"), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
)


def train_small(name: str, folder: Path, **values: object) -> Path:
    """The file of a model that was trained on the digits for an epoch."""
    recipe = recipes.load(name)
    list(recipe.module.train(make(recipe.config_type, {"epochs": 1, **values}), Attempt(folder=folder)))
    return folder / "best.safetensors"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small models of our own, by recipe."""
    shapes = {"mlp": {"width": 16}, "cnn": {"width": 4}, "resnet": {"width": 4}, "vit": {"dim": 16, "heads": 2}}
    return {name: str(train_small(name, tmp_path_factory.mktemp(name), **values)) for name, values in shapes.items()}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download goes to a port where nobody listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")


def features_of(network: nn.Module, kind: pretrained.Features, side: int = 64, info: ImageInfo = DIGITS) -> Tensor:
    mean = std = (0.5,) * 3
    backbone = Backbone(
        Pretrained(network=network, channels=3, height=side, width=side, mean=mean, std=std), kind, info
    )
    with torch.inference_mode():
        return backbone(torch.randn(2, info.channels, info.height, info.width))


# init=imagenet


def weights_of_the_package() -> dict[str, Tensor]:
    file = resources.files(pretrained.IMAGENET_PACKAGE) / pretrained.IMAGENET_FILE
    return dict(torch.load(io.BytesIO(file.read_bytes()), weights_only=True))


def test_every_tensor_of_the_package_has_one_of_timms_names_and_its_shape():
    theirs = weights_of_the_package()
    ours = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    assert len(theirs) == 296
    assert {timm_name(name): tensor.shape for name, tensor in theirs.items()} == {
        name: tensor.shape for name, tensor in ours.items()
    }
    assert all(timm_name(name).rpartition(".")[2] == name.rpartition(".")[2] for name in theirs)
    # Blocks of one shape could change places without a shape to show it.
    places = [timm_name(f"_blocks.{block}._bn1.weight").split(".")[1:3] for block in range(16)]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["_blocks.16._bn1.weight", "_blocks.0._bn0.weight", "_swish.weight"])
def test_name_that_the_package_does_not_have_is_refused(name):
    with pytest.raises(KeyError):
        timm_name(name)


def test_imagenet_weights_know_what_is_in_a_photograph():
    found = load("imagenet", 224)
    for file, expected in {
        "flower.jpg": {985},
        "china.jpg": {442, 449, 698},
    }.items():  # daisy; bell cote, boathouse, palace
        photograph = torch.from_numpy(load_sample_image(file).copy()).permute(2, 0, 1)[None] / 255
        image = nn.functional.interpolate(photograph, (224, 224), mode="bilinear", antialias=True)
        with torch.inference_mode():
            logits = found.network.eval()((image - found.mean[0]) / found.std[0])
        assert int(logits.argmax()) in expected


def test_changed_weights_of_the_package_are_refused(tmp_path, monkeypatch):
    package = tmp_path / pretrained.IMAGENET_PACKAGE
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    whole = bytearray((resources.files(pretrained.IMAGENET_PACKAGE) / pretrained.IMAGENET_FILE).read_bytes())
    whole[len(whole) // 2] ^= 1
    (package / pretrained.IMAGENET_FILE).write_bytes(whole)
    monkeypatch.delitem(sys.modules, pretrained.IMAGENET_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InitError, match="has SHA-256"):
        load("imagenet", 64)


@pytest.mark.parametrize(
    ("features", "num_features"), [("last", 1280), ("middle", 16 * (40 + 112)), ("all", 16 * (40 + 112) + 1280)]
)
def test_features_are_those_of_the_layers_that_they_name(features, num_features):
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    mean = std = (0.5,) * 3
    found = Pretrained(network=network, channels=3, height=64, width=64, mean=mean, std=std)
    image = torch.rand(2, 1, 8, 8)
    wide = nn.functional.interpolate(image, (64, 64), mode="bilinear", antialias=True).expand(-1, 3, -1, -1) * 2 - 1
    with torch.inference_mode():
        stages = network.forward_intermediates(wide, indices=[2, 3], intermediates_only=True)
        last = network.forward_head(network.forward_features(wide), pre_logits=True)
    middle = [nn.functional.adaptive_avg_pool2d(stage, 4).flatten(1) for stage in stages]
    expected = torch.cat([*(middle if features != "last" else []), *([last] if features != "middle" else [])], dim=1)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())

    backbone = Backbone(found, features, DIGITS)
    with torch.inference_mode():
        torch.testing.assert_close(backbone((image - 0.3) / 0.4), expected, rtol=1e-4, atol=1e-4)
    assert backbone.num_features == num_features
    left = sum(parameter.numel() for parameter in backbone.parameters())
    assert left < num_parameters * (0.2 if features == "middle" else 0.8)


# init=timm:NAME and torchvision:NAME


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_maxvit", "test_efficientnet"])
def test_middle_is_where_timm_itself_ends_those_stages(name):
    network = timm.create_model(name)
    expected = sum(stage["num_chs"] for stage in network.feature_info if stage["reduction"] in (8, 16))
    assert features_of(network, "middle", side=160).shape == (2, 16 * expected)


def test_looking_for_the_features_does_not_train_the_network():
    network = timm.create_model("test_resnet")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    features_of(network, "middle")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.training


def test_network_that_needs_a_dropped_layer_stays_whole():
    class Needy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 4, 3, 2)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.three(self.two(self.one(x)))
            return self.head(x.mean((2, 3)) * self.three.weight.mean())

    network = Needy()
    assert features_of(network, "middle").shape == (2, 2 * 4 * 16)
    assert isinstance(network.three, nn.Conv2d)


@pytest.mark.parametrize(
    ("init", "file"), [("timm:test_resnet", "test_resnet.r160_in1k.safetensors"), ("torchvision:mnasnet0_5", ".pth")]
)
@pytest.mark.usefixtures("offline")
def test_weights_that_cannot_be_downloaded_may_be_put_in_place(init, file, tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_HOME", str(tmp_path))
    with pytest.raises(InitError, match=f"init={init}: no download here .*; put https.* at ") as refused:
        load(init, 64)
    assert "\n" not in str(refused.value)
    path = Path(str(refused.value).rpartition(" at ")[2])
    assert path.parent == tmp_path / "cache" / "weights"
    assert path.name.endswith(file)
    assert list(path.parent.iterdir()) == []

    kind, name = init.split(":")
    if kind == "timm":
        network = timm.create_model(name, pretrained=False)
        safetensors.torch.save_file(network.state_dict(), path)
    else:
        from torchvision.models import get_model

        network = get_model(name, weights=None)
        torch.save(network.state_dict(), path)
    found = load(init, 64)
    assert (found.channels, found.height, found.width) == (3, 64, 64)
    expected = network.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.network.state_dict().items())


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_unknown_name_is_refused_with_the_nearest(kind):
    with pytest.raises(InitError, match=f"init={kind}:resnet1: {kind} has no such model; the nearest is resnet"):
        load(f"{kind}:resnet1", 64)


FAMILIES = {"efficientnet_b0": 1280, "resnet18": 512, "vgg11": 4096, "convnext_tiny": 768, "vit_b_16": 768}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_torchvision_are_there_by_name_without_weights(name):
    fields = {"init": f"torchvision:{name}", "pretrained": False, "freeze": False, "features": "last"}
    config = make(transfer.Config, fields)
    model = transfer.build_model(config, COLOURS)
    assert model.head.layers[-1].in_features == FAMILIES[name]
    assert model(torch.randn(2, 3, 12, 9)).shape == (2, 2)
    model.train()
    assert all(module.training for module in model.modules())


@pytest.mark.slow
def test_weights_are_drawn_anew_from_the_seed_where_they_are_not_wanted(tmp_path):
    def trained(seed):
        fields = {"pretrained": False, "freeze": False, "features": "last", "epochs": 1, "limit": 40, "seed": seed}
        folder = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}"
        list(transfer.train(make(transfer.Config, fields), Attempt(folder=folder)))
        return read_model(folder / "best.safetensors")[1]

    first, again, other = trained(0), trained(0), trained(1)
    name = "backbone.network.conv_stem.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert not torch.allclose(first[name], load("imagenet", 64).network.conv_stem.weight, atol=0.05)


def test_random_weights_are_not_frozen_and_a_file_is_not_random(tmp_path):
    with pytest.raises(ValidationError, match="pretrained=false needs freeze=false"):
        make(transfer.Config, {"pretrained": False})
    config = make(transfer.Config, {"init": str(tmp_path / "a.safetensors"), "pretrained": False, "freeze": False})
    with pytest.raises(InitError, match=r"a\.safetensors is nothing but weights; pretrained=false takes"):
        transfer.check(config)


# init=PATH


@pytest.mark.parametrize(
    ("name", "features", "num_features"),
    [
        ("mlp", "last", 16),
        ("cnn", "last", 8),
        ("cnn", "middle", 4 * 16 + 8 * 16),
        ("resnet", "all", 4 * 16 + 8 * 16 + 16),
        ("vit", "last", 16),
    ],
)
def test_model_of_our_own_gives_features(own, name, features, num_features):
    backbone = Backbone(load(own[name], 64), features, DIGITS)
    assert backbone(torch.randn(3, 1, 8, 8)).shape == (3, num_features)


def test_last_features_of_our_own_model_give_its_logits(own):
    model, info, _ = restore_model(recipes.load("cnn"), Path(own["cnn"]))
    images = torch.randn(3, 1, 8, 8)
    backbone = Backbone(load(own["cnn"], 64), "last", info)
    with torch.inference_mode():
        features = backbone(images)
        torch.testing.assert_close(model[-1](features), model(images), rtol=1e-4, atol=1e-5)


def test_colours_are_seen_as_grey_by_a_grey_network(own):
    backbone = Backbone(load(own["cnn"], 64), "last", COLOURS)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (COLOURS.mean, COLOURS.std))
    image = torch.rand(1, 3, 12, 9)
    grey = image.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        torch.testing.assert_close(backbone((image - mean) / std), backbone((grey - mean) / std))


def test_network_for_other_channels_is_refused():
    with pytest.raises(InitError, match="a network for 3 channels can't see images of 4"):
        features_of(nn.Linear(1, 1), "last", info=ImageInfo(**{**DIGITS.to_json(), "channels": 4}))


@pytest.mark.parametrize(("name", "features", "other"), [("vit", "middle", "last"), ("mlp", "all", "last")])
def test_features_that_a_network_does_not_have_are_refused(own, name, features, other):
    with pytest.raises(InitError, match=f"use features={other}"):
        Backbone(load(own[name], 64), features, DIGITS)


def test_network_that_does_not_take_the_size_is_refused():
    with pytest.raises(InitError, match=r"fails on images of 64x64: .* divisible by window"):
        features_of(timm.create_model("test_maxvit"), "middle", side=64)


def test_network_without_a_linear_layer_has_no_last_features():
    with pytest.raises(InitError, match="use features=middle"):
        features_of(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2)), "last")


def test_path_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelFileError):
        load(str(tmp_path / "missing.safetensors"), 64)
    with pytest.raises(InitError, match="can't be read: No such file"):
        pretrained.identity(str(tmp_path / "missing.safetensors"))
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(ModelFileError, match="is not a model"):
        load(str(tmp_path / "text.safetensors"), 64)


def test_python_that_a_model_names_is_not_run(own, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    metadata, tensors = read_model(Path(own["cnn"]))
    path = tmp_path / "model.safetensors"
    header = {METADATA_KEY: json.dumps({**metadata, "recipe": str(recipe)})}
    safetensors.torch.save_file(tensors, path, header)
    with pytest.raises(InitError, match="only installed recipes are loaded"):
        load(str(path), 64)
    assert not (tmp_path / "ran").exists()


# Config


@pytest.mark.parametrize("init", ["", "nonsense", "timm:", "timm:a/b", "model.pth", "models:/cnn@champion"])
def test_init_of_no_known_kind_is_refused(init):
    with pytest.raises(ValidationError, match=r"none of imagenet, timm:NAME, torchvision:NAME, PATH\.safetensors"):
        make(transfer.Config, {"init": init})


def test_augmentation_with_frozen_features_is_refused_with_the_reason():
    with pytest.raises(
        ValidationError, match=r"crop=1, flip=0\.5 needs freeze=false: frozen features are computed once"
    ):
        make(transfer.Config, {"crop": 1, "flip": 0.5})
    assert make(transfer.Config, {"crop": 1, "freeze": False}).augment.crop == 1
    assert make(transfer.Config, {"crop": 0}).augment.crop == 0


# Training

TRAIN = """
import sys
from recipes import transfer
from recipes.config import make
config = make(transfer.Config, {"epochs": 1})
print("ready", flush=True)
sys.stdin.readline()
losses = [epoch.metrics["val_loss"] for epoch in transfer.train(config)]
# Only who computes features needs the network, and with it timm.
print("timm" in sys.modules, losses)
"""


@pytest.mark.slow
def test_features_are_computed_once_for_two_processes_at_a_time(tmp_path):
    environment = {**os.environ, "ORCH_HOME": str(tmp_path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = sorted(process.communicate(timeout=120)[0].split(maxsplit=1) for process in both)
    assert [computed for computed, _ in answers] == ["False", "True"]
    assert answers[0][1] == answers[1][1]
    files = sorted(re.sub("-[0-9a-f]{16}", "", path.name) for path in (tmp_path / "cache").iterdir())
    assert files == ["digits.lock", "digits.npz", "features.lock", "features.safetensors"]


def test_features_are_kept_apart_by_all_that_they_depend_on(own, tmp_path, monkeypatch):
    other = train_small("cnn", tmp_path / "other", width=4, seed=1)
    home = tmp_path / "home"
    monkeypatch.setenv("ORCH_HOME", str(home))
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(Path(own["cnn"]).read_bytes())
    base = {"init": own["cnn"], "features": "last"}
    cases = [
        ({}, 1),
        ({"lr": 0.1, "hidden": 8, "seed": 3}, 1),
        ({"init": str(moved)}, 1),
        ({"split_seed": 1}, 2),
        ({"features": "middle"}, 3),
        ({"init": str(other)}, 4),
        ({"input_size": 96}, 5),
    ]
    for values, num_files in cases:
        transfer.with_features(make(transfer.Config, {**base, **values}))
        assert len(list((home / "cache").glob("features-*.safetensors"))) == num_files


def test_cached_features_are_those_of_the_images_and_the_test_split_is_left_alone(own):
    config = make(transfer.Config, {"init": own["cnn"], "features": "last"})
    found, images = transfer.with_features(config), data.load(DatasetConfig())
    model = transfer.build_model(config, images.info)
    for split, source in ((found.train, images.train), (found.val, images.val)):
        prepare = Batches(source, images.info, memory_format=torch.contiguous_format)
        with torch.inference_mode():
            expected = model.backbone(prepare(torch.arange(len(source.labels)))[0])
        torch.testing.assert_close(split.images, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(split.labels, source.labels)
        assert [split.name(row) for row in range(9)] == [source.name(row) for row in range(9)]
    assert torch.equal(found.test.images, images.test.images)


@pytest.mark.parametrize("hidden", [0, 16])
def test_frozen_training_saves_the_head_and_restores_the_whole(own, tmp_path, hidden):
    values = {"init": own["cnn"], "features": "last", "hidden": hidden, "epochs": 2, "dropout": 0.2}
    config = make(transfer.Config, values)
    epochs = list(transfer.train(config, Attempt(folder=tmp_path)))
    metadata, tensors = read_model(tmp_path / "best.safetensors")
    assert {name.partition(".")[0] for name in tensors} == {"mean", "std", "layers"}
    model, info, _ = restore_model(recipes.load("transfer"), tmp_path / "best.safetensors")
    assert info == data.load(DatasetConfig()).info

    dataset = transfer.with_features(config)
    torch.testing.assert_close(tensors["mean"], dataset.train.images.mean(0))
    head = transfer.Head(config.model, dataset.train.images.shape[1], 10).eval()
    head.load_state_dict(tensors)
    prepare = Batches(data.load(DatasetConfig()).val, info, memory_format=torch.contiguous_format)
    with torch.inference_mode():
        in_training = head(dataset.val.images)
        logits = model(prepare(torch.arange(len(dataset.val.labels)))[0])
    torch.testing.assert_close(logits, in_training, rtol=1e-4, atol=1e-4)
    best = epochs[metadata["epoch"] - 1].metrics
    loss = nn.functional.cross_entropy(in_training, dataset.val.labels).item()
    assert loss == pytest.approx(best["val_loss"], rel=1e-5)


def test_head_sees_features_of_mean_0_and_spread_1():
    features = torch.randn(100, 3) * torch.tensor([5.0, 0.01, 0.0]) + torch.tensor([3.0, -2.0, 7.0])
    head = transfer.Head(transfer.ModelConfig(), 3, 2).standardise(features)
    seen: list[Tensor] = []
    head.layers.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    head(features)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[0].std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), rtol=0, atol=1e-4)


def test_fine_tuning_changes_all_weights_but_no_statistics(own, tmp_path):
    values = {"init": own["cnn"], "features": "last", "freeze": False, "epochs": 1, "crop": 1}
    list(transfer.train(make(transfer.Config, values), Attempt(folder=tmp_path)))
    _, before = read_model(Path(own["cnn"]))
    _, after = read_model(tmp_path / "best.safetensors")
    kept = {name.removeprefix("backbone.network."): tensor for name, tensor in after.items() if name.startswith("back")}
    assert kept
    for name, tensor in kept.items():
        is_statistic = name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
        assert torch.equal(tensor, before[name]) == is_statistic, name

    frozen = transfer.with_features(make(transfer.Config, {"init": own["cnn"], "features": "last"}))
    torch.testing.assert_close(after["head.mean"], frozen.train.images.mean(0))
    model, *_ = restore_model(recipes.load("transfer"), tmp_path / "best.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in model.state_dict().items())


def fine_tuned(own, **values):
    """A fine-tuning of our own CNN, and the names of the parameters that each epoch changed."""
    values = {"init": own["cnn"], "features": "last", "freeze": False, "weight_decay": 0.0, **values}
    config, changed, models = make(transfer.Config, values), [], []

    def build(config, info):
        models.append(transfer.build_model(config, info))
        return models[0]

    before = {}
    for _ in fit(config, build, recipe="transfer"):
        now = {name: parameter.detach().clone() for name, parameter in models[0].named_parameters()}
        before = before or dict(transfer.build_model(config, data.load(config.dataset).info).named_parameters())
        changed.append({name for name in now if not torch.equal(now[name], before[name])})
        before = now
    return changed


def test_blocks_join_the_head_one_after_another_the_last_first(own):
    first, second, third = fine_tuned(own, epochs=3, unfreeze_epochs=2)
    assert all(name.startswith("head.") for name in first)
    late = {name for name in second if name.startswith("backbone.")}
    every = {name for name in third if name.startswith("backbone.")}
    assert set() < late < every
    number = re.compile(r"backbone\.network\.(\d+)")
    assert min(int(number.match(name)[1]) for name in late) > min(int(number.match(name)[1]) for name in every)


def test_all_blocks_learn_at_once_without_unfreezing(own):
    (changed,) = fine_tuned(own, epochs=1)
    assert any(name.startswith("backbone.network.0") for name in changed)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_network_learns_more_slowly_than_its_head(own, optimizer):
    values = {"init": own["cnn"], "features": "last", "freeze": False, "backbone_lr": 0.25, "optimizer": optimizer}
    config = make(transfer.Config, values)
    model = transfer.build_model(config, data.load(config.dataset).info)
    built = optim.build(config.optim, model)
    optim.set_learning_rate(built, 0.5)
    rates = {id(p): group["lr"] for group in built.param_groups for p in group["params"]}
    found = {name.partition(".")[0]: set() for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        found[name.partition(".")[0]].add(rates[id(parameter)])
    assert found == {"backbone": {0.125}, "head": {0.5}}


@pytest.mark.slow
def test_defaults_learn_the_digits(tmp_path):
    config = transfer.Config()
    list(transfer.train(config, Attempt(folder=tmp_path)))
    model, info, _ = restore_model(recipes.load("transfer"), tmp_path / "best.safetensors")
    test = data.load(config.dataset).test
    prepare = Batches(test, info, memory_format=torch.contiguous_format)
    with torch.inference_mode():
        images, labels = prepare(torch.arange(len(test.labels)))
        assert np.mean((model(images).argmax(1) == labels).numpy()) >= 0.98

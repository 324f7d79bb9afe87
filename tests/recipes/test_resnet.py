from __future__ import annotations

import pytest
import torch

from recipes import resnet
from recipes.config import make
from recipes.data import ImageInfo


def info(height: int, width: int, channels: int = 1) -> ImageInfo:
    return ImageInfo(
        channels=channels,
        height=height,
        width=width,
        num_classes=3,
        class_names=("a", "b", "c"),
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )


def build(height: int, width: int, channels: int = 1, **values: object) -> resnet.ResNet:
    torch.manual_seed(0)
    model = resnet.build_model(make(resnet.Config, {"width": 4, **values}), info(height, width, channels))
    assert isinstance(model, resnet.ResNet)
    return model.eval()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 9), (1, 8, 8), (3, 28, 20), (3, 65, 40), (3, 224, 224)])
def test_model_gives_logits_for_any_size(shape):
    channels, height, width = shape
    assert build(height, width, channels)(torch.randn(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize(("side", "stem_side"), [(8, 8), (64, 64), (65, 17), (224, 56)])
def test_stem_shrinks_large_images_only(side, stem_side):
    assert build(side, side).stem(torch.randn(1, 1, side, side)).shape == (1, 4, stem_side, stem_side)


@pytest.mark.parametrize(("side", "channels", "last_side"), [(3, 4, 3), (8, 16, 2), (28, 32, 4), (224, 32, 7)])
def test_stages_halve_and_widen_down_to_two_pixels(side, channels, last_side):
    model = build(side, side)
    assert model.stages(model.stem(torch.randn(1, 1, side, side))).shape == (1, channels, last_side, last_side)


def test_depth_adds_blocks_to_each_stage():
    assert [len(stage) for stage in build(8, 8, depth=3).stages] == [3, 3, 3]


@pytest.mark.parametrize("stride", [1, 2])
def test_block_starts_as_its_shortcut(stride):
    block = resnet.Block(4, 4, stride).eval()
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), block.shortcut(x).relu())


def test_dropout_acts_in_training_only():
    model, x = build(8, 8, dropout=0.5), torch.randn(4, 1, 8, 8)
    assert torch.equal(model(x), model(x))
    model.dropout.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.slow
def test_digits_are_learnt_in_a_few_epochs():
    epochs = list(resnet.train(make(resnet.Config, {"epochs": 6})))
    assert epochs[-1].metrics["val_accuracy"] >= 0.95

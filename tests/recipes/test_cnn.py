from __future__ import annotations

import pytest
import torch
from torch import nn

from recipes import cnn
from recipes.config import make
from recipes.data import ImageInfo


def info(channels: int, height: int, width: int) -> ImageInfo:
    return ImageInfo(
        channels=channels,
        height=height,
        width=width,
        num_classes=7,
        class_names=tuple("abcdefg"),
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )


def layers(kind: type[nn.Module], size: int = 8, **values: object) -> list[nn.Module]:
    model = cnn.build_model(make(cnn.Config, values), info(1, size, size))
    return [layer for layer in model.modules() if isinstance(layer, kind)]


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 3, 3), (1, 4, 90), (1, 8, 8), (3, 28, 20), (3, 32, 48), (3, 224, 224)]
)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_images_of_any_size_give_a_logit_a_class(shape, batch_norm):
    model = cnn.build_model(make(cnn.Config, {"width": 2, "batch_norm": batch_norm}), info(*shape))
    assert model(torch.randn(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(("size", "halvings"), [(3, 0), (4, 1), (7, 1), (8, 2), (28, 3), (32, 4), (64, 5), (500, 5)])
def test_stages_follow_the_size_of_the_image(size, halvings):
    assert len(layers(nn.MaxPool2d, size)) == halvings
    assert len(layers(nn.Conv2d, size, depth=3)) == 3 * max(halvings, 1)


def test_fields_shape_the_network():
    assert [layer.out_channels for layer in layers(nn.Conv2d, width=5, depth=2)] == [5, 5, 10, 10]
    assert [layer.num_features for layer in layers(nn.BatchNorm2d, width=5, depth=1)] == [5, 10]
    assert layers(nn.BatchNorm2d, batch_norm=False) == []
    assert all(layer.bias is not None for layer in layers(nn.Conv2d, batch_norm=False))
    assert [layer.p for layer in layers(nn.Dropout, dropout=0.4)] == [0.4]


def widths(size: int = 224, **values: object) -> list[int]:
    return [layer.out_channels for layer in layers(nn.Conv2d, size, depth=1, **values)]


def test_widths_of_vgg_are_two_fields():
    assert widths(width=64, max_width=512) == [64, 128, 256, 512, 512]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [10, 20, 40, 80, 160]),
        ({"growth": 1.0}, [10] * 5),
        ({"growth": 1.25}, [10, 12, 16, 20, 24]),
        ({"max_width": 30}, [10, 20, 30, 30, 30]),
        ({"stages": 2}, [10, 20]),
        ({"stages": 8}, [10, 20, 40, 80, 160, 320]),
    ],
)
def test_stages_grow_as_told(values, expected):
    assert widths(width=10, **values) == expected


def test_more_stages_than_an_image_can_be_halved_are_left_out():
    assert len(layers(nn.MaxPool2d, 8, stages=8)) == 2


@pytest.mark.slow
def test_defaults_learn_the_digits():
    epochs = list(cnn.train(cnn.Config()))
    assert len(epochs) == 15
    assert max(epoch.metrics["val_accuracy"] for epoch in epochs) >= 0.985

from __future__ import annotations

import pytest
import torch
from torch import nn

from recipes import mlp
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


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 32, 48), (3, 224, 224)])
def test_images_of_any_size_give_a_logit_a_class(shape):
    model = mlp.build_model(make(mlp.Config, {"width": 8}), info(*shape))
    assert model(torch.randn(2, *shape)).shape == (2, 7)


def test_fields_shape_the_network():
    def layers(kind: type[nn.Module], **values: object) -> list[nn.Module]:
        model = mlp.build_model(make(mlp.Config, values), info(1, 8, 8))
        return [layer for layer in model.modules() if isinstance(layer, kind)]

    assert [layer.out_features for layer in layers(nn.Linear, width=5, depth=3)] == [5, 5, 5, 7]
    assert len(layers(nn.BatchNorm1d, depth=3)) == 3
    assert layers(nn.BatchNorm1d, batch_norm=False) == []
    assert [layer.bias is None for layer in layers(nn.Linear, batch_norm=False)] == [False] * 3
    assert {layer.p for layer in layers(nn.Dropout, dropout=0.4)} == {0.4}
    assert len(layers(nn.ReLU, depth=3)) == 3
    for name, kind in (("gelu", nn.GELU), ("silu", nn.SiLU), ("tanh", nn.Tanh)):
        assert len(layers(kind, depth=3, activation=name)) == 3
        assert layers(nn.ReLU, activation=name) == []


@pytest.mark.slow
def test_defaults_learn_the_digits():
    accuracies = [epoch.metrics["val_accuracy"] for epoch in mlp.train(mlp.Config())]
    assert len(accuracies) == 20
    assert max(accuracies) >= 0.97

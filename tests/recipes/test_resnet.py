from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision
from pydantic import ValidationError

from recipes import resnet
from recipes.config import make
from recipes.data import ImageInfo
from recipes.modules import StochasticDepth


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


def build(image_height: int, image_width: int, channels: int = 1, **values: object) -> resnet.ResNet:
    torch.manual_seed(0)
    model = resnet.build_model(make(resnet.Config, {"width": 4, **values}), info(image_height, image_width, channels))
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


@pytest.mark.parametrize(("layers", "num_parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_layers_are_the_original_network(layers, num_parameters):
    torch.manual_seed(0)
    large = replace(info(224, 224, 3), num_classes=1000, class_names=tuple(map(str, range(1000))))
    model = resnet.build_model(make(resnet.Config, {"layers": layers}), large).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    original = getattr(torchvision.models, f"resnet{layers}")(weights=None).eval()
    model.load_state_dict(dict(zip(model.state_dict(), original.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), original(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [18, 50])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 65, 40)])
def test_layers_take_any_size_and_width(layers, shape):
    channels, height, width = shape
    model = build(height, width, channels, layers=layers)
    assert model(torch.randn(2, *shape)).shape == (2, 3)
    assert model.head.in_features == 4 * 8 * (4 if layers == 50 else 1)


def test_width_follows_the_layers():
    def width(**values: object) -> int:
        model = build(8, 8, **{"width": 0, **values})
        return model.stem(torch.randn(1, 1, 8, 8)).shape[1]

    assert (width(), width(layers=18), width(layers=18, width=8)) == (32, 64, 8)


def test_depth_of_a_network_that_has_its_own_is_refused():
    with pytest.raises(
        ValidationError, match="layers=18 has a depth of its own, not depth=2; give depth=0, or layers=0"
    ):
        make(resnet.Config, {"layers": 18, "depth": 2})


@pytest.mark.parametrize("kind", [resnet.Block, resnet.Bottleneck])
@pytest.mark.parametrize("stride", [1, 2])
def test_block_starts_as_its_shortcut(kind, stride):
    block = kind(4, 4, stride).eval()
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), block.shortcut(x).relu())


def test_dropout_acts_in_training_only():
    model, x = build(8, 8, dropout=0.5), torch.randn(4, 1, 8, 8)
    assert torch.equal(model(x), model(x))
    model.dropout.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(("layers", "num_blocks"), [(0, 6), (18, 8), (50, 16)])
def test_blocks_are_left_out_more_often_the_deeper_they_are(layers, num_blocks):
    values = {"layers": layers} if layers else {"depth": 2}
    drops = [
        module.probability
        for module in build(8, 8, stochastic_depth=0.4, **values).modules()
        if isinstance(module, StochasticDepth)
    ]
    assert drops == pytest.approx([0.4 * number / num_blocks for number in range(1, num_blocks + 1)])


@pytest.mark.parametrize("kind", [resnet.Block, resnet.Bottleneck])
def test_image_whose_block_is_left_out_takes_the_shortcut_alone(kind):
    torch.manual_seed(0)
    block = kind(4 * kind.expansion, 4, 1, drop=0.5).train()
    torch.nn.init.ones_(block.norm3.weight if kind is resnet.Bottleneck else block.norm2.weight)
    x = torch.rand(64, 4 * kind.expansion, 6, 6)
    passed = (block(x) == x).flatten(1).all(1)
    assert 16 < passed.sum() < 48
    assert not (block.eval()(x) == x).flatten(1).all(1).any()


@pytest.mark.slow
def test_digits_are_learnt_in_a_few_epochs():
    epochs = list(resnet.train(make(resnet.Config, {"epochs": 6})))
    assert epochs[-1].metrics["val_accuracy"] >= 0.95

from __future__ import annotations

import pytest
import torch
from torch import nn

import recipes
from recipes.config import make
from recipes.data import ImageInfo
from recipes.modules import StochasticDepth, initialise, rising

INFO = ImageInfo(
    channels=1, height=8, width=8, num_classes=10, class_names=tuple("abcdefghij"), mean=(0.5,), std=(0.5,)
)


@pytest.mark.parametrize("shape", [(20_000, 3), (20_000, 2, 3, 1)])
def test_stochastic_depth_leaves_out_whole_images_and_keeps_the_mean(shape):
    torch.manual_seed(0)
    images = StochasticDepth(0.3).train()(torch.ones(shape)).flatten(1)
    assert torch.equal(images, images[:, :1].expand_as(images)), "a draw for an image"
    assert images.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (images == 0).float().mean().item() == pytest.approx(0.3, abs=0.015)


@pytest.mark.parametrize(("probability", "training"), [(0.3, False), (0.0, True)])
def test_stochastic_depth_that_is_off_draws_nothing(probability, training):
    x, state = torch.randn(4, 3), torch.get_rng_state()
    assert StochasticDepth(probability).train(training)(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_probabilities_rise_evenly_to_the_last_block():
    assert rising(0.5, 4) == [0.125, 0.25, 0.375, 0.5]
    assert rising(0.0, 2) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("init", "spread"), [("kaiming", (2 / 300) ** 0.5), ("xavier", (2 / (300 + 500)) ** 0.5), ("normal", 0.02)]
)
def test_weights_start_with_the_spread_of_their_rule(init, spread):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 500), nn.BatchNorm1d(500))
    nn.init.constant_(model[1].weight, 0.25)
    initialise(model, init)
    assert model[0].weight.std().item() == pytest.approx(spread, rel=0.02)
    assert model[0].weight.mean().item() == pytest.approx(0, abs=spread / 50)
    assert not model[0].bias.any()
    assert torch.equal(model[1].weight, torch.full((500,), 0.25)), "norms stay as they are"


def test_convolutions_are_drawn_too():
    torch.manual_seed(0)
    model = nn.Conv2d(50, 80, 3)
    initialise(model, "kaiming")
    assert model.weight.std().item() == pytest.approx((2 / (50 * 9)) ** 0.5, rel=0.02)


def test_default_leaves_weights_and_draws_alone():
    model = nn.Linear(3, 3)
    before, state = model.weight.clone(), torch.get_rng_state()
    initialise(model, "default")
    assert torch.equal(model.weight, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [name for name in recipes.BUILT_IN if name != "transfer"])
def test_every_recipe_starts_from_the_weights_it_is_told(name):
    module = recipes.load(name).module

    def biases(init: str) -> list[torch.Tensor]:
        model = module.build_model(make(module.Config, {"init": init}), INFO)
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        return [layer.bias for layer in layers if layer.bias is not None]

    assert biases("normal")
    assert not any(bias.any() for bias in biases("normal"))
    assert all(bias.any() for bias in biases("default"))

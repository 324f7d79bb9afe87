from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import recipes
from recipes import cnn, loop, vit
from recipes.config import make
from recipes.data import ImageInfo
from recipes.flops import size
from recipes.loop import Attempt

INFO = ImageInfo(
    channels=3, height=16, width=16, num_classes=4, class_names=tuple("abcd"), mean=(0.5,) * 3, std=(0.5,) * 3
)
IMAGE = torch.zeros(1, 3, 16, 16)


def test_layers_count_as_their_formulas_say():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 256, 4))
    assert size(model, IMAGE) == {
        "num_parameters": 5 * 27 + 5 + 4 * 1280 + 4,
        "flops": 2 * 256 * 27 * 5 + 2 * 1280 * 4,
    }


def test_attention_counts():
    attention = vit.Attention(dim=32, heads=4)
    linear, products = 2 * 10 * 32 * (96 + 32), 2 * (2 * 10 * 10 * 32)
    assert size(attention, torch.zeros(1, 10, 32))["flops"] == linear + products


@pytest.mark.parametrize("name", [name for name in recipes.BUILT_IN if name != "transfer"])
def test_counts_are_those_of_pytorchs_own_counter(name):
    recipe = recipes.load(name)
    model = recipe.module.build_model(recipe.config_type(), INFO)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(IMAGE)
    assert size(model, IMAGE)["flops"] == counter.get_total_flops() > 0


class Odd(nn.Module):
    """Keeps something at each pass, and has a way that not every image can go."""

    def __init__(self, *, raises: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.register_buffer("passes", torch.zeros(()))
        self.numbers: list[int] = []
        self.raises = raises

    def forward(self, x: Tensor) -> Tensor:
        if self.raises and not self.training:
            raise RuntimeError("no way")
        self.passes += 1
        self.numbers.append(x.shape[0])
        return self.layers(x)


def test_model_stays_as_it_is():
    model = Odd(raises=False).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    assert size(model, torch.ones(1, 4)) == {"num_parameters": 28, "flops": 32}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert model.layers.training
    assert model.numbers == []
    assert torch.equal(torch.get_rng_state(), state)


def test_model_that_cannot_be_counted_has_its_parameters_alone(caplog):
    assert size(Odd(raises=True), torch.ones(1, 4)) == {"num_parameters": 28}
    assert "not counted: RuntimeError: no way" in caplog.text


def test_first_epoch_tells_the_size_and_no_later_one_also_after_a_resume(tmp_path):
    def told(epochs: list[loop.Epoch]) -> list[dict[str, Any]]:
        return [{name: epoch.metrics.get(name) for name in ("num_parameters", "flops")} for epoch in epochs]

    config = make(cnn.Config, {"epochs": 3, "width": 4, "batch_size": 512})
    training = cnn.train(config, Attempt(folder=tmp_path / "1"))
    begun = [next(training), next(training)]
    training.close()
    resumed = list(cnn.train(config, Attempt(folder=tmp_path / "2", resume_from=tmp_path / "1")))
    nothing = {"num_parameters": None, "flops": None}
    # Two stages of two convolutions and their norms, then ten classes, on 8x8 pixels.
    weights = [9 * 4, 9 * 4 * 4, 9 * 4 * 8, 9 * 8 * 8]
    flops = 2 * (64 * weights[0] + 16 * weights[1] + 16 * weights[2] + 4 * weights[3] + 8 * 10)
    assert told(begun) == [{"num_parameters": sum(weights) + 2 * 24 + 90, "flops": flops}, nothing]
    assert told(resumed) == [nothing]

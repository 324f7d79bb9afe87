from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import recipes
from recipes.config import make
from recipes.loop import Attempt
from recipes.model_file import read_model
from recipes.recompute import recompute
from recipes.speed import results

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # together they take a quarter of what the quick tests may

SMALL = {"limit": 200, "epochs": 2, "batch_size": 32, "ema": 0.9}
NETWORKS = {
    "mlp": {"depth": 3, "dropout": 0.3},
    "cnn": {"width": 8, "depth": 2, "dropout": 0.3},
    "resnet": {"width": 8, "depth": 2, "stochastic_depth": 0.3},
    "vit": {"dim": 16, "depth": 3, "heads": 2, "dropout": 0.3},
    "transfer": {"freeze": False, "dropout": 0.3, "limit": 60, "epochs": 1, "batch_size": 24},
}


def trained(name: str, folder: Path, **changed: object) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    recipe = recipes.load(name)
    config = make(recipe.config_type, {**SMALL, **NETWORKS[name], **changed})
    metrics = [results(epoch.metrics) for epoch in recipe.module.train(config, Attempt(folder=folder))]
    return metrics, read_model(folder / "best.safetensors")[1]


@pytest.mark.parametrize("name", [*("mlp", "cnn", "resnet", "vit"), pytest.param("transfer", marks=pytest.mark.slow)])
def test_training_has_the_same_bits_with_and_without(tmp_path, name):
    metrics, weights = trained(name, tmp_path / "plain")
    again, same = trained(name, tmp_path / "again", activation_checkpointing=True)
    assert again == metrics
    assert list(same) == list(weights)
    assert all(torch.equal(same[key], weights[key]) for key in weights)


class Counting(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Counting()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(x)


class Listed(nn.Module):
    """Goes through a list of blocks itself."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(Block(), Block()),
        nn.Sequential(nn.Sequential(Block(), Block()), nn.Sequential(Block())),
        nn.Sequential(*(layer for _ in range(4) for layer in (Counting(), nn.ReLU(inplace=True)))),
        Listed(),
    ],
    ids=["blocks", "stages", "layers", "list"],
)
def test_blocks_are_computed_twice_where_gradients_are_asked_for(model):
    layers = [module for module in model.modules() if isinstance(module, Counting)]
    names = list(model.state_dict())
    recompute(model)
    model(torch.randn(3, 4)).sum().backward()
    assert [layer.calls for layer in layers] == [2] * len(layers)
    with torch.no_grad():
        model(torch.randn(3, 4))
    assert [layer.calls for layer in layers] == [3] * len(layers)
    assert list(model.state_dict()) == names


def test_forward_pass_of_a_deep_network_keeps_a_fraction():
    def kept_bytes(wrapped: bool) -> int:
        model = nn.Sequential(*(layer for _ in range(16) for layer in (nn.Linear(64, 64), nn.Tanh())))
        if wrapped:
            recompute(model)
        seen: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        images = torch.randn(1000, 64)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = model(images)
        assert output.requires_grad
        return sum(seen.values())

    assert kept_bytes(wrapped=True) < kept_bytes(wrapped=False) / 3


def test_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="finds no blocks"):
        recompute(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)))


@pytest.mark.slow
def test_compiled_training_has_the_losses_of_the_plain_one(tmp_path):
    changed = {"dropout": 0.0, "epochs": 2}
    metrics, weights = trained("vit", tmp_path / "plain", **changed)
    compiled, same = trained("vit", tmp_path / "compiled", compile=True, **changed)
    losses = [[epoch[key] for key in ("train_loss", "val_loss")] for epoch in metrics]
    assert [[epoch[key] for key in ("train_loss", "val_loss")] for epoch in compiled] == [
        pytest.approx(pair, rel=1e-3) for pair in losses
    ]
    assert {key: tensor.shape for key, tensor in same.items()} == {key: tensor.shape for key, tensor in weights.items()}


def test_both_at_once_are_refused():
    with pytest.raises(ValueError, match="compile=true decides itself what to compute again"):
        make(recipes.load("mlp").config_type, {"compile": True, "activation_checkpointing": True})

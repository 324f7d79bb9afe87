from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from recipes import vit
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


def build(height: int, width: int, channels: int = 1, **values: object) -> vit.ViT:
    torch.manual_seed(0)
    small = {"dim": 16, "depth": 2, "heads": 2}
    model = vit.build_model(make(vit.Config, {**small, **values}), info(height, width, channels))
    assert isinstance(model, vit.ViT)
    return model.eval()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 9), (1, 8, 8), (3, 28, 20), (3, 65, 40), (3, 224, 224)])
def test_model_gives_logits_for_any_size(shape):
    channels, height, width = shape
    assert build(height, width, channels)(torch.randn(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize(
    ("side", "patch"), [(1, 1), (2, 1), (8, 2), (28, 4), (32, 4), (64, 8), (96, 8), (224, 16), (384, 16), (4096, 32)]
)
def test_patch_follows_the_side(side, patch):
    assert vit.patch_side(side) == patch


@pytest.mark.parametrize(("patch", "num_tokens"), [(0, 4 * 3), (1, 8 * 5), (2, 4 * 3), (4, 2 * 2), (8, 1), (16, 1)])
def test_patch_field_sets_the_number_of_tokens(patch, num_tokens):
    model = build(8, 5, patch=patch)
    assert model.positions.shape[1] == num_tokens
    assert model(torch.randn(2, 1, 8, 5)).shape == (2, 3)


def test_pixels_at_the_padded_edge_count():
    model, x = build(9, 9, patch=4), torch.zeros(1, 1, 9, 9)
    marked = x.clone()
    marked[..., -1, -1] = 1
    assert not torch.equal(model(x), model(marked))


def test_places_of_patches_count():
    model = build(8, 8, patch=4)
    image = torch.zeros(1, 1, 8, 8)
    # Black around it, so that the convolutions mix nothing of a patch into the next.
    image[..., 1:3, 1:3] = torch.rand(2, 2)
    moved = image.roll((4, 4), (2, 3))
    assert not torch.allclose(model(image), model(moved), atol=1e-3)


def test_dropout_acts_in_training_only():
    model, x = build(8, 8, dropout=0.5), torch.randn(4, 1, 8, 8)
    assert torch.equal(model(x), model(x))
    model.blocks.train()
    assert not torch.equal(model(x), model(x))


def test_heads_that_do_not_divide_dim_are_refused():
    with pytest.raises(ValidationError, match="heads=3 must divide dim=64"):
        make(vit.Config, {"heads": 3})


@pytest.mark.slow
def test_digits_are_learnt_in_a_few_epochs():
    epochs = list(vit.train(make(vit.Config, {"epochs": 12})))
    assert epochs[-1].metrics["val_accuracy"] >= 0.9

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


def test_class_token_is_all_that_the_classifier_sees():
    model, x = build(8, 8, pool="token"), torch.randn(2, 1, 8, 8)
    assert model(x).shape == (2, 3)
    seen: list[torch.Tensor] = []
    model.norm.register_forward_hook(lambda _module, _inputs, tokens: seen.append(tokens))
    logits = model(x)
    assert seen[0].shape == (2, 1 + 16, 16)
    assert torch.equal(logits, model.head(seen[0][:, 0]))


def test_class_token_sees_every_patch_and_is_learnt():
    model, x = build(8, 8, pool="token"), torch.randn(1, 1, 8, 8, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None
    assert x.grad.count_nonzero() == 64
    assert model.token is not None
    assert model.token.grad is not None
    assert model.token.grad.any()
    assert build(8, 8).token is None


def test_blocks_are_left_out_more_often_the_deeper_they_are():
    model, x = build(8, 8, depth=4, stochastic_depth=0.4), torch.randn(4, 1, 8, 8)
    assert [block.drop.probability for block in model.blocks] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert torch.equal(model(x), model(x))
    model.blocks.train()
    assert not torch.equal(model(x), model(x))


def test_image_whose_branches_are_left_out_passes_a_block_unchanged():
    torch.manual_seed(0)
    block = vit.Block(vit.ModelConfig(dim=16, heads=2), drop=0.5).train()
    x = torch.randn(64, 3, 16)
    passed = (block(x) == x).flatten(1).all(1)
    assert 4 < passed.sum() < 28, "attention and MLP are drawn one by one: a quarter has neither"


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

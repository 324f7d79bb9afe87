from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from recipes import losses
from recipes.config import OptimConfig

LABELS = torch.tensor([0] * 6 + [1] * 3 + [3])
WEIGHTS = torch.tensor([10 / 18, 10 / 9, 0.0, 10 / 3])


@pytest.fixture
def logits():
    return torch.randn(10, 4, generator=torch.Generator().manual_seed(0))


def mixed():
    """Targets of which most are shared by two classes."""
    shares = torch.linspace(0, 1, 10)[:, None]
    one = torch.nn.functional.one_hot(LABELS, 4)
    return shares * one + (1 - shares) * one.flip(0)


def test_rare_classes_weigh_in_inverse_proportion_and_missing_ones_nothing():
    weights = losses.class_weights(LABELS, 4)
    torch.testing.assert_close(weights, WEIGHTS)
    assert weights[LABELS].mean() == pytest.approx(1)


@pytest.mark.parametrize("balance", ["none", "loss"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("targets", [LABELS, mixed()], ids=["labels", "mixed"])
@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_focal_without_a_focus_is_cross_entropy_of_torch(logits, loss, targets, smoothing, balance):
    config = OptimConfig(loss=loss, focal_gamma=0.0, label_smoothing=smoothing, balance=balance)
    weights = WEIGHTS if balance == "loss" else None
    expected = cross_entropy(logits, targets, weights, label_smoothing=smoothing)
    torch.testing.assert_close(losses.Loss(config, LABELS, 4)(logits, targets), expected)


def test_focal_leaves_sure_answers_aside():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    sure, unsure = logits.softmax(1)[:, 0].tolist()
    expected = -sum((1 - p) ** 2 * torch.tensor(p).log() for p in (sure, unsure)) / 2
    config = OptimConfig(loss="focal", focal_gamma=2.0)
    torch.testing.assert_close(losses.Loss(config, torch.tensor([0, 1]), 2)(logits, torch.tensor([0, 0])), expected)

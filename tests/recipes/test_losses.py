from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from recipes import losses
from recipes.config import OptimConfig
from tests.support.infos import info

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
    torch.testing.assert_close(losses.Loss(config, LABELS, info(4))(logits, targets), expected)


def test_focal_leaves_sure_answers_aside():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    sure, unsure = logits.softmax(1)[:, 0].tolist()
    expected = -sum((1 - p) ** 2 * torch.tensor(p).log() for p in (sure, unsure)) / 2
    config = OptimConfig(loss="focal", focal_gamma=2.0)
    torch.testing.assert_close(
        losses.Loss(config, torch.tensor([0, 1]), info(2))(logits, torch.tensor([0, 0])), expected
    )


@pytest.mark.parametrize(("smoothing", "shares"), [(0.0, (0.0, 1.0)), (0.2, (0.1, 0.9))])
def test_bce_is_of_each_label_by_itself(smoothing, shares):
    logits, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    no, yes = shares
    p, q = logits.sigmoid()[0].tolist()
    expected = -(yes * math.log(p) + no * math.log(1 - p) + no * math.log(q) + yes * math.log(1 - q)) / 2
    config = OptimConfig(label_smoothing=smoothing)
    found = losses.Loss(config, labels, info("ab", task="multilabel"))(logits, labels)
    assert found.item() == pytest.approx(expected)


def test_rare_labels_weigh_as_much_as_their_lack():
    labels = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(losses.label_weights(labels), torch.tensor([1 / 3, 3.0, 1.0]))
    loss = losses.Loss(OptimConfig(balance="loss"), labels, info("abc", task="multilabel"))
    outputs = torch.zeros(4, 3)
    expected = math.log(2) * (3 * (1 / 3) + 1 + 1 * 3 + 3 + 4) / 12
    assert loss(outputs, labels).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"), [("auto", (0.25 + 9) / 2), ("mse", (0.25 + 9) / 2), ("l1", 3.5 / 2), ("smooth_l1", 2.625 / 2)]
)
def test_losses_of_numbers(name, expected):
    loss = losses.Loss(OptimConfig(loss=name), torch.zeros(1, 2), info("ab", task="regression"))
    assert loss(torch.tensor([[0.5, -3.0]]), torch.zeros(1, 2)).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("classification", {"loss": "mse"}, "loss=mse is not for task=classification; its losses are cross_entropy"),
        ("multilabel", {"loss": "focal"}, "loss=focal is not for task=multilabel; its losses are bce"),
        ("regression", {"loss": "bce"}, "its losses are mse, l1, smooth_l1"),
        ("multilabel", {"balance": "sampler"}, "task=multilabel has balance=loss"),
        ("regression", {"balance": "loss"}, "balance=loss is for classes and labels"),
    ],
)
def test_loss_of_another_task_is_refused(task, fields, message):
    with pytest.raises(ValueError, match=message):
        losses.Loss(OptimConfig(**fields), torch.zeros(4, 2), info("ab", task=task))

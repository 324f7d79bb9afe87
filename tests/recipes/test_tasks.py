"""What an epoch says of the validation images, against scikit-learn's own figures."""

from __future__ import annotations

import itertools

import pytest
import torch
from sklearn.metrics import f1_score, log_loss, mean_absolute_error, mean_squared_error, r2_score

from recipes import tasks
from tests.support.infos import info

BATCHES = (0, 7, 40, 60)


def judged(about, outputs, targets):
    """The metrics of all images, added up batch by batch."""
    judge = tasks.judge(about, targets)
    sums = [judge.sums(outputs[a:b], targets[a:b]) for a, b in itertools.pairwise(BATCHES)]
    return judge.metrics(torch.stack(sums).sum(0).tolist(), len(targets))


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def test_classes_are_right_or_wrong():
    logits, labels = draw(60, 5), torch.arange(60) % 5
    found = judged(info(5), logits, labels)
    assert found == pytest.approx(
        {
            "val_loss": log_loss(labels, logits.double().softmax(1)),
            "val_accuracy": (logits.argmax(1) == labels).float().mean().item(),
        }
    )


def test_labels_are_judged_over_all_batches():
    logits, labels = draw(60, 4), (torch.arange(240).view(60, 4) % 3 == 0).float()
    labels[:, 3] = 0
    logits[:, 3] = -1
    found = judged(info(4, task="multilabel"), logits, labels)
    assert found["val_f1"] == pytest.approx(f1_score(labels, logits > 0, average="macro", zero_division=0))
    assert found["val_accuracy"] == pytest.approx(((logits > 0) == (labels > 0)).float().mean().item())
    assert found["val_loss"] == pytest.approx(log_loss(labels.flatten(), logits.sigmoid().flatten()))


def test_numbers_are_judged_in_their_own_units():
    outputs, targets = draw(60, 2), draw(60, 2, 1)[:, :, 0] + 1
    about = info("ab", task="regression", target_mean=(0.0, 100.0), target_std=(1.0, 50.0))
    found, scale = judged(about, outputs, targets), torch.tensor([1.0, 50.0])
    assert found == pytest.approx(
        {
            "val_loss": mean_squared_error(targets, outputs),
            "val_r2": r2_score(targets, outputs),
            "val_mae": mean_absolute_error(targets * scale, outputs * scale),
            "val_rmse": mean_squared_error(targets * scale, outputs * scale) ** 0.5,
        },
        rel=1e-5,
    )


def test_equal_numbers_have_an_r2_of_nothing():
    about = info("a", task="regression", target_mean=(0.0,), target_std=(1.0,))
    assert judged(about, draw(60, 1), torch.ones(60, 1))["val_r2"] == 0


def test_answers_are_probabilities_or_numbers():
    outputs = draw(3, 4)
    torch.testing.assert_close(tasks.answers(outputs, info(4)).sum(1), torch.ones(3))
    torch.testing.assert_close(tasks.answers(outputs, info(4, task="multilabel")), 1 / (1 + (-outputs).exp()))
    assert tasks.answers(outputs, info(4, task="regression")) is outputs

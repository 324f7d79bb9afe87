from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    precision_recall_fscore_support,
    r2_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from recipes import metrics
from tests.support.infos import info

NAMES = tuple("abcdefg")


@pytest.fixture
def answers():
    """Logits (200, 7) that are right more often than not, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (200,), generator=generator)
    noise = torch.randn(200, 7, generator=generator)
    return noise + 1.5 * torch.nn.functional.one_hot(labels, 7), labels


def test_summary_is_what_sklearn_says(answers):
    logits, labels = answers
    found, predicted, probabilities = metrics.summary(*answers, info(NAMES)), logits.argmax(1), logits.softmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="macro")
    assert found == pytest.approx(
        {
            "loss": -probabilities.log()[range(200), labels].mean().item(),
            "accuracy": (predicted == labels).float().mean().item(),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "top5_accuracy": top_k_accuracy_score(labels, logits, k=5),
            "auroc": roc_auc_score(labels, probabilities, multi_class="ovr"),
            "calibration_error": expected_calibration_error(probabilities.numpy(), labels.numpy()),
        },
        abs=1e-5,
    )


def expected_calibration_error(probabilities, labels, bins=15):
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    edges = np.minimum((confidence * bins).astype(int), bins - 1)
    shares = [(edges == b).mean() * abs(right[edges == b].mean() - confidence[edges == b].mean()) for b in set(edges)]
    return sum(shares)


def test_few_classes_have_no_top5_and_a_class_without_images_no_auroc():
    logits, labels = torch.eye(3).repeat(4, 1), torch.tensor([0, 1, 0] * 4)
    found = metrics.summary(logits, labels, info("abc"))
    assert "top5_accuracy" not in found
    assert "auroc" not in found
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_classes_are_told_one_by_one(answers):
    logits, labels = answers
    rows = metrics.by_class(logits, labels, info(NAMES))
    precision, recall, f1, images = precision_recall_fscore_support(labels, logits.argmax(1))
    assert [row["class"] for row in rows] == list(NAMES)
    for column, expected in (("precision", precision), ("recall", recall), ("f1", f1), ("images", images)):
        assert [row[column] for row in rows] == pytest.approx(expected.tolist(), abs=1e-6)


def test_confusion_has_a_row_a_class_and_its_largest_mistakes_come_first(answers):
    logits, labels = answers
    matrix = metrics.confusion(logits, labels)
    assert matrix == confusion_matrix(labels, logits.argmax(1)).tolist()
    mistakes = metrics.most_confused(matrix, NAMES, 3)
    counts = sorted((n for r, row in enumerate(matrix) for c, n in enumerate(row) if r != c), reverse=True)
    assert [number for _, _, number in mistakes] == counts[:3]
    name, taken_for, number = mistakes[0]
    assert matrix[NAMES.index(name)][NAMES.index(taken_for)] == number


def test_no_mistakes_are_none():
    assert metrics.most_confused([[3, 0], [0, 2]], ("a", "b"), 5) == []


@pytest.fixture
def labelled():
    """Logits (200, 3) that are right more often than not, and labels (200, 3) of which the last is rare."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, 3, generator=generator) < torch.tensor([0.5, 0.3, 0.05])).float()
    return 3 * labels - 1.5 + torch.randn(200, 3, generator=generator), labels


def test_labels_are_judged_as_sklearn_judges_them(labelled):
    logits, labels = labelled
    about = info("abc", task="multilabel")
    found, given, p = metrics.summary(logits, labels, about), logits > 0, logits.sigmoid()
    precision, recall, f1, images = precision_recall_fscore_support(labels, given, average=None)
    expected = {
        "loss": log_loss(labels.flatten(), p.flatten()),
        "accuracy": (given == labels).float().mean().item(),
        "exact_match": accuracy_score(labels, given),
        "precision": precision.mean(),
        "recall": recall.mean(),
        "f1": f1.mean(),
        "auroc": roc_auc_score(labels, p),
        "average_precision": average_precision_score(labels, p),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert 0 < found["calibration_error"] < 0.5
    rows = metrics.by_class(logits, labels, about)
    assert [row["f1"] for row in rows] == pytest.approx(list(f1))
    assert [row["images"] for row in rows] == images.tolist()
    assert "auroc" not in metrics.summary(logits, torch.ones_like(labels), about)


def test_numbers_are_judged_in_their_own_units():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(50, 2, generator=generator)
    outputs = targets + 0.3 * torch.randn(50, 2, generator=generator)
    about = info("ab", task="regression", target_mean=(5.0, -1.0), target_std=(10.0, 0.1))
    found, scale = metrics.summary(outputs, targets, about), torch.tensor([10.0, 0.1])
    given, true = outputs * scale, targets * scale
    assert found == pytest.approx(
        {
            "loss": mean_squared_error(targets, outputs),
            "mae": mean_absolute_error(true, given),
            "rmse": mean_squared_error(true, given) ** 0.5,
            "r2": r2_score(true, given),
        },
        rel=1e-4,
    )
    first, second = metrics.by_class(outputs, targets, about)
    assert first["mae"] == pytest.approx(mean_absolute_error(true[:, 0], given[:, 0]), rel=1e-4)
    assert second["r2"] == pytest.approx(r2_score(true[:, 1], given[:, 1]), rel=1e-4)

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score, top_k_accuracy_score

from recipes import metrics

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
    found, predicted, probabilities = metrics.summary(*answers), logits.argmax(1), logits.softmax(1)
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
    found = metrics.summary(logits, labels)
    assert "top5_accuracy" not in found
    assert "auroc" not in found
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_classes_are_told_one_by_one(answers):
    logits, labels = answers
    rows = metrics.by_class(logits, labels, NAMES)
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

"""What `--filter` takes, what it says of what it does not take, and that it runs nothing."""

from __future__ import annotations

import pytest

from orchestrator.errors import UsageError
from orchestrator.filters import MAX_DEPTH, MAX_LENGTH, parse

KINDS = {
    "lr": {"number"},
    "state": {"text"},
    "optimizer": {"text"},
    "compile": {"truth"},
    "val_loss": {"number"},
    "train_loss": {"number"},
    "reason": set(),
    "config.epochs": {"number"},
}
ROW = {
    "lr": 0.01,
    "state": "complete",
    "optimizer": "sgd",
    "compile": True,
    "val_loss": None,
    "train_loss": 0.5,
    "reason": None,
    "config.epochs": 3,
}
WORDS = {"state": ["complete", "pruned"]}


def read(text):
    return parse(text, KINDS, KINDS.__getitem__, WORDS)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("lr>1e-3 and state=complete", True),
        ("lr > 1e-3 and state == 'pruned'", False),
        ("lr<1e-3 or not state=pruned", True),
        ("lr=1 or state=complete and lr=2", False),
        ("(lr=0.01 or state=pruned) and lr!=2", True),
        ("0.001<lr<=.01", True),
        ("not (lr >= -1)", False),
        ("optimizer in (sgd, adamw)", True),
        ('optimizer not in ["sgd"]', False),
        ("config.epochs in (1, 3)", True),
        ("'gd' in optimizer", True),
        ("compile", True),
        ("compile = false", False),
        ("train_loss > lr", True),
        ("val_loss < 3", False),
        ("val_loss >= 3", False),
        ("val_loss = none and reason=none and lr != none", True),
    ],
)
def test_filter_holds_as_it_reads(text, holds):
    assert read(text).holds(ROW) is holds


def test_filter_names_the_columns_that_it_needs():
    assert read("lr>1 and (state=pruned or lr<train_loss)").columns == {"lr", "state", "train_loss"}


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("lr > and lr < 1", "lr > «and lr < 1"),
        ("lr>1e-3 and", "lr>1e-3 and«"),
        ("lr >> 1", "lr >«> 1"),
        ("(lr>1 or lr<2", "(lr>1 or lr<2«"),
        ("lr>1) and lr<2", "lr>1«) and lr<2"),
        ("lr>1 state=complete", "lr>1 «state=complete"),
        ("lr", "lr«"),
        ("lr in (1, 2", "lr in (1, 2«"),
        ("lr not 3", "lr not «3"),
        ("lr < none", "lr < «none"),
        ("lr > 1 ; import os", "lr > 1 «; import os"),
        ("", "«"),
    ],
)
def test_filter_that_is_none_is_one_line_that_marks_the_place(text, marked):
    with pytest.raises(UsageError) as error:
        read(text)
    assert "expected" in str(error.value)
    assert str(error.value).endswith(f": {marked}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vall_loss<1", "unknown column 'vall_loss'; did you mean 'val_loss'?"),
        ("lr < val_los", "unknown column 'val_los'; did you mean 'val_loss'?"),
        ("__import__('os')", "unknown column '__import__'; some that are there: lr, "),
        ("state=complet", "unknown state 'complet'; did you mean 'complete'?"),
        ("state in (complete, prune)", "unknown state 'prune'; did you mean 'pruned'?"),
        ("lr = 'high'", "filter compares lr, a number, with a text"),
        ("optimizer > 3", "filter compares optimizer, a text, with a number"),
        ("(" * (MAX_DEPTH + 1), f"at most {MAX_DEPTH} parentheses"),
        ("lr>1 and " * MAX_LENGTH, f"at most {MAX_LENGTH} characters"),
    ],
)
def test_filter_that_cannot_be_meant_is_one_line(text, message):
    with pytest.raises(UsageError) as error:
        read(text)
    assert message in str(error.value)

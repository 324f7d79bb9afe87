"""What a user is told: one line that does nothing to a terminal."""

from __future__ import annotations

import pytest

from orchestrator import errors
from orchestrator.errors import OrchError, UnknownNameError, UsageError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, é and 日本", "plain, é and 日本"),
        ("two\nlines", "two\\nlines"),
        ("\x1b[31mred\x9b0m", "\\x1b[31mred\\x9b0m"),
        ("a\u202eb", "a\\u202eb"),
        ("a\udc80b", "a\\udc80b"),
        ("C:\\new", "C:\\new"),
    ],
)
def test_text_from_outside_is_shown_in_one_printable_line(text, shown):
    assert printable(text) == str(UsageError(text)) == shown
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("cn", ["mlp", "cnn"], "did you mean 'cnn'?"),
        ("zzz", ["mlp", "cnn"], "known: cnn, mlp"),
        ("zzz", [], "there is none yet"),
    ],
)
def test_unknown_name_offers_the_nearest_or_all(name, known, hint):
    assert str(UnknownNameError("recipe", name, known)) == f"unknown recipe {name!r}; {hint}"


def test_tree_in_the_docstring_is_the_tree_of_the_classes():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, OrchError)]
    for kind in kinds:
        (line,) = [line for line in errors.__doc__.splitlines() if f"{kind.__name__} " in line]
        assert f" {kind.exit_code}  " in line
        depth = (len(line) - len(line.lstrip("│├└─ "))) // 4
        assert depth == len(kind.__mro__) - len(OrchError.__mro__)

"""Hydra's override grammar, as far as the command line takes it."""

from __future__ import annotations

import pytest

from orchestrator import overrides
from orchestrator.errors import UsageError
from orchestrator.space import Choices, Range


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=1e-3", 0.001),
        ("epochs=3", 3),
        ("x=-1", -1),
        ("batch_norm=true", True),
        ("optimizer=adamw", "adamw"),
        ("name='a, b'", "a, b"),
        ("name=", ""),
        ("init=models:/cnn-digits@champion", "models:/cnn-digits@champion"),
        ("device=cuda:0", "cuda:0"),
    ],
)
def test_fixed_value_keeps_its_type(text, value):
    key, found = overrides.parse(text)
    assert (key, found, type(found)) == (text.partition("=")[0], value, type(value))


@pytest.mark.parametrize(
    ("text", "searched"),
    [
        ("lr=interval(0.1,0.5)", Range(low=0.1, high=0.5)),
        ("lr=tag(log,interval(1e-4,1e-1))", Range(low=1e-4, high=1e-1, log=True)),
        ("width=int(interval(16,128))", Range(low=16, high=128)),
        ("width=int(tag(log,interval(16,128)))", Range(low=16, high=128, log=True)),
        ("width=tag(log,int(interval(16,128)))", Range(low=16, high=128, log=True)),
        ("optimizer=sgd,adamw", Choices(choices=("sgd", "adamw"))),
        ("batch_size=32,64", Choices(choices=(32, 64))),
        ("augment='a b',c", Choices(choices=("a b", "c"))),
        ("batch_norm=true,false", Choices(choices=(True, False))),
    ],
)
def test_searched_value_is_read(text, searched):
    assert overrides.parse(text)[1] == searched


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("x=range(2,6)", 5),
        ("x=range(6)", 5),
        ("x=range(2,8,2)", 6),
        ("x=range(2,9,2)", 8),
        ("x=range(0,1,0.1)", 0.9),
        ("x=range(0,0.7,0.1)", 0.6),
        ("x=range(1,1.6,0.2)", 1.4),
    ],
)
def test_range_leaves_its_stop_out(text, last):
    assert overrides.parse(text)[1].high == pytest.approx(last)


def test_range_keeps_its_step():
    assert overrides.parse("x=range(2,8,2)")[1] == Range(low=2, high=6, step=2)


@pytest.mark.parametrize(
    "text",
    [
        "x=null",
        "x=[1,2]",
        "x={a:1}",
        "+x=1",
        "~x",
        "x@package=1",
        "x=shuffle(1,2)",
        "x=shuffle(range(1,5))",
        "x=glob(*)",
        "x=choice()",
        "x=tag(log,choice(1,2))",
        "x=tag(log,range(1,5))",
        "x=tag(other,interval(1,5))",
        "x=interval(1,2),3",
        "x=a=b",
        "x=é",
        "x=(",
        "x=a,",
        "x=1\n2",
        "x",
    ],
)
def test_rest_of_the_grammar_is_refused(text):
    with pytest.raises(UsageError, match=r"^cannot read ") as refused:
        overrides.parse(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lr=interval(0.1,0.01)", "low 0.1 is not below high 0.01"),
        ("lr=tag(log,interval(0,1))", "a log range cannot start from 0"),
        ("depth=range(2,3)", "low 2 is not below high 2"),
        ("depth=range(2,2)", "is empty"),
        ("depth=range(8,2,-2)", "is empty"),
        ("depth=range(2,8,0)", "is empty"),
        ("lr=1,2,1", "choices repeat"),
        ("lr=nan,1", "every number must be finite"),
        ("lr=interval(0,inf)", "every number must be finite"),
        ("x=range(0,inf)", "every number must be finite"),
    ],
)
def test_impossible_search_is_refused_with_the_reason(text, complaint):
    with pytest.raises(UsageError, match=complaint):
        overrides.parse(text)


def test_split_takes_the_first_equals_sign_only():
    assert overrides.split("data=folder:/a=b") == ("data", "folder:/a=b")


@pytest.mark.parametrize("text", ["trials", "=50", ""])
def test_split_without_a_key_is_refused(text):
    with pytest.raises(UsageError, match="is not key=value"):
        overrides.split(text)

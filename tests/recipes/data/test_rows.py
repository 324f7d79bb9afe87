"""`csv:PATH` without pictures: rows of numbers and categories."""

from __future__ import annotations

import math

import pytest
import torch

from recipes import data
from recipes.config import DatasetConfig
from recipes.data import DataError, ImageInfo
from recipes.modules import Columns


@pytest.fixture
def table(tmp_path):
    def write(header: str, rows: list[str], **fields: object) -> DatasetConfig:
        path = tmp_path / "table.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        return DatasetConfig.model_validate({"data": f"csv:{path}", **fields})

    return write


def rows_of(count: int) -> list[str]:
    """Number, colour with gaps, weight with gaps, label."""
    return [
        f"{n},{['red', 'blue', '?'][n % 3]},{'' if n % 5 == 0 else n / 2},{'odd' if n % 2 else 'even'}"
        for n in range(count)
    ]


HEADER = "number,colour,weight,label"


def test_numbers_and_categories_are_told_apart(table):
    dataset = data.load(table(HEADER, rows_of(30)))
    number, colour, weight = dataset.info.columns
    assert (number.categories, colour.categories, weight.categories) == ((), ("blue", "red"), ())
    assert (number.has_gaps, colour.has_gaps, weight.has_gaps) == (False, True, True)
    assert dataset.train.images.shape == (18, 3)
    assert number.mean == pytest.approx(dataset.train.images[:, 0].mean().item())
    known = dataset.train.images[:, 2]
    assert weight.std == pytest.approx(known[~known.isnan()].std(correction=0).item())
    assert ImageInfo.from_json(dataset.info.to_json()) == dataset.info
    for split in (dataset.train, dataset.val, dataset.test):
        for (n, colour_number, kilos), label in zip(split.images.tolist(), split.labels.tolist(), strict=True):
            assert dataset.info.class_names[label] == ("odd" if n % 2 else "even")
            assert math.isnan(colour_number) if n % 3 == 2 else colour_number == [1.0, 0.0][int(n % 3)]
            assert math.isnan(kilos) if n % 5 == 0 else kilos == n / 2


def test_columns_become_features_and_gaps_are_told(table):
    info = data.load(table(HEADER, rows_of(30))).info
    number, _, weight = info.columns
    module = Columns(info.columns)
    found = module(torch.tensor([[number.mean, 1.0, math.nan], [number.mean + number.std, math.nan, weight.mean]]))
    # number, weight, gap in weight, blue, red
    torch.testing.assert_close(found, torch.tensor([[0.0, 0, 1, 0, 1], [1.0, 0, 0, 0, 0]]))
    assert module.num_features == 5
    assert not module.state_dict()


def test_rows_come_from_the_cache_again_and_limit_cuts_them(table):
    config = table(HEADER, rows_of(30))
    first = data.load(config)
    data.cache.prepared.cache_clear()
    again = data.load(config)
    assert again.info == first.info
    torch.testing.assert_close(again.train.images, first.train.images, equal_nan=True)
    few = data.load(config.model_copy(update={"limit": 10}))
    assert sum(len(split.labels) for split in (few.train, few.val, few.test)) == 10


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("id,x,label", [f"n{n},1,{n % 2}" for n in range(20)], r"'id' has 20 different words in 20 rows, such as 'n0'"),
        ("x,y,label", [f"1,,{n % 2}" for n in range(20)], r"column 'y' is empty"),
        ("x,label", ["1,a", "2,b"], r"2 rows of 2 classes are too few: none is left for val"),
        ("label", ["a", "b"], r"has no column beside the labels"),
        ("file,label", ["one.png,x", "two.png,y"], r"the files of column 'file' are not in .*: 'one.png'"),
    ],
)
def test_table_that_is_no_data_set_is_told_in_one_line(table, home, header, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        data.fingerprints(table(header, rows))
    assert str(caught.value).isprintable()
    assert not home.exists()

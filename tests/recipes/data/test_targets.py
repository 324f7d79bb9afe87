"""`csv:PATH` with several labels an image, and with numbers to tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recipes import data
from recipes.config import DatasetConfig
from recipes.data import DataError, ImageInfo


@pytest.fixture
def table(grey_folder, tmp_path):
    """Write a table beside twenty pictures; the level of each is its number."""
    grey_folder({"a": 20})

    def write(header: str, rows: list[str], **fields: object) -> DatasetConfig:
        path = tmp_path / "table.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        return DatasetConfig.model_validate({"data": f"csv:{path}", **fields})

    return write


def row(number: int, *values: object) -> str:
    return ",".join([f"pictures/a/{number:03}.png", *map(str, values)])


def by_level(dataset: data.Dataset) -> dict[int, list[float]]:
    splits = (dataset.train, dataset.val, dataset.test)
    images, labels = torch.cat([s.images for s in splits]), torch.cat([s.labels for s in splits])
    return dict(zip(images[:, 0, 0, 0].tolist(), labels.tolist(), strict=True))


def divisors(number: int) -> str:
    return "|".join(name for name, divisor in (("two", 2), ("three", 3)) if number % divisor == 0)


def test_labels_between_bars_are_one_column(table):
    rows = [row(number, divisors(number)) for number in range(20)]
    dataset = data.load(table("file,label", rows, task="multilabel"))
    assert (dataset.info.task, dataset.info.class_names) == ("multilabel", ("three", "two"))
    assert by_level(dataset) == {n: [float(n % 3 == 0), float(n % 2 == 0)] for n in range(20)}
    assert [len(split.labels) for split in (dataset.train, dataset.val, dataset.test)] == [12, 4, 4]


def test_labels_as_columns_of_0_and_1_are_in_the_order_asked_for(table):
    rows = [row(number, number % 2, "true" if number % 3 else "False") for number in range(20)]
    dataset = data.load(table("file,odd,left", rows, task="multilabel", target="left, odd"))
    assert dataset.info.class_names == ("left", "odd")
    assert by_level(dataset) == {n: [float(n % 3 > 0), float(n % 2)] for n in range(20)}


def test_numbers_have_mean_0_and_spread_1_in_the_training_split(table):
    rows = [row(number, 1000 + 10 * number, -number) for number in range(20)]
    dataset = data.load(table("file,x,y", rows, task="regression", target="x,y"))
    torch.testing.assert_close(dataset.train.labels.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(dataset.train.labels.std(0, correction=0), torch.ones(2))
    mean, std = np.array(dataset.info.target_mean), np.array(dataset.info.target_std)
    back = {level: (np.array(label) * std + mean).tolist() for level, label in by_level(dataset).items()}
    assert back[7] == pytest.approx([1070, -7], rel=1e-5)
    assert ImageInfo.from_json(dataset.info.to_json()) == dataset.info


def test_task_and_target_belong_to_the_data(table):
    rows = [row(number, number % 2, 1) for number in range(20)]
    config = table("file,odd,one", rows, task="multilabel", target="odd,one")
    found = {data.fingerprints(config.model_copy(update=u))[0] for u in ({}, {"task": "regression"}, {"target": "odd"})}
    assert len(found) == 3


@pytest.mark.parametrize(
    ("header", "values", "fields", "message"),
    [
        (
            "file,a,b",
            (0, 2),
            {"task": "multilabel", "target": "a,b"},
            r"row 1 has '2' for the label 'b'; expect",
        ),
        ("file,a,b", (0, 1), {"task": "multilabel", "target": "a,b"}, r"no row has the label 'a'"),
        ("file,a", ("",), {"task": "multilabel"}, r"no row has a label"),
        ("file,a", ("inf",), {"task": "regression"}, r"row 1 has 'inf' for 'a'; expected a number"),
        ("file,a", ("",), {"task": "regression"}, r"row 1 has '' for 'a'; expected a number"),
        ("file,a,b", (0, 1), {"target": "a,b"}, r"2 target columns need task=multilabel or task=regression"),
        ("file,a,b", (0, 1), {"target": "a,c", "task": "regression"}, r"no column 'c', which target= names"),
    ],
)
def test_targets_that_are_none_are_told_in_one_line(table, home, header, values, fields, message):
    with pytest.raises(DataError, match=message) as caught:
        data.fingerprints(table(header, [row(number, *values) for number in range(20)], **fields))
    assert str(caught.value).isprintable()
    assert not home.exists()


def test_other_data_have_one_class_an_image():
    with pytest.raises(DataError, match=r"data 'digits' has one class an image; task=regression is for csv:PATH"):
        data.load(DatasetConfig(task="regression"))

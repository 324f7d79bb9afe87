"""`csv:PATH`: which columns are taken, and what is said of tables that are no data set."""

from __future__ import annotations

import pytest
import torch

from recipes import data
from recipes.config import DatasetConfig
from recipes.data import DataError
from tests.recipes.data.conftest import levels


@pytest.fixture
def table(grey_folder, tmp_path):
    """Write a table beside ten pictures, `pictures/a/000.png` to 009; the level of each is its number."""
    grey_folder({"a": 10})

    def write(header: str, rows: list[str], **fields: object) -> DatasetConfig:
        path = tmp_path / "table.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        return DatasetConfig.model_validate({"data": f"csv:{path}", **fields})

    return write


def row(number: int, *values: object) -> str:
    return ",".join([f"pictures/a/{number:03}.png", *map(str, values)])


def label_of_level(dataset: data.Dataset) -> dict[int, str]:
    splits = (dataset.train, dataset.val, dataset.test)
    images, labels = torch.cat([s.images for s in splits]), torch.cat([s.labels for s in splits])
    pairs = zip(images[:, 0, 0, 0].tolist(), labels.tolist(), strict=True)
    return {level: dataset.info.class_names[label] for level, label in pairs}


def test_labels_are_the_last_column_and_pictures_the_first_with_files(table):
    rows = [f"{number},x,{row(number, 'odd' if number % 2 else 'even')}" for number in range(10)]
    dataset = data.load(table("id,note,file,kind", rows))
    assert dataset.info.class_names == ("even", "odd")
    assert label_of_level(dataset) == {level: "odd" if level % 2 else "even" for level in range(10)}


def test_column_called_label_goes_before_the_last_and_target_before_both(table):
    rows = [row(number, "low" if number < 5 else "high", number % 2, "z") for number in range(10)]
    config = table("file,label,parity,last", rows)
    assert data.load(config).info.class_names == ("high", "low")
    config = config.model_copy(update={"target": "parity"})
    assert label_of_level(data.load(config)) == {level: str(level % 2) for level in range(10)}


def test_numbers_as_labels_are_in_their_own_order(table):
    rows = [row(number, 10 if number < 5 else 9) for number in range(10)]
    assert data.load(table("file,label", rows)).info.class_names == ("9", "10")


def test_column_split_says_which_split(table):
    names = ["train"] * 6 + ["val", "valid", "test", "test"]
    rows = [row(number, names[number], "ab"[number % 2]) for number in range(10)]
    dataset = data.load(table("file,split,label", rows))
    assert levels(dataset.train) == [0, 1, 2, 3, 4, 5]
    assert (levels(dataset.val), levels(dataset.test)) == ([6, 7], [8, 9])


def test_excel_s_mark_quotes_and_empty_lines_are_understood(table):
    rows = [f'"pictures/a/{number:03}.png", {"ab"[number % 2]} \n' for number in range(10)]
    assert data.load(table("\ufefffile,label", rows)).info.class_names == ("a", "b")


def test_changed_label_is_seen(table):
    rows = [row(number, "ab"[number % 2]) for number in range(10)]
    first = data.fingerprints(table("file,label", rows))
    rows[1] = row(1, "a")
    assert data.fingerprints(table("file,label", rows)) != first


def test_missing_file_is_a_bad_picture(table, caplog):
    rows = [row(number, "ab"[number % 2]) for number in range(12)]
    config = table("file,label", rows)
    with pytest.raises(DataError, match=r"2 of 12 images .* first is pictures/a/010.png: it does not exist; on_bad"):
        data.load(config)
    config = config.model_copy(update={"on_bad_image": "skip"})
    assert len(label_of_level(data.load(config))) == 10
    assert "2 of 12" in caplog.text


ROWS = [row(number, "ab"[number % 2]) for number in range(10)]


@pytest.mark.parametrize(
    ("header", "rows", "fields", "message"),
    [
        ("file,label", [], {}, r"table.csv has no rows"),
        ("file,file", ROWS, {}, r"two columns of one name: file, file"),
        ("file,label", [*ROWS, "x"], {}, r"row 11 has 1 values, the table has 2 columns"),
        ("file,label", ROWS, {"target": "lable"}, r"no column 'lable', which target= names; did you mean 'label'\?"),
        ("file,label", ROWS, {"target": "zzz"}, r"no column 'zzz', which target= names; it has file, label"),
        ("file,label", [*ROWS, row(1, ""), row(2, "")], {}, r"2 of 12 rows have no 'label', the first is row 11"),
        ("file,split,label", [row(1, "tset", "a")], {}, r"row 1 has the split 'tset'; did you mean 'test'\?"),
        ("file,split,label", [row(1, "", "a")], {}, r"1 of 1 rows have no 'split'"),
        ("file,split,label", [row(1, "test", "a")], {}, r"no row has the split 'train'"),
        ('"file,label', ["x"], {}, r"is not a CSV file in UTF-8: unexpected end of data"),
    ],
)
def test_table_that_is_no_data_set_is_told_in_one_line(table, home, header, rows, fields, message):
    with pytest.raises(DataError, match=message) as caught:
        data.fingerprints(table(header, rows, **fields))
    assert str(caught.value).isprintable()
    assert not home.exists()


def test_missing_table_and_what_is_no_text_are_named(table, tmp_path):
    table("file,label", ROWS)
    with pytest.raises(DataError, match=r"file .*/tabel.csv does not exist; did you mean 'table.csv'\?"):
        data.load(DatasetConfig(data=f"csv:{tmp_path / 'tabel.csv'}"))
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\0\x01")
    with pytest.raises(DataError, match=r"table.csv is not a CSV file in UTF-8"):
        data.load(DatasetConfig(data=f"csv:{tmp_path / 'table.csv'}"))

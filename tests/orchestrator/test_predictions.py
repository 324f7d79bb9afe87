from __future__ import annotations

import csv

import pyarrow.parquet as pq
import pytest

from orchestrator import predictions
from orchestrator.errors import UsageError

KINDS = {"path": str, "class": str, "probability": float}
ROWS = [
    {"path": 'a, "b"\n.png', "class": "é", "probability": 0.1234567890123},
    {"path": "<b>.png", "class": "7", "probability": 1.0},
]


@pytest.mark.parametrize("rows", [ROWS, []], ids=["rows", "none"])
def test_csv_holds_what_was_written(tmp_path, rows):
    predictions.write(predictions.Predictions(kinds=KINDS, rows=rows), tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [{**row, "probability": float(row["probability"])} for row in read] == rows
    assert (tmp_path / "p.csv").read_text().startswith("path,class,probability")


@pytest.mark.parametrize("rows", [ROWS, []], ids=["rows", "none"])
def test_parquet_holds_what_was_written(tmp_path, rows):
    predictions.write(predictions.Predictions(kinds=KINDS, rows=rows), tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.to_pylist() == rows
    assert [str(kind) for kind in table.schema.types] == ["string", "string", "double"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("p.xlsx", r"\.csv or \.parquet, found '\.xlsx'"),
        ("there.csv", "is there already"),
        ("no/p.csv", "is no folder"),
    ],
)
def test_table_that_cannot_be_written_is_refused_before_the_work(tmp_path, name, message):
    (tmp_path / "there.csv").write_text("precious")
    with pytest.raises(UsageError, match=message):
        predictions.check_output(tmp_path / name)
    assert (tmp_path / "there.csv").read_text() == "precious"

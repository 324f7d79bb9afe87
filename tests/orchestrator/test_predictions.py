from __future__ import annotations

import csv
import json
from pathlib import Path

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


@pytest.mark.parametrize("rows", [ROWS, []], ids=["rows", "none"])
def test_json_holds_what_was_written(tmp_path, rows):
    predictions.write(predictions.Predictions(kinds=KINDS, rows=rows), tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text(encoding="utf-8")) == rows


def test_patterns_stand_for_the_files_that_match_unless_a_file_is_called_so(tmp_path, monkeypatch):
    for name in ("b.png", "a.png", "deep/er/c.png", "d.txt", "[x].png", "x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)

    def found(*patterns: str) -> list[str]:
        return [str(path) for path in predictions.matching(map(Path, patterns))]

    assert found("d.txt", "?.png") == ["d.txt", "a.png", "b.png", "x.png"]
    assert found("**/*.png") == ["[x].png", "a.png", "b.png", "deep/er/c.png", "x.png"]
    assert found("[x].png") == ["[x].png"]
    assert found(str(tmp_path / "deep*")) == [str(tmp_path / "deep")]
    assert found("gone.png") == ["gone.png"], "whoever reads it says that it does not exist"
    with pytest.raises(UsageError, match=r"nothing matches \*\.gif"):
        found("a.png", "*.gif")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("p.xlsx", r"\.csv, \.json, \.parquet, found '\.xlsx'"),
        ("there.csv", "is there already"),
        ("no/p.csv", "is no folder"),
    ],
)
def test_table_that_cannot_be_written_is_refused_before_the_work(tmp_path, name, message):
    (tmp_path / "there.csv").write_text("precious")
    with pytest.raises(UsageError, match=message):
        predictions.check_output(tmp_path / name)
    assert (tmp_path / "there.csv").read_text() == "precious"

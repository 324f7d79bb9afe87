"""`orch export MODEL --to DIR`: what is in the folder works without anything of ours."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from orchestrator import bundles, models, standalone
from orchestrator.errors import UnavailableError, UnknownNameError, UsageError
from orchestrator.predictions import predict
from orchestrator.registry import Registry
from recipes.config import DatasetConfig
from recipes.data import load
from recipes.data.csv_file import read_columns
from recipes.data.rows import encoded
from recipes.data.types import Column
from tests.support.orch import Orch

if TYPE_CHECKING:
    from pathlib import Path

NAME = "cnn-digits"
CHAMPION = f"models:/{NAME}@champion"
FILES = ["MODEL_CARD.md", "labels.json", "model.onnx", "predict.py", "requirements.txt"]
# Runs a script where nothing can be imported but what it says that it needs, and what that needs.
ALONE = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "mlflow", "onnx", "orchestrator", "recipes", "pandas"}:
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def pictures_of_many_kinds(folder: Path) -> list[Path]:
    """Files of digits: grey, coloured, see-through, of 16 bits, turned, with a palette, and of another size."""
    digits = [Image.fromarray(image[0].numpy()) for image in load(DatasetConfig()).test.images[:7]]
    turned = Image.Exif()
    turned[0x0112] = 6
    see_through = digits[2].convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize((8, 8)))
    made = {
        "grey.png": (digits[0], {}),
        "coloured é.png": (digits[1].convert("RGB"), {}),
        "see-through.png": (see_through, {}),
        "deep.png": (Image.fromarray(np.asarray(digits[3]).astype(np.uint16) * 257), {}),
        "turned.jpg": (digits[4].resize((40, 20)), {"exif": turned}),
        "palette.png": (digits[5].convert("P"), {}),
        "large.jpeg": (digits[6].resize((100, 90)), {}),
    }
    for name, (image, how) in made.items():
        image.save(folder / name, **how)
    return [folder / name for name in made]


def test_script_says_without_anything_of_ours_what_orch_predict_says(promoted, tmp_path):
    folder = tmp_path / "for others"
    found = bundles.export_model(promoted, CHAMPION, folder)
    assert (found["model"], found["version"], sorted(found["files"])) == (NAME, "1", FILES)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert (folder / "model.onnx").read_bytes() == models.resolve_model(promoted, CHAMPION).read_bytes()
    assert (folder / "MODEL_CARD.md").read_text() == Registry(promoted).card(NAME, "1")
    assert NAME in (folder / "MODEL_CARD.md").read_text()
    assert json.loads((folder / "labels.json").read_text())["names"] == list("0123456789")

    files = pictures_of_many_kinds(tmp_path)
    command = [sys.executable, "-I", "-c", ALONE, str(folder / "predict.py"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    expected = predict(promoted, CHAMPION, files).rows
    assert [(row["path"], row["class"]) for row in rows] == [(row["path"], row["class"]) for row in expected]
    np.testing.assert_allclose(
        [row["probability"] for row in rows], [row["probability"] for row in expected], atol=1e-6
    )
    needed = [line.partition("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()]
    assert needed == ["numpy", "onnxruntime", "pillow"]


def test_script_reads_tables_as_models_on_them_do(tmp_path):
    columns = (Column(name="x"), Column(name="kind", categories=("a", "b")))
    table = tmp_path / "t.csv"
    table.write_text(" kind ,note,x\nb ,hi,1.5\na,,2\n?,,\n\n")
    rows = standalone.rows_of(str(table), [asdict(column) for column in columns])
    np.testing.assert_array_equal(rows, encoded(columns, read_columns(table)))
    assert rows.dtype == np.float32


def test_script_says_labels_and_numbers_by_name():
    answer = np.array([0.2, 0.8, 0.9], np.float32)
    about = {"names": ["a", "b", "c"], "task": "multilabel"}
    assert standalone.told(answer, about)["labels"] == ["b", "c"]
    assert standalone.told(answer, {**about, "task": "regression"}).keys() == {"a", "b", "c"}


def test_folder_with_something_in_it_is_left_alone(promoted, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "full": "is there already and not empty",
        "file": "is there already",
        "no/x": "no folder",
    }.items():
        with pytest.raises(UsageError, match=message):
            bundles.export_model(promoted, CHAMPION, tmp_path / name)
    with pytest.raises(UnknownNameError):
        bundles.export_model(promoted, f"models:/{NAME}@champio", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file", "full", "mine.txt"]
    bundles.export_model(promoted, CHAMPION, tmp_path / "empty")
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == FILES


KILLED = """
import os, signal, sys
from pathlib import Path
from orchestrator import bundles
from orchestrator.settings import Settings

write, left = bundles.write_whole, 3

def dies_at_the_third(*arguments):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments)

bundles.write_whole = dies_at_the_third
bundles.export_model(Settings.from_environment(), sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_kill_half_way_leaves_nothing_under_the_folders_name(promoted, tmp_path):
    folder = tmp_path / "folder"
    done = subprocess.run([sys.executable, "-c", KILLED, CHAMPION, str(folder)], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not folder.exists()
    (left,) = tmp_path.iterdir()
    assert len(list(left.iterdir())) == 2, "two files were written before the kill"
    bundles.export_model(promoted, CHAMPION, folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_a_disk_that_cannot_be_written_is_one_line_and_leaves_nothing(promoted, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundles, "write_whole", full)
    with pytest.raises(UnavailableError, match=r"folder cannot be written: No space left on device"):
        bundles.export_model(promoted, CHAMPION, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_command_writes_the_folder_and_says_when_it_is_missing(promoted_home, tmp_path):
    orch = Orch(tmp_path)
    orch.environment["ORCH_HOME"] = str(promoted_home)
    done = orch("export", CHAMPION, "--to", "folder", "--json")
    assert not done.stderr, "nor MLflow's progress bars"
    found = json.loads(done.stdout)
    assert found == {"model": NAME, "version": "1", "folder": str(tmp_path / "folder"), "files": found["files"]}
    assert sorted(found["files"]) == FILES
    missing = orch("export", CHAMPION, code=2)
    assert missing.stderr == f"orch: {CHAMPION} is a promoted model; say which folder it goes to: --to DIR\n"
    mixed = orch("export", CHAMPION, "17", "--to", "other", code=2)
    assert "--to takes a promoted model as it is" in mixed.stderr
    assert not (tmp_path / "other").exists()

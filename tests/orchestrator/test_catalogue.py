from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import recipes
from orchestrator import catalogue, study
from orchestrator.errors import UsageError
from recipes.config import fields
from recipes.loop import Attempt
from recipes.model_file import restore_model

MINE = """
'''A recipe of mine. It has a second sentence.'''
from typing import Literal
from pydantic import Field
from recipes.config import DatasetConfig, Part

class ModelConfig(Part):
    size: int = Field(3, gt=1, le=9, description="how large")
    kind: Literal["a", "b"] = Field("b", description="which")

class Config(Part):
    model: ModelConfig = ModelConfig()
    dataset: DatasetConfig = DatasetConfig()

def train(config, attempt=None): ...
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_recipe_is_listed_with_what_it_is():
    rows = {row["recipe"]: row for row in catalogue.rows()}
    assert list(rows) == recipes.names()
    assert rows["mlp"]["about"] == "A multilayer perceptron on the pixels of an image, or on the columns of a table."
    assert all(Path(row["file"]).is_file() and row["about"].endswith(".") for row in rows.values())


def test_listing_imports_no_torch():
    code = "import sys; from orchestrator import catalogue; catalogue.rows(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_field_is_shown_with_type_default_range_meaning_and_what_is_searched(here):
    (here / "mine.py").write_text(MINE)
    (here / "studies").mkdir()
    (here / "studies" / "mine.yaml").write_text("space:\n  size: {low: 2, high: 5}\n")
    size, kind, *_ = catalogue.field_rows(catalogue.load("mine.py"))
    assert size == {
        "field": "size",
        "type": "int",
        "default": 3,
        "range": "> 1, ≤ 9",
        "searched": "2 to 5",
        "meaning": "how large",
    }
    assert (kind["type"], kind["default"], kind["range"], kind["searched"]) == ("a | b", "b", "", "")


@pytest.mark.parametrize("name", recipes.BUILT_IN)
def test_all_fields_of_a_recipe_are_shown_and_say_what_they_are(name):
    recipe = catalogue.load(name)
    rows = catalogue.field_rows(recipe)
    assert [row["field"] for row in rows] == list(fields(recipe.config_type))
    assert all(row["meaning"] and row["type"] for row in rows)
    assert any(row["searched"] for row in rows)


@pytest.mark.parametrize("name", recipes.BUILT_IN)
def test_copy_is_a_recipe_of_its_own_with_the_same_study(here, name):
    written = catalogue.copy(catalogue.load(name), Path("folder/my_copy.py"))
    assert written == [Path("folder/my_copy.py"), Path("studies/my_copy.yaml")]
    loaded = study.load(["recipe=folder/my_copy.py", "trials=2"])
    original = study.load([f"recipe={name}", "trials=2"])
    assert (loaded.space, loaded.fixed) == (original.space, original.fixed)
    assert "recipe=__file__" in written[0].read_text()


def test_model_of_a_copy_is_restored_with_the_copy(here):
    catalogue.copy(catalogue.load("mlp"), Path("my_mlp.py"))
    recipe = catalogue.load("my_mlp.py")
    config = study.load(["recipe=my_mlp.py", "epochs=1", "width=8"], single=True).config({})
    from recipes.config import make

    list(recipe.module.train(make(recipe.config_type, config), Attempt(folder=here / "run")))
    _, _, metadata = restore_model(recipe, here / "run" / "best.safetensors")
    assert metadata["recipe"] == str(here / "my_mlp.py")


@pytest.mark.parametrize("there", ["mine.py", "studies/mine.yaml"])
def test_copy_over_a_file_that_is_there_is_refused_and_writes_nothing(here, there):
    Path(there).parent.mkdir(exist_ok=True)
    Path(there).write_text("precious")
    with pytest.raises(UsageError, match=f"{there} is there already"):
        catalogue.copy(catalogue.load("cnn"), Path("mine.py"))
    assert [path for path in Path().rglob("*") if path.is_file()] == [Path(there)]
    assert Path(there).read_text() == "precious"


@pytest.mark.parametrize("target", ["mine", "mine.txt", "my-cnn.py", "1.py", ".py"])
def test_copy_to_what_is_no_name_for_a_recipe_is_refused(here, target):
    with pytest.raises(UsageError, match=r"one like my_cnn\.py is"):
        catalogue.copy(catalogue.load("cnn"), Path(target))
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("reference", "message"),
    [("cn", "did you mean 'cnn'"), ("none.py", "does not exist"), ("cnn.txt", "unknown recipe")],
)
def test_unknown_recipe_is_one_line(here, reference, message):
    with pytest.raises(UsageError, match=message):
        catalogue.load(reference)

"""`orch studies`: what it lists, shows, checks and copies, and the schema that it prints."""

from __future__ import annotations

import json
import sys

import pytest
from ruamel.yaml import YAML

import recipes
from orchestrator import cli, study, study_catalogue, study_files
from orchestrator.errors import UsageError
from orchestrator.fields import PLACEMENT_FIELDS, STUDY_FIELDS
from recipes.config import fields
from tests.support.json_schema import fits

MINE = """
fixed: {epochs: 3, momentum: 0.8}
space:
  optimizer: [adamw, sgd]
  lr: {low: 1e-3, high: 1e-1, log: true}
  momentum: {low: 0.5, high: 0.99, when: {optimizer: sgd}}
  nesterov: {choices: [true, false], when: {optimizer: [sgd, muon], momentum: 0.5}}
  width: [8, 16]
constraints: ["width * epochs <= 64", "optimizer == 'adamw' or lr < 0.05"]
"""
SHIPPED = sorted(path.stem for path in study_files.SHIPPED.glob("*.yaml"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mine(here):
    (here / "studies").mkdir()
    path = here / "studies" / "cnn.yaml"
    path.write_text(MINE)
    return path


@pytest.fixture
def orch(monkeypatch, capfd):
    """The command line in this process: its exit code and what it prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["orch", "studies", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code or 0, *capfd.readouterr())

    return run


def test_files_here_are_listed_before_those_that_come_along(mine, here, orch):
    (here / "studies" / "mine-digits.yaml").write_text("fixed: [")
    (here / "mine.py").touch()
    code, printed, _ = orch("ls", "--json")
    rows = {row["study"]: row for row in json.loads(printed)}
    assert code == 0
    assert list(rows) == sorted({*SHIPPED, "mine-digits"})
    assert rows["cnn"] == {"study": "cnn", "recipe": "cnn", "searched": 5, "file": "studies/cnn.yaml"}
    assert rows["cnn-cifar10"]["recipe"] == "cnn"
    assert rows["vit"]["file"] == str(study_files.SHIPPED / "vit.yaml")
    assert (rows["mine-digits"]["recipe"], rows["mine-digits"]["searched"]) == ("mine.py", None)
    assert "?" in orch("ls")[1]


def test_file_is_shown_with_conditions_and_constraints(mine, orch):
    _, printed, _ = orch("show", "cnn", "--json")
    shown = json.loads(printed)
    assert shown["fixed"] == {"epochs": 3, "momentum": 0.8}
    assert shown["space"]["momentum"]["when"] == {"optimizer": ["sgd"]}
    assert shown["constraints"] == ["width * epochs <= 64", "optimizer == 'adamw' or lr < 0.05"]
    _, printed, _ = orch("show", "cnn")
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "momentum 0.8 0.5 to 0.99 optimizer=sgd" in lines
    assert "nesterov True, False optimizer=sgd|muon, momentum=0.5" in lines
    assert "width * epochs <= 64" in lines


def test_values_that_json_lacks_are_shown_as_words(mine, orch):
    mine.write_text("fixed: {lr: .inf, epochs: 2020-01-01, width: null}\n")
    assert json.loads(orch("show", "cnn", "--json")[1])["fixed"] == {
        "lr": "inf",
        "epochs": "2020-01-01",
        "width": "None",
    }


def test_every_shipped_file_fits_its_recipe(orch):
    code, printed, errors = orch("validate", *SHIPPED)
    assert (code, errors) == (0, "")
    assert printed.count("fits") == len(SHIPPED)


def test_all_files_are_checked_and_each_bad_one_named_in_a_line(mine, here, orch):
    bad = {
        "syntax": "fixed: {}\nspace: {lr: [1,\n",
        "key": "space: {lrr: [1, 2]}",
        "range": "space: {lr: {low: -1, high: 1}}",
        "condition": "space: {lr: [1, 2], dropout: {low: 0, high: 0.5, when: {optimizer: sdg}}}",
        "constraint": "space: {lr: [1, 2]}\nconstraints: [lr < 1]",
        "together": "space: {schedule: [cosine, exponential]}",
    }
    for name, text in bad.items():
        (here / f"cnn-{name}.yaml").write_text(text)
    before = sorted(here.rglob("*"))
    names = [f"cnn-{name}.yaml" for name in bad]
    code, printed, errors = orch("validate", *names, "cnn", "none.yaml", "nothing", "studies/other.yaml")
    assert code == 2
    assert printed == "fits      studies/cnn.yaml: recipe cnn, 5 field(s) searched\n"
    lines = errors.splitlines()
    for line, (name, complaint) in zip(
        lines,
        [
            ("cnn-syntax.yaml", "line 3"),
            ("cnn-key.yaml", "'lrr'; did you mean 'lr'?"),
            ("cnn-range.yaml", "lr=-1: Input should be greater than 0"),
            ("cnn-condition.yaml", "unknown optimizer 'sdg'; did you mean 'sgd'?"),
            ("cnn-constraint.yaml", "constraint 'lr < 1' does not hold"),
            ("cnn-together.yaml", "schedule=exponential needs final_lr above 0"),
            ("none.yaml", "there is no such file"),
            ("nothing", "unknown study file 'nothing'"),
            ("studies/other.yaml", "there is no such file"),
        ],
        strict=True,
    ):
        assert line.startswith("orch: ")
        assert name in line
        assert complaint in line
    assert sorted(here.rglob("*")) == before


def test_file_of_another_name_is_held_against_the_recipe_that_is_named(mine, here, orch):
    mine.rename(here / "mine.yaml")
    code, _, errors = orch("validate", "mine.yaml")
    assert (code, errors) == (2, "orch: mine.yaml: no recipe is called as this file begins; name it with --recipe\n")
    assert orch("validate", "mine.yaml", "--recipe", "cnn")[0] == 0


def test_copy_is_the_file_and_wins(here, orch):
    code, printed, _ = orch("cp", "vit")
    assert (code, printed) == (0, "written   studies/vit.yaml\n")
    assert (here / "studies" / "vit.yaml").read_bytes() == (study_files.SHIPPED / "vit.yaml").read_bytes()
    assert study_catalogue.find("vit") == study_catalogue.FOLDER / "vit.yaml"
    assert study.load(["recipe=vit"]).space
    assert orch("cp", "cnn", "new/my.yaml")[0] == 0
    assert (here / "new" / "my.yaml").read_bytes() == (study_files.SHIPPED / "cnn.yaml").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["cnn"], "studies/cnn.yaml is there already"),
        (["vit", "studies/cnn.yaml"], "studies/cnn.yaml is there already"),
        (["vit", "mine.txt"], "mine.txt is no name for a study file; one like studies/vit.yaml is"),
        (["vit", "studies/cnn.yaml/vit.yaml"], "studies/cnn.yaml"),
        (["vti"], "unknown study file 'vti'; did you mean 'vit'?"),
    ],
)
def test_copy_is_never_written_over_a_file(arguments, complaint, mine, here, orch):
    code, printed, errors = orch("cp", *arguments)
    assert (code, printed, errors.count("\n")) == (2, "", 1)
    assert complaint in errors
    assert [path for path in here.rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == MINE


# -- the schema


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_file_fits_the_schema_of_its_recipe(name, orch):
    _, printed, _ = orch("schema", study_catalogue.recipe_of(name))
    schema = json.loads(printed)
    content = YAML(typ="safe", pure=True).load((study_files.SHIPPED / f"{name}.yaml").read_text())
    assert fits(content, schema, schema)


def test_schema_says_of_each_field_what_it_is():
    recipe = recipes.load("cnn")
    schema = study_catalogue.schema(recipe)
    settable = set(fields(recipe.config_type)) - {*STUDY_FIELDS, *PLACEMENT_FIELDS}
    assert set(schema["properties"]["fixed"]["properties"]) == settable
    assert set(schema["properties"]["space"]["properties"]) == settable - {"devices"}
    assert all(searched["description"] for searched in schema["properties"]["space"]["properties"].values())
    optimizer = schema["$defs"]["Fields"]["properties"]["optimizer"]
    assert optimizer["enum"] == ["adamw", "adam", "sgd", "rmsprop", "muon"]
    assert optimizer["description"].startswith("optimiser;")


@pytest.mark.parametrize(
    ("text", "fitting"),
    [
        (MINE, True),
        ("fixed: {lrr: 1}", False),
        ("fixed: {lr: 0}", False),
        ("fixed: {batch_norm: 1}", False),
        ("fixed: {data: digits}", False),
        ("space: {optimizer: [sgd, admw]}", False),
        ("space: {optimizer: {low: 1, high: 2}}", False),
        ("space: {devices: [1, 2]}", False),
        ("space: {lr: []}", False),
        ("space: {lr: {low: 0, high: 1}}", False),
        ("space: {lr: {low: 1}}", False),
        ("space: {lr: {low: 1, high: 2, loog: true}}", False),
        ("space: {lr: {low: 1, high: 2, when: {optimizer: admw}}}", False),
        ("space: {lr: {low: 1, high: 2, when: {optimizer: []}}}", False),
        ("space: {lr: {choices: [1, 2], when: {optimizer: [sgd, muon], task: regression}}}", True),
        ("constraints: a < b", False),
        ("other: 1", False),
    ],
)
def test_schema_refuses_what_reading_would_refuse(text, fitting):
    schema = study_catalogue.schema(recipes.load("cnn"))
    assert fits(YAML(typ="safe", pure=True).load(text), schema, schema) is fitting


def test_schema_of_an_unknown_recipe_is_one_line(orch):
    code, printed, errors = orch("schema", "cn")
    assert (code, printed) == (2, "")
    assert errors == "orch: unknown recipe 'cn'; did you mean 'cnn'?\n"


def test_listing_a_file_that_cannot_be_read_does_not_end_the_list(mine):
    mine.write_bytes(b"\xff")
    assert [row["searched"] for row in study_catalogue.rows() if row["study"] == "cnn"] == [None]
    with pytest.raises(UsageError, match=r"studies/cnn\.yaml: cannot be read"):
        study_catalogue.show("cnn")

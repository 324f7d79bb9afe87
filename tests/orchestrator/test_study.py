"""A study from what was typed: what is taken, what is refused, what is its identity."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

import recipes
from orchestrator import study as studies
from orchestrator.budget import Budget
from orchestrator.errors import UnavailableError, UsageError
from orchestrator.space import Choices, Range
from orchestrator.study import Study, change_budget, check_name, check_unchanged, differences, load
from tests.recipes.data.test_torchvision_sets import write_cifar
from tests.support.photos import write

RECIPE = """
from typing import Literal
from pydantic import Field, model_validator
from recipes.config import DatasetConfig, FitConfig, Part

class Model(Part):
    width: int = Field(8, gt=0, le=64)
    heads: int = Field(2, gt=0)
    rate: float = Field(0.5, ge=0, lt=1)
    shape: Literal["flat", "deep"] = "flat"
    norm: bool = True
    note: str = ""

    @model_validator(mode="after")
    def _fits(self):
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        return self

class Config(Part):
    model: Model = Model()
    fit: FitConfig = FitConfig()
    dataset: DatasetConfig = DatasetConfig()

def train(config, attempt=None):
    yield from ()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A state folder whose cache the tests share."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def folder(tmp_path, home, monkeypatch):
    """An empty current directory."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("ORCH_HOME", str(home))
    return here


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(RECIPE)
    return path


# -- what is taken


def test_study_file_and_defaults_make_a_whole_study():
    study = load(["recipe=cnn"])
    assert study.name == "cnn-digits"
    assert (study.recipe, study.data, study.split_seed, study.seed) == ("cnn", "digits", 0, 0)
    assert study.budget == Budget()
    assert set(study.space).isdisjoint(study.fixed)
    assert {*study.space, *study.fixed} == set(recipes.config.fields(recipes.load("cnn").config_type))


@pytest.mark.parametrize("recipe", recipes.BUILT_IN)
def test_shipped_study_fits_its_recipe(recipe):
    study = load([f"recipe={recipe}", "trials=50"])
    assert study.space
    assert study.budget.trials == 50


def test_command_line_wins_over_the_study_file():
    study = load(["recipe=cnn", "lr=1e-3", "epochs=3", "optimizer=sgd,adamw", "width=24,48"])
    assert study.fixed["lr"] == 0.001
    assert study.fixed["epochs"] == 3
    assert "lr" not in study.space
    assert study.space["optimizer"] == Choices(choices=("sgd", "adamw"))
    assert study.space["width"] == Choices(choices=(24, 48))


def test_study_file_of_the_current_directory_wins(folder):
    (folder / "studies").mkdir()
    (folder / "studies" / "cnn.yaml").write_text("fixed: {epochs: 2}\nspace: {lr: {low: 1e-3, high: 1e-2}}\n")
    study = load(["recipe=cnn"])
    assert study.space == {"lr": Range(low=0.001, high=0.01)}
    assert study.max_epochs == 2


def test_study_keys_are_read_by_their_own_types():
    budget = load(
        ["recipe=cnn", "trials=50", "workers=auto", "timeout=1.5h", "pruner=median", "sampler=random", "export=top:5"]
    ).budget
    assert (budget.trials, budget.workers, budget.timeout_seconds) == (50, 0, 5400)
    assert (budget.pruner, budget.sampler, budget.export, budget.num_exports) == ("median", "random", "top:5", 5)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400)])
def test_timeout_takes_units(text, seconds):
    assert load(["recipe=cnn", f"timeout={text}"]).budget.timeout_seconds == seconds


@pytest.mark.parametrize(("export", "number"), [("best", 1), ("none", 0), ("all", 7), ("top:4", 4)])
def test_export_counts_leaders(export, number):
    assert load(["recipe=cnn", "trials=7", f"export={export}"]).budget.num_exports == number


def test_range_of_a_whole_number_field_is_whole(tiny):
    study = load([f"recipe={tiny}", "width=tag(log,interval(8,64))", "rate=interval(0,0.5)", "epochs=range(2,9,3)"])
    assert study.space["width"] == Range(low=8, high=64, log=True, step=1, integer=True)
    assert study.space["rate"] == Range(low=0, high=0.5)
    assert study.space["epochs"] == Range(low=2, high=8, step=3, integer=True)
    assert study.max_epochs == 8


def test_text_field_takes_what_looks_like_a_number(tiny):
    assert load([f"recipe={tiny}", "note=1e3", "rate=0,0.1"]).fixed["note"] == "1e3"


def test_recipe_without_a_data_field_brings_its_own_data(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(RECIPE.replace("    dataset: DatasetConfig = DatasetConfig()\n", ""))
    study = load([f"recipe={path}", "rate=0,0.1"])
    assert (study.data, study.data_fingerprint, study.split_fingerprint) == ("", "", "")
    assert study.name.startswith("own-")


def test_config_of_a_trial_is_the_fixed_part_and_its_params():
    study = load(["recipe=cnn", "lr=1e-3,1e-2"])
    config = study.config({**{name: searched.ends()[0] for name, searched in study.space.items()}, "lr": 0.01})
    made = recipes.config.make(recipes.load("cnn").config_type, config)
    assert recipes.config.flatten(made) == config
    assert config["lr"] == 0.01


def test_study_survives_json():
    study = load(["recipe=cnn", "trials=50", "batch_norm=true,false", "optimizer=sgd,adamw"])
    assert Study.model_validate(json.loads(json.dumps(study.model_dump(mode="json")))) == study


def test_single_configuration_searches_nothing():
    study = load(["recipe=cnn", "lr=1e-3"], single=True)
    assert study.space == {}
    assert (study.budget.trials, study.budget.pruner, study.budget.export) == (1, "none", "best")
    assert study.fixed["lr"] == 0.001


# -- samplers, and what is tried first

RANGES = ("rate=interval(0,0.5)", "width=tag(log,interval(8,64))", "heads=1")


@pytest.mark.parametrize(
    ("typed", "sampler"),
    [
        ([*RANGES, "pruner=none"], "gp"),
        ([*RANGES, "pruner=none", "trials=100"], "gp"),
        ([*RANGES, "pruner=none", "trials=101"], "tpe"),
        ([*RANGES], "tpe"),
        ([*RANGES, "pruner=none", "norm=true,false"], "tpe"),
        ([*RANGES, "pruner=none", "sampler=random"], "random"),
        ([*RANGES, "sampler=gp"], "gp"),
    ],
)
def test_auto_is_gp_for_few_trials_over_ranges_without_a_pruner(typed, sampler, tiny):
    assert load([f"recipe={tiny}", *typed]).sampler == sampler


def test_main_job_is_searched_by_tpe():
    assert load(["recipe=cnn", "trials=50"]).sampler == "tpe"


def test_sampler_that_does_not_fit_an_existing_study_is_refused(tiny):
    study = load([f"recipe={tiny}", "rate=interval(0,0.5)"])
    with pytest.raises(UsageError, match="sampler=grid needs choices or steps; rate"):
        change_budget(study, ["sampler=grid"])
    assert change_budget(study, ["sampler=qmc"]).sampler == "qmc"


def test_default_of_the_recipe_is_first_where_it_is_asked_for(tiny):
    keys = [f"recipe={tiny}", "rate=interval(0.6,0.9)", "width=range(2,6)", "shape=deep,flat", "heads=1"]
    assert load(keys).queue == ()
    assert load([*keys, "default_first=false"]).queue == ()
    (first,) = load([*keys, "default_first=true"]).queue
    assert first == {"rate": 0.6, "width": 5, "shape": "flat"}, "0.5 and 8 are outside"


@pytest.mark.parametrize("recipe", recipes.BUILT_IN)
def test_default_of_each_shipped_study_can_be_first(recipe):
    study = load([f"recipe={recipe}", "default_first=true"])
    assert study.queue[0].keys() == study.space.keys()
    assert study.identity == load([f"recipe={recipe}"]).identity


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_enqueued_configurations_may_be_partial_and_hold_fixed_fields(tiny, folder, form):
    listed = [{"rate": 0, "norm": False, "width": 8}, {"norm": True}, {"rate": 0, "norm": False}, {}]
    text = (
        json.dumps(listed)
        if form == "json"
        else "- {rate: 0, norm: false, width: 8}\n- norm: true\n- {rate: 0, norm: false}\n- {}\n"
    )
    (folder / "first.x").write_text(text)
    study = load([f"recipe={tiny}", "rate=interval(0,0.5)", "norm=true,false", "enqueue=first.x"])
    assert study.queue == ({"rate": 0.0, "norm": False}, {"norm": True}, {}), "the third is the first again"
    assert type(study.queue[0]["rate"]) is float
    assert Study.model_validate(json.loads(json.dumps(study.model_dump(mode="json")))) == study


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rate: 0.1", "first.yaml: expected a list of configurations"),
        ("[1, 2]", "first.yaml: expected a list of configurations"),
        ("- {rate: 0.1", "first.yaml, line"),
        ("- {rate: 0.1}\n- {rat: 0.1}", "first.yaml, configuration 2: 'rat'; did you mean 'rate'?"),
        ("- {rate: 0.6}", "first.yaml, configuration 1: rate=0.6 is not in what is searched, 0.0 to 0.5"),
        ("- {rate: high}", "rate=high is not in what is searched"),
        ("- {rate: null}", "rate=None is not in what is searched"),
        ("- {rate: true}", "rate=True is not in what is searched"),
        ("- {heads: 3}", "heads=3 is not searched; this study has heads=2"),
        ("- {width: 11}", "width=11 is not in what is searched, 8 to 12 step 2"),
        ("- {width: 8.5}", "width=8.5 is not in what is searched"),
    ],
)
def test_enqueued_configuration_that_the_study_lacks_is_refused_in_one_line(text, complaint, tiny, folder):
    (folder / "first.yaml").write_text(text)
    with pytest.raises(UsageError) as refused:
        load([f"recipe={tiny}", "rate=interval(0,0.5)", "width=range(8,14,2)", "enqueue=first.yaml"])
    assert complaint in str(refused.value)
    assert str(refused.value).isprintable()


def test_enqueued_fields_that_do_not_fit_together_are_refused(tiny, folder):
    (folder / "first.yaml").write_text("- {heads: 3, width: 8}")
    with pytest.raises(UsageError, match=r"^heads=3, width=8 cannot be tried first: heads=3 must divide width=8$"):
        load([f"recipe={tiny}", "heads=1,3", "width=3,9,8", "enqueue=first.yaml"])


CONDITIONED = """
space:
  norm: [true, false]
  rate: {low: 0.0, high: 0.4, when: {norm: true}}
  width: [8, 16]
constraints: ['width * rate <= 4']
"""


def test_enqueued_configurations_know_of_conditions_and_constraints(tiny, folder):
    (folder / "studies").mkdir()
    (folder / "studies" / "tiny.yaml").write_text(CONDITIONED)
    (folder / "first.yaml").write_text("- {norm: false, width: 8}\n- {norm: false, width: 8}\n- {norm: true, width: 8}")
    arguments = [f"recipe={tiny}", "enqueue=first.yaml"]
    assert load([*arguments, "default_first=true"]).queue == (
        {"norm": True, "rate": 0.4, "width": 8},
        {"norm": False, "width": 8},
        {"norm": True, "width": 8},
    )
    for text, complaint in (
        ("- {norm: false, rate: 0.1}", "configuration 1: rate is not searched where norm=False"),
        ("- {norm: true, rate: 0.3, width: 16}", "'width * rate <= 4' does not hold"),
    ):
        (folder / "first.yaml").write_text(text)
        with pytest.raises(UsageError, match=re.escape(complaint)):
            load(arguments)
    assert load(["sampler=auto", "pruner=none", *arguments[:1]]).sampler == "tpe"


# -- names


def test_name_of_a_file_is_its_slug_and_six_digits(tiny, tmp_path):
    name = load([f"recipe={tiny}", "rate=0,0.1"]).name
    assert name.rpartition("-")[2] == "digits"
    assert name.startswith("tiny-")
    other = tmp_path / "elsewhere" / "tiny.py"
    other.parent.mkdir()
    other.write_text(RECIPE)
    assert load([f"recipe={other}", "rate=0,0.1"]).name != name


def test_name_of_a_single_configuration_tells_it_from_others():
    names = [load(["recipe=cnn", f"lr={lr}"], single=True).name for lr in (0.1, 0.1, 0.2)]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("name", ["a", "x" * 200, "<b>bold</b>".replace("/", "|"), "'; DROP TABLE studies; --", "日本"])
def test_name_may_be_any_text_that_names_a_folder(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b",
        "..",
        ".hidden",
        "a\\b",
        "a\nb",
        "a\x00b",
        "a\x7fb",
        "a\x9bb",
        "a\u202eb",
        "a\udc80b",
        "x" * 201,
        "é" * 200,
    ],
)
def test_name_that_names_no_folder_is_refused_in_one_line(name):
    with pytest.raises(UsageError, match="name") as refused:
        check_name(name)
    assert str(refused.value).isprintable()


# -- what is refused


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("trials=50", "recipe= is missing; known: mlp, cnn, resnet, vit, transfer"),
        ("recipe=", "recipe= is missing"),
        ("recipe=cn", "unknown recipe 'cn'; did you mean 'cnn'?"),
        ("recipe=zzz", "unknown recipe 'zzz'; known: cnn, mlp"),
        ("recipe=none.py", "none.py does not exist"),
        ("recipe=cnn recipe=mlp", "recipe is given twice"),
        ("recipe=cnn lr=1 lr=2", "lr is given twice"),
        ("recipe=cnn fifty", "'fifty' is not key=value"),
        ("recipe=cnn lrr=1", "unknown key 'lrr'; did you mean 'lr'?"),
        ("recipe=cnn trails=5", "unknown key 'trails'; did you mean 'trials'?"),
        ("recipe=cnn data=digit", "unknown data 'digit'; did you mean 'digits'?"),
        ("recipe=cnn data=é", "unknown data 'é'; known: cifar10, cifar100, csv:PATH, digits"),
        ("recipe=cnn data=", "unknown data ''; known: cifar10"),
        ("recipe=cnn data=folder:none", "none does not exist"),
        ("recipe=cnn data=csv:none.csv", "none.csv does not exist"),
        ("recipe=cnn data=mnist", "data 'mnist' is not whole in"),
        ("recipe=cnn image_size=8,16", "image_size=8,16: Input should be a valid integer"),
        ("recipe=cnn image_size=-1", "image_size=-1: Input should be greater than or equal to 0"),
        ("recipe=cnn limit=30", "30 images of 10 classes are too few: none is left for val"),
        ("recipe=cnn on_bad_image=skp", "unknown on_bad_image 'skp'; did you mean 'skip'?"),
        ("recipe=cnn trials=0", "trials=0: Input should be greater than 0"),
        ("recipe=cnn trials=-5", "trials=-5: Input should be greater than 0"),
        ("recipe=cnn trials=many", "trials=many: Input should be a valid integer"),
        ("recipe=cnn trials=1.5", "trials=1.5: Input should be a valid integer"),
        ("recipe=cnn workers=0", "workers=0: expected auto or a number of at least 1"),
        ("recipe=cnn workers=-1", "workers=-1: expected auto or a number of at least 1"),
        ("recipe=cnn epochs=0", "epochs=0: Input should be greater than 0"),
        ("recipe=cnn epochs=-3", "epochs=-3: Input should be greater than 0"),
        ("recipe=cnn epochs=1.5", "epochs=1.5: Input should be a valid integer"),
        ("recipe=cnn retries=-1", "retries=-1: Input should be greater than or equal to 0"),
        ("recipe=cnn timeout=0", "timeout=0: expected a duration such as 90, 90s, 30m or 2h"),
        ("recipe=cnn timeout=5x", "timeout=5x: expected a duration"),
        ("recipe=cnn sampler=tpee", "unknown sampler 'tpee'; did you mean 'tpe'?"),
        ("recipe=cnn sampler=grid", "sampler=grid needs choices or steps; lr is a range without"),
        (
            "recipe={tiny} width=range(2,65,2) epochs=range(1,40001) sampler=grid",
            "1280000 configurations; at most 1000000",
        ),
        ("recipe={tiny} rate=0,0.1 sampler=cmaes", "sampler=cmaes needs a range"),
        ("recipe=cnn default_first=yes", "default_first=yes: expected true or false"),
        ("recipe=cnn enqueue=", "enqueue= is empty; expected a file"),
        ("recipe=cnn enqueue=none.yaml", "enqueue=none.yaml does not exist"),
        ("recipe=cnn warm_start=", "warm_start= is empty; expected the name of a study"),
        ("recipe=cnn enqeue=a.yaml", "unknown key 'enqeue'; did you mean 'enqueue'?"),
        ("recipe=cnn pruner=ash", "unknown pruner 'ash'; did you mean 'asha'?"),
        ("recipe=cnn pruner=asha-pause:0", "pruner=asha-pause:0: expected a whole number of epochs"),
        ("recipe=cnn executor=zzz", "unknown executor 'zzz'; known: inline, local"),
        ("recipe=cnn export=top:0", "export=top:0: expected best, all, none or top:K"),
        ("recipe=cnn seed=-1", "seed=-1: Input should be greater than or equal to 0"),
        ("recipe=cnn seed=1,2", "seed=1,2: Input should be a valid integer"),
        ("recipe=cnn split_seed=x", "split_seed=x: Input should be a valid integer"),
        ("recipe=cnn device=cuda:77", "device 'cuda:77' is not there; this machine has:"),
        ("recipe=cnn device=cpu,cuda", "device cannot be searched"),
        ("recipe=cnn devices=1,2", "devices cannot be searched"),
        ("recipe=cnn devices=65", "devices=65: Input should be less than or equal to 64"),
        ("recipe=cnn devices=64 batch_size=32", "batch_size=32 is less than an image for each of devices=64"),
        ("recipe=cnn lr=interval(0.1,0.01)", "low 0.1 is not below high 0.01"),
        ("recipe=cnn lr=tag(log,interval(0,1))", "a log range cannot start from 0"),
        ("recipe=cnn lr=interval(-1,1)", "lr=-1.0: Input should be greater than 0"),
        ("recipe=cnn lr=nan", "lr=nan: Input should be a finite number"),
        ("recipe=cnn lr=high", "lr=high: Input should be a valid number"),
        ("recipe=cnn width=0,24", "width=0: Input should be greater than or equal to 1"),
        ("recipe=cnn depth=interval(1.5,3)", "depth: a range of whole numbers cannot go from 1.5 to 3.0"),
        ("recipe=cnn batch_size=32.5,64", "batch_size=32.5: Input should be a valid integer"),
        ("recipe=cnn optimizer=admw", "unknown optimizer 'admw'; did you mean 'adamw'?"),
        ("recipe=cnn optimizer=sgd,admw", "unknown optimizer 'admw'; did you mean 'adamw'?"),
        ("recipe=cnn optimizer=interval(0,1)", "optimizer is not a number and has no range"),
        ("recipe=cnn batch_norm=interval(0,1)", "batch_norm is not a number and has no range"),
        ("recipe=cnn study=", "a study's name has 1 to 200 characters"),
        ("recipe=cnn study=a/b", "study name 'a/b': no slash"),
        ("recipe={tiny}", "nothing is searched"),
        ("recipe={tiny} rate=0,1", "rate=1: Input should be less than 1"),
    ],
)
def test_bad_argument_is_refused_in_one_line_and_nothing_is_written(typed, complaint, tiny, folder, monkeypatch):
    monkeypatch.setenv("ORCH_HOME", "mlruns")
    with pytest.raises(UsageError) as refused:
        load(typed.format(tiny=tiny).split(" "))
    assert complaint in str(refused.value)
    assert str(refused.value).isprintable()
    assert list(folder.iterdir()) == []


def test_more_devices_than_there_are_gpus_are_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert load(["recipe=cnn", "devices=2"]).fixed["devices"] == 2
    assert load(["recipe=cnn", "devices=3", "device=cpu"]).fixed["devices"] == 3
    with pytest.raises(UsageError, match=r"^devices=3 is more than the 2 GPUs of this machine$"):
        load(["recipe=cnn", "devices=3"])


@pytest.mark.parametrize("typed", ["saturation=0.4", "hue=0.0,0.4", "saturation=interval(0.0,0.4)"])
def test_change_of_colours_that_the_images_lack_is_refused_before_anything_trains(typed):
    with pytest.raises(UsageError, match=r"^\w+=0\.4 needs colour images of 3 channels; these have 1$"):
        load(["recipe=cnn", typed])
    assert load(["recipe=cnn", "saturation=0", "contrast=0.4"]).fixed["contrast"] == 0.4


def test_colours_are_looked_for_in_the_pictures_as_they_are_trained_on(tmp_path):
    write(tmp_path / "photos", 5)
    file = tmp_path / "photos" / "china" / "00.png"
    Image.open(file).resize((30, 20)).save(file)  # of one size only by `image_size`
    study = load(["recipe=cnn", f"data=folder:{tmp_path / 'photos'}", "image_size=16", "saturation=0.4"])
    assert study.fixed["saturation"] == 0.4


def test_fields_that_do_not_fit_together_are_refused_in_the_recipe_s_words(tiny):
    with pytest.raises(UsageError, match=r"^heads=3 must divide width=8$"):
        load([f"recipe={tiny}", "heads=3", "rate=0,0.1"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fixed: {lrr: 1}", "'lrr'; did you mean 'lr'?"),
        ("space: {lr: {low: -1, high: 1}}", "lr=-1: Input should be greater than 0"),
        ("space: {seed: [1, 2]}", "seed is given on the command line, not in a study file"),
        ("fixed: {device: cpu}", "device is given on the command line, not in a study file"),
        ("fixed: {lr: 1e-3}\nspace: {lr: [1e-3, 1e-2]}", "lr is both fixed and searched"),
        ("fixed: {lr: [1, 2]}", "Input should be a valid number"),
        ("fixed: {lr: null}", "Input should be a valid number"),
    ],
)
def test_bad_study_file_is_refused(text, complaint, folder):
    (folder / "studies").mkdir()
    (folder / "studies" / "cnn.yaml").write_text(text)
    with pytest.raises(UsageError) as refused:
        load(["recipe=cnn"])
    assert complaint in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import nothing_of_this_name", "does not import: ModuleNotFoundError"),
        ("def train(:", "does not import: SyntaxError"),
        ("raise SystemExit(0)", "does not import: SystemExit"),
        ("x = 1", "has no Config and no train"),
        ("class Config: pass\ndef train(config): ...", "Config is not a pydantic model"),
        (RECIPE.replace("note: str", "epochs: str"), "names the field 'epochs' twice"),
        (RECIPE.replace('note: str = ""', "note: tuple[int, ...] = (1, 2)"), "note is (1, 2); only numbers"),
    ],
    ids=["import", "syntax", "exit", "empty", "plain class", "field twice", "tuple"],
)
def test_bad_recipe_file_is_refused(source, complaint, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(UsageError) as refused:
        load([f"recipe={path}", "width=8,16"])
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("recipe=cnn lr=1,2", "lr cannot be searched by `orch train`"),
        ("recipe=cnn trials=3", "trials belongs to `orch sweep`"),
        ("recipe=cnn default_first=true", "default_first belongs to `orch sweep`"),
    ],
)
def test_single_configuration_refuses_what_belongs_to_a_sweep(typed, complaint):
    with pytest.raises(UsageError, match=complaint):
        load(typed.split(" "), single=True)


def test_state_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(UnavailableError, match=r"data cannot be kept in .*/file/cache: Not a directory"):
        load(["recipe=cnn"])


def test_folder_of_pictures_is_named_by_its_path_from_wherever_it_is_seen(folder, monkeypatch):
    write(folder / "photos", 5)
    study = load(["recipe=cnn", "data=folder:photos/", "image_size=16"])
    assert re.fullmatch(r"cnn-photos-[0-9a-f]{6}", study.name)
    assert study.fixed["data"] == f"folder:{folder / 'photos'}"
    assert study.fixed["image_size"] == 16
    monkeypatch.chdir(folder / "photos")
    assert load(["recipe=cnn", "data=folder:.", "image_size=16"]) == study
    check_unchanged(study)


def test_words_of_data_may_hold_what_hydra_reads_otherwise(folder):
    write(folder / "my photos, (2024)", 5)
    study = load(["recipe=cnn", "data=folder:my photos, (2024)", "target=a,b", "data_root=1e3"])
    assert (study.fixed["target"], study.fixed["data_root"]) == ("a,b", "1e3")
    assert study.name.startswith("cnn-my-photos-2024-")


# -- identity


@pytest.mark.parametrize(
    "change", ["trials=9", "workers=3", "timeout=5", "sampler=random", "pruner=none", "export=all", "device=cpu"]
)
def test_identity_does_not_hold_how_much_is_trained_or_where(change):
    assert load(["recipe=cnn", change]).identity == load(["recipe=cnn"]).identity


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("epochs=3", "fixed.epochs: 15 -> 3"),
        ("seed=1", "fixed.seed: 0 -> 1"),
        ("momentum=0.5", "fixed.momentum: 0.9 -> 0.5"),
        ("lr=tag(log,interval(1e-3,1e-1))", "space.lr.high: 0.03 -> 0.1"),
        ("split_seed=1", "fixed.split_seed: 0 -> 1"),
    ],
)
def test_identity_holds_what_is_trained(change, line):
    before, after = load(["recipe=cnn"]), load(["recipe=cnn", change])
    assert before.name == after.name
    assert line in differences(before.identity, after.identity)


def test_identity_holds_the_split_and_the_recipe_s_code(tiny):
    arguments = [f"recipe={tiny}", "rate=0,0.1"]
    first = load(arguments)
    lines = differences(first.identity, load([*arguments, "split_seed=1"]).identity)
    assert [line.partition(":")[0] for line in lines] == ["fixed.split_seed", "split"]
    tiny.write_text(f"{RECIPE}# changed\n")
    (line,) = differences(first.identity, load(arguments).identity)
    assert line.startswith("code: ")


def test_identity_does_not_hold_where_the_recipe_s_file_lies(tiny, folder):
    (folder / "tiny.py").write_text(RECIPE)
    assert load(["recipe=tiny.py", "rate=0,0.1"]).identity == load([f"recipe={tiny}", "rate=0,0.1"]).identity


def test_identity_does_not_hold_where_the_data_lie(folder):
    write(folder / "photos", 5)
    first = load(["recipe=cnn", "data=folder:photos", "study=s"])
    (folder / "photos").rename(folder / "moved")
    assert load(["recipe=cnn", "data=folder:moved", "study=s"]).identity == first.identity
    with pytest.raises(UsageError, match=r"folder .*/photos does not exist"):
        check_unchanged(first)
    (folder / "moved" / "china" / "00.png").unlink()
    lines = differences(first.identity, load(["recipe=cnn", "data=folder:moved", "study=s"]).identity)
    assert [line.partition(":")[0] for line in lines] == ["data", "split"]


def test_identity_holds_the_size_of_pictures():
    before, after = load(["recipe=cnn"]), load(["recipe=cnn", "image_size=16"])
    lines = differences(before.identity, after.identity)
    assert [line.partition(":")[0] for line in lines] == ["data", "fixed.image_size"]


def test_differences_name_what_was_added_and_removed():
    old, new = {"a": 1, "space": {"lr": {"low": 1}, "x": 2}}, {"a": 1, "space": {"lr": {"low": 2}, "y": 3}}
    assert differences(old, new) == ["space.lr.low: 1 -> 2", "space.x: 2 -> absent", "space.y: absent -> 3"]


# -- changing the budget


def test_budget_of_an_existing_study_changes_alone():
    study = load(["recipe=cnn", "trials=50", "retries=0"])
    changed = change_budget(study, ["trials=80", "timeout=1h"])
    assert (changed.budget.trials, changed.budget.timeout_seconds, changed.budget.retries) == (80, 3600, 0)
    assert changed.identity == study.identity
    assert change_budget(study, []) == study


@pytest.mark.parametrize("argument", ["lr=1", "recipe=mlp", "data=digits", "seed=1", "study=other", "enqueue=a.yaml"])
def test_other_keys_of_an_existing_study_do_not_change(argument):
    study = load(["recipe=cnn"])
    with pytest.raises(UsageError, match=r"cannot be changed in an existing study; allowed: trials, workers"):
        change_budget(study, [argument])


def test_study_whose_recipe_changed_cannot_go_on(tiny):
    study = load([f"recipe={tiny}", "rate=0,0.1"])
    check_unchanged(study)
    tiny.write_text(f"{RECIPE}# changed\n")
    with pytest.raises(UsageError, match=r"cannot go on, what it is made of has changed: code: \w+… -> \w+…$"):
        check_unchanged(study)
    tiny.unlink()
    with pytest.raises(UsageError, match="does not exist"):
        check_unchanged(study)


def test_study_whose_data_changed_cannot_go_on():
    study = load(["recipe=cnn"])
    check_unchanged(study)
    with pytest.raises(UsageError, match=r"has changed: data: \w+… -> \w+…$"):
        check_unchanged(study.model_copy(update={"data_fingerprint": "f" * 64}))


def test_cifar10_is_searched_with_a_schedule_and_augmentation_of_its_own(tmp_path):
    images = np.arange(60, dtype=np.uint8)[:, None, None].repeat(32, 1).repeat(32, 2)
    halves = {"train": (images[:50], np.arange(50) % 10), "test": (images[50:], np.arange(10))}
    root = write_cifar(tmp_path / "root", halves)
    found = load(["recipe=cnn", "data=cifar10", f"data_root={root}"])
    assert (found.fixed["schedule"], found.fixed["optimizer"], found.fixed["flip"]) == ("onecycle", "sgd", 0.5)
    assert {"crop", "cutout", "label_smoothing", "weight_decay"} <= found.space.keys()
    assert load(["recipe=cnn"]).fixed["schedule"] == "cosine"


@pytest.mark.parametrize("argument", ["balance=sampler", "balance=none,sampler", "loading=resident"])
def test_stream_refuses_what_needs_images_in_any_order(tmp_path, argument):
    from tests.recipes.data.test_shards import write_shard

    for name, start in (("train-0", 0), ("val-0", 10), ("test-0", 20)):
        write_shard(tmp_path / "shards" / f"{name}.tar", range(start, start + 10))
    with pytest.raises(UsageError, match=r"(sampler|resident) needs training images in any order; data"):
        load(["recipe=mlp", f"data=shards:{tmp_path / 'shards'}", argument])
    with pytest.raises(UsageError, match=r"recipe=transfer needs training images in any order; data"):
        load(["recipe=transfer", f"data=shards:{tmp_path / 'shards'}"])
    assert load(["recipe=mlp", f"data=shards:{tmp_path / 'shards'}", "balance=loss"]).data_fingerprint


# -- conditions and constraints

CONDITIONS = """
fixed: {epochs: 2}
space:
  momentum: {low: 0.5, high: 0.99, when: {optimizer: sgd}}
  nesterov: {choices: [true, false], when: {momentum: [0.5, 0.99], optimizer: [sgd, muon]}}
  optimizer: [adamw, sgd]
  width: {low: 8, high: 64, step: 8}
  depth: [1, 2, 3]
constraints: ["width * depth <= 96", "optimizer == 'adamw' or width >= 16"]
"""


@pytest.fixture
def written(folder):
    """Writes the study file of a recipe."""

    def write_file(text, name="cnn"):
        (folder / "studies").mkdir(exist_ok=True)
        (folder / "studies" / f"{name}.yaml").write_text(text)

    return write_file


def test_conditions_and_constraints_are_part_of_a_study_and_of_its_identity(written):
    written(CONDITIONS)
    study = load(["recipe=cnn"])
    assert study.space["momentum"].when == {"optimizer": ("sgd",)}
    assert study.space["width"] == Range(low=8, high=64, step=8, integer=True)
    assert study.constraints == ("width * depth <= 96", "optimizer == 'adamw' or width >= 16")
    assert Study.model_validate(json.loads(json.dumps(study.model_dump(mode="json")))) == study
    json.dumps(study.identity)
    written(CONDITIONS.replace("96", "128").replace("when: {optimizer: sgd}", "when: {optimizer: adamw}"))
    lines = differences(study.identity, load(["recipe=cnn"]).identity)
    assert [line.partition(":")[0] for line in lines] == ["constraints", "space.momentum.when.optimizer"]


def test_identity_of_a_study_without_conditions_is_what_it_was():
    identity = load(["recipe=cnn"]).identity
    assert "constraints" not in identity
    assert identity["space"]["depth"] == {"low": 2, "high": 3, "log": False, "step": 1, "integer": True}
    assert identity["space"]["width"] == {"choices": [16, 24, 32]}


def test_field_whose_condition_does_not_hold_has_the_default_or_the_fixed_value(written):
    written(CONDITIONS)
    study = load(["recipe=cnn"])
    assert study.config({"optimizer": "adamw", "width": 8, "depth": 1})["momentum"] == 0.9
    assert study.config({"optimizer": "sgd", "momentum": 0.6})["momentum"] == 0.6
    written(CONDITIONS.replace("epochs: 2", "epochs: 2, momentum: 0.7"))
    study = load(["recipe=cnn"])
    assert study.config({"optimizer": "adamw", "width": 8, "depth": 1})["momentum"] == 0.7
    assert study.space["momentum"].when


@pytest.mark.parametrize(
    ("typed", "searched"),
    [
        ("optimizer=adamw", {"width", "depth"}),
        ("optimizer=sgd", {"width", "depth", "momentum", "nesterov"}),
        ("optimizer=muon", {"width", "depth"}),  # nesterov's other condition is about momentum, which is not drawn
        ("optimizer=adamw,muon", {"optimizer", "width", "depth"}),
        ("momentum=0.5", {"optimizer", "width", "depth", "nesterov"}),
        ("momentum=0.7", {"optimizer", "width", "depth"}),
    ],
)
def test_conditions_follow_what_is_typed(typed, searched, written):
    written(CONDITIONS)
    assert set(load(["recipe=cnn", typed]).space) == searched


def test_typed_range_replaces_the_file_s_condition_too(written):
    written(CONDITIONS)
    assert load(["recipe=cnn", "momentum=interval(0.1,0.2)"]).space["momentum"] == Range(low=0.1, high=0.2)


def test_most_epochs_are_those_of_a_condition_or_of_its_opposite(written):
    written("fixed: {epochs: 9}\nspace:\n  width: [8, 16]\n  epochs: {choices: [2, 3], when: {width: 16}}\n")
    assert load(["recipe=cnn"]).max_epochs == 9


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("space: {lr: {low: 1, high: 2, when: {optimiser: sgd}}}", "unknown key in studies/cnn.yaml 'optimiser'"),
        ("space: {lr: {low: 1, high: 2, when: {optimizer: sdg}}}", "unknown optimizer 'sdg'; did you mean 'sgd'?"),
        ("space: {lr: {low: 1, high: 2, when: {depth: two}}}", "depth=two: Input should be a valid integer"),
        (
            "space: {optimizer: [sgd, adamw], lr: {low: 1, high: 2, when: {optimizer: [muon, adam]}}}",
            "studies/cnn.yaml: space.lr.when: optimizer is never muon or adam",
        ),
        (
            "space: {lr: {low: 1, high: 2, when: {width: 8}}, width: {low: 8, high: 9, when: {lr: 1}}}",
            "studies/cnn.yaml: space: conditions go in a circle: lr -> width -> lr",
        ),
        ("space: {lr: {low: 1, high: 2, when: {optimizer: sgd}}}", "nothing is searched"),  # it is adamw
        ("space: {lr: [1, 2]}\nconstraints: [lrr < 1]", "unknown key in studies/cnn.yaml 'lrr'; did you mean 'lr'?"),
        ("space: {lr: [1, 2]}\nconstraints: [optimizer < 1]", "1 is a number, expected a text"),
        ("space: {lr: [1, 2]}\nconstraints: [lr > 2]", "constraint 'lr > 2' does not hold"),
        ("space: {width: [8, 9], depth: [1, 2]}\nconstraints: [width < 9, depth < 1]", "none of 200 draws"),
        (
            "fixed: {momentum: 2}\nspace: {momentum: {low: 0, high: 0.5, when: {width: 8}}, width: [8, 9]}",
            "momentum=2:",
        ),
        ("space: {schedule: [cosine, exponential]}", "schedule=exponential needs final_lr above 0"),
        ("space: {lr: {low: 0, high: 1}}", "lr=0: Input should be greater than 0"),
    ],
)
def test_impossible_condition_or_constraint_is_refused_in_one_line(text, complaint, written):
    written(text)
    with pytest.raises(UsageError) as refused:
        load(["recipe=cnn"])
    assert complaint in str(refused.value)
    assert str(refused.value).isprintable()


def test_draw_that_the_recipe_refuses_is_impossible_and_does_not_end_the_study(tiny):
    study = load([f"recipe={tiny}", "width=int(interval(8,64))", "heads=2,3"])
    complaint = studies.feasible(study).complaint
    assert complaint({"width": 9, "heads": 2}) == "heads=2 must divide width=9"
    assert complaint({"width": 10, "heads": 2}) == ""
    with pytest.raises(UsageError, match=r"^heads=3 must divide width=16; none of 200 draws of the space is possible$"):
        load([f"recipe={tiny}", "width=8,16", "heads=3"])


def test_choice_that_the_recipe_always_refuses_is_refused_at_once(tiny):
    with pytest.raises(UsageError, match="heads=3 must divide width="):
        load([f"recipe={tiny}", "width=8,16", "heads=2,3"])


def test_choice_that_only_a_constraint_rules_out_is_let_be(written):
    written("space: {width: [8, 16, 64], depth: [1, 2]}\nconstraints: [width * depth <= 96]\n")
    study = load(["recipe=cnn", "depth=3"])
    complaint = studies.feasible(study).complaint
    assert complaint({"width": 64}) == "constraint 'width * depth <= 96' does not hold"
    assert complaint({"width": 16}) == ""


def test_recipe_is_only_asked_for_what_can_be_drawn_together(written):
    written(
        "fixed: {final_lr: 0.1}\nspace:\n  schedule: [cosine, exponential]\n"
        "  final_lr: {low: 0.0, high: 0.2, when: {schedule: cosine}}\n"
    )
    assert set(load(["recipe=cnn"]).space) == {"schedule", "final_lr"}
    load(["recipe=transfer", "schedule=cosine,exponential", "final_lr=0.0,0.1"])

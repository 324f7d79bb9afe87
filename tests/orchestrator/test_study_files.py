"""Study files: what is read, and what one line says of the rest."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator import study_files
from orchestrator.errors import UsageError
from orchestrator.space import Choices, Range


def read(folder, text):
    path = folder / "s.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return study_files.read(path)


def test_numbers_and_words_are_read_as_yaml_1_2(tmp_path):
    found = read(tmp_path, "fixed: {lr: 1e-3, epochs: 010, schedule: no, batch_norm: true, momentum: 0.5}")
    assert found.fixed == {"lr": 0.001, "epochs": 10, "schedule": "no", "batch_norm": True, "momentum": 0.5}


def test_space_takes_ranges_and_lists_of_choices(tmp_path):
    found = read(
        tmp_path,
        "space:\n"
        "  lr: {low: 1e-4, high: 1e-1, log: true}\n"
        "  width: {low: 16, high: 128, step: 16}\n"
        "  optimizer: [sgd, adamw]\n"
        "  batch_norm: {choices: [true, false]}\n",
    )
    assert found.space == {
        "lr": Range(low=1e-4, high=1e-1, log=True),
        "width": Range(low=16, high=128, step=16),
        "optimizer": Choices(choices=("sgd", "adamw")),
        "batch_norm": Choices(choices=(True, False)),
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected `fixed:` and `space:`, found NoneType"),
        ("- a", "expected `fixed:` and `space:`, found list"),
        ("fixed:\n  lr: 1\n  lr: 2\n", 'line 3: found duplicate key "lr"'),
        ("fixed: {}\nfixed: {}\n", 'line 2: found duplicate key "fixed"'),
        ("fixed:\n  lr: [1,\nspace: {}\n", "line 4: expected ',' or ']'"),
        ("fixed:\n\tlr: 1\n", "line 2: found character '\\t'"),
        ("fixed: {}\n---\nspace: {}\n", "line 2: but found another document"),
        ("fixed: {lr: !foo 3}", "line 1: could not determine a constructor for the tag '!foo'"),
        ("fixed: &a {lr: 1}\nspace: *a\n", "line 1: anchors and aliases are not taken"),
        ("fixed: \0", "not readable as YAML"),
        (b"fixed: \xff", "cannot be read"),
        ("#" + "x" * 200_000, "a study file has at most 100000"),
        ("fixd: {}", "'fixd'; did you mean 'fixed'?"),
        ("fixed: [1]", "fixed: input should be a valid dictionary, found [1]"),
        ("space: {lr: []}", "space.lr: there are no choices"),
        ("space: {lr: {choices: []}}", "space.lr: there are no choices"),
        ("space: {opt: [a, a]}", "space.opt: choices repeat: a, a"),
        ("space: {opt: [[a], b]}", "space.opt.choices.0: expected a number, a word, true or false, found ['a']"),
        ("space: {lr: [.nan, 1]}", "space.lr.choices.0: expected a finite number, found nan"),
        ("space: {lr: 3}", "space.lr: expected a list of choices, or low and high, found 3"),
        ("space: {lr: {low: 2, high: 1}}", "space.lr: low 2 is not below high 1"),
        ("space: {lr: {low: 0, high: 1, log: true}}", "space.lr: a log range cannot start from 0"),
        ("space: {lr: {low: a, high: 1}}", "space.lr.low: expected a finite number, found 'a'"),
        ("space: {lr: {low: 1, high: .inf}}", "space.lr.high: expected a finite number, found inf"),
        ("space: {lr: {low: 1}}", "space.lr.high: field required"),
        ("space: {lr: {low: 1, high: 2, loog: true}}", "'loog'; did you mean 'log'?"),
        ("space: {lr: {low: 1, high: 2, when: 3}}", "space.lr.when: input should be a valid dictionary, found 3"),
        ("space: {lr: {low: 1, high: 2, when: {a: []}}}", "space.lr.when.a: a condition has at least one value"),
        ("space: {lr: {low: 1, high: 2, when: {a: {b: 1}}}}", "space.lr.when.a.0: expected a number, a word"),
        ("space: {a: {low: 1, high: 2, when: {a: 1}}}", "space: conditions go in a circle: a -> a"),
        ("constraints: a < b", "constraints: input should be a valid list, found 'a < b'"),
        ("constraints: [3]", "constraints.0: input should be a valid string, found 3"),
        ("constraints: ['a <']", "constraints: constraint 'a <' cannot be read"),
        ("constraint: ['a < 1']", "'constraint'; did you mean 'constraints'?"),
    ],
)
def test_bad_file_is_refused_in_one_line_with_its_place(tmp_path, text, complaint):
    with pytest.raises(UsageError) as refused:
        read(tmp_path, text)
    message = str(refused.value)
    assert complaint in message
    assert "s.yaml" in message
    assert "\n" not in message


def test_conditions_and_constraints_are_read(tmp_path):
    found = read(
        tmp_path,
        "space:\n"
        "  momentum: {low: 0.5, high: 0.99, when: {optimizer: sgd}}\n"
        "  nesterov: {choices: [true, false], when: {optimizer: [sgd, muon], depth: 2}}\n"
        "constraints:\n"
        "  - width * depth <= 512\n"
        "  - dim % heads == 0\n",
    )
    assert found.space["momentum"].when == {"optimizer": ("sgd",)}
    assert found.space["nesterov"].when == {"optimizer": ("sgd", "muon"), "depth": (2,)}
    assert found.constraints == ["width * depth <= 512", "dim % heads == 0"]


def test_long_chain_of_conditions_is_read_and_a_long_circle_refused_at_once(tmp_path):
    chain = "".join(f"  f{n}: {{choices: [1], when: {{f{n + 1}: 1}}}}\n" for n in range(500))
    began = time.perf_counter()
    assert len(read(tmp_path, f"space:\n{chain}").space) == 500
    with pytest.raises(UsageError, match="conditions go in a circle: f0 -> f1 -> f2"):
        read(tmp_path, f"space:\n{chain}  f500: {{choices: [1], when: {{f0: 1}}}}\n")
    assert time.perf_counter() - began < 5


def test_python_tag_runs_nothing(tmp_path):
    trap = tmp_path / "trap"
    with pytest.raises(UsageError, match="line 1: could not determine a constructor"):
        read(tmp_path, f"fixed: !!python/object/apply:os.mkdir ['{trap}']")
    assert not trap.exists()


@pytest.mark.parametrize(
    "text", ["fixed: " + "[" * 40_000, "fixed: " + "{a: " * 20_000, "- " * 40_000], ids=["lists", "maps", "blocks"]
)
def test_deep_nesting_is_refused_at_once(tmp_path, text):
    began = time.perf_counter()
    with pytest.raises(UsageError, match="line 1: nested more than 8 deep"):
        read(tmp_path, text)
    assert time.perf_counter() - began < 1


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        study_files.read(tmp_path / "none.yaml")


def test_file_in_the_current_directory_wins_over_the_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert study_files.find("cnn") == study_files.SHIPPED / "cnn.yaml"
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "cnn.yaml").touch()
    assert study_files.find("cnn") == Path("studies") / "cnn.yaml"
    assert study_files.find("no-such-recipe") is None


def test_file_for_a_data_set_goes_before_the_recipe_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert study_files.find("cnn", "cifar10") == study_files.SHIPPED / "cnn-cifar10.yaml"
    for data in ("mnist", "folder:cifar10", "../cnn-cifar10"):
        assert study_files.find("cnn", data) == study_files.SHIPPED / "cnn.yaml"


def test_every_shipped_file_is_readable():
    names = {path.stem for path in study_files.SHIPPED.glob("*.yaml")}
    assert names >= {"mlp", "cnn", "resnet", "vit", "transfer"}
    for name in names:
        assert study_files.read(study_files.SHIPPED / f"{name}.yaml").space

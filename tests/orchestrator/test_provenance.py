from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from orchestrator import provenance


def git(*arguments: str, where: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(autouse=True)
def forget():
    provenance.surroundings.cache_clear()
    yield
    provenance.surroundings.cache_clear()


@pytest.fixture
def repository(tmp_path):
    top = tmp_path / "repository"
    (top / "below").mkdir(parents=True)
    git("init", "-q", where=top)
    (top / "recipe.py").write_text("width = 8\n")
    (top / "gone.py").write_text("old = 1\n")
    git("add", ".", where=top)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    git(*author, "commit", "-qm", "first", where=top)
    return top


def test_difference_makes_the_working_tree_of_the_commit(repository, tmp_path, monkeypatch):
    clone = tmp_path / "clone"
    git("clone", "-q", str(repository), str(clone), where=tmp_path)
    (repository / "recipe.py").write_text("width = 16\n")
    (repository / "gone.py").unlink()
    (repository / "below" / "new file.py").write_text("depth = 3\n")
    (repository / ".gitignore").write_text("ignored.py\n")
    (repository / "ignored.py").write_text("secret = 1\n")
    (repository / "weights.bin").write_bytes(bytes(100))
    monkeypatch.chdir(repository / "below")
    diff = provenance.surroundings()["diff"]
    assert "secret" not in diff
    assert "weights" not in diff
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=clone, check=True)
    assert (clone / "recipe.py").read_text() == "width = 16\n"
    assert (clone / "below" / "new file.py").read_text() == "depth = 3\n"
    assert not (clone / "gone.py").exists()


def test_clean_tree_has_no_difference_and_a_large_one_is_said_to_be_left_out(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert provenance._diff() == ""
    (repository / "large.py").write_text("x = 1\n" * provenance.MAX_DIFF)
    assert provenance._diff() == provenance.LEFT_OUT


def test_without_git_or_a_repository_there_is_no_difference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert provenance.surroundings()["diff"] == ""
    monkeypatch.setenv("PATH", "")
    assert provenance._diff() == ""


def test_packages_are_all_that_are_installed():
    expected = {d.metadata["Name"].lower().replace("_", "-").replace(".", "-"): d.version for d in distributions()}
    found = {name.replace(".", "-"): version for name, version in provenance.surroundings()["packages"].items()}
    assert len(found) > 100
    assert found == expected


def test_command_hides_passwords(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/bin/orch", "sweep", "checkpoints=s3://key:hidden@host/a b"])
    assert provenance.surroundings()["command"] == "orch sweep 'checkpoints=s3://key:***@host/a b'"


def test_training_code_changes_with_any_of_its_files(tmp_path, monkeypatch):
    before = provenance._hash_of_package()
    copy = tmp_path / "recipes"
    copy.mkdir()
    for path in Path(provenance.recipes.__file__).parent.rglob("*.py"):
        target = copy / path.relative_to(Path(provenance.recipes.__file__).parent)
        target.parent.mkdir(exist_ok=True, parents=True)
        target.write_bytes(path.read_bytes())
    monkeypatch.setattr(provenance.recipes, "__file__", str(copy / "__init__.py"))
    assert provenance._hash_of_package() == before
    (copy / "data" / "types.py").write_text("# other\n")
    assert provenance._hash_of_package() != before

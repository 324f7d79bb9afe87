"""What is needed to train a trial again: code with its uncommitted changes, packages, machine, command."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import recipes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.study import Study

PACKAGES = ("orch", "torch", "torchvision", "optuna", "mlflow", "numpy")
GIT_SECONDS = 10  # a repository on a slow disk must not hold up a sweep
MAX_DIFF = 1_000_000  # characters; a larger one is left out, and that is said
SOURCES = ("*.py", "*.pyi", "*.yaml", "*.yml", "*.toml", "*.cfg", "*.ini", "*.sh", "*.txt", "*.md")
DIFF = ("diff", "--no-color", "--no-ext-diff")
LEFT_OUT = f"larger than {MAX_DIFF} characters\n"


def collect(study: Study) -> dict[str, Any]:
    """What a study begins with: fingerprints, versions, machine, and the commit of the current directory, if any."""
    return {
        "data_fingerprint": study.data_fingerprint,
        "split_fingerprint": study.split_fingerprint,
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": f"{platform.system()} {platform.machine()}",
        "commit": _git("rev-parse", "HEAD").strip(),
    }


def collect_launch(study: Study) -> dict[str, Any]:
    """All that one launch of a study's training runs with."""
    return {**collect(study), **surroundings(), "recipe_code": study.code_hash}


@functools.cache
def surroundings() -> dict[str, Any]:
    """What does not change while this process lives, beside what `collect` tells.

    `diff` is what git would need to make the working tree of the commit, new source files among it.
    """
    return {
        "training_code": _hash_of_package(),
        "diff": _diff(),
        "packages": _packages(),
        "hardware": _hardware(),
        "command": _without_passwords(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "folder": str(Path.cwd()),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _packages() -> dict[str, str]:
    """Name -> version of all that is installed, by the names of folders: metadata files would take half a second."""
    found: dict[str, str] = {}
    for folder in filter(os.path.isdir, sys.path):
        for entry in os.scandir(folder):
            if match := re.fullmatch(r"(.+)-([^-]+)\.dist-info", entry.name):
                found.setdefault(match[1].replace("_", "-").lower(), match[2])
    return dict(sorted(found.items()))


def _hardware() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _lines("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
    }


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def _hash_of_package() -> str:
    """SHA-256 of all files of the training library, in order."""
    folder, digest = Path(recipes.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _diff() -> str:
    """What is not committed, as `git apply` takes it; new files only if they are source."""
    if not (top := _git("rev-parse", "--show-toplevel").rstrip("\n")):
        return ""
    new = _git("-C", top, "ls-files", "-z", "--others", "--exclude-standard", "--", *SOURCES).split("\0")[:-1]
    whole = _git("-C", top, *DIFF, "HEAD")
    for name in new:
        if len(whole) <= MAX_DIFF:
            whole += _git("-C", top, *DIFF, "--no-index", "--", os.devnull, name, codes=(1,))
    return whole if len(whole) <= MAX_DIFF else LEFT_OUT


def _git(*arguments: str, codes: Sequence[int] = (0,)) -> str:
    return _run("git", *arguments, codes=codes)


def _lines(*command: str) -> list[str]:
    return _run(*command).splitlines()


def _run(*command: str, codes: Sequence[int] = (0,)) -> str:
    """What a command prints; nothing if it is not there, takes too long or ends with another code than these."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode in codes else ""


def _without_passwords(text: str) -> str:
    return re.sub(r"(\w://[^/@:\s]*):[^/@\s]*@", r"\1:***@", text)

"""What a study was made with and where: recorded once, when it is created."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.study import Study

PACKAGES = ("orch", "torch", "torchvision", "optuna", "mlflow", "numpy")


def collect(study: Study) -> dict[str, Any]:
    """Fingerprints, versions, machine, and the git commit of the current directory (empty if it is in none)."""
    return {
        "data_fingerprint": study.data_fingerprint,
        "split_fingerprint": study.split_fingerprint,
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": f"{platform.system()} {platform.machine()}",
        "commit": _commit(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _commit() -> str:
    try:
        shown = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return shown.stdout.strip() if shown.returncode == 0 else ""

"""The project as a newcomer gets it: a wheel installed elsewhere, the source tree gone."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `orch` of an environment that holds the wheel; third-party packages come from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    (wheel,) = folder.glob("*.whl")
    python = folder / "env" / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)],
        check=True,
    )
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # A plain path: what lies there is found, but no .pth in it is read, so no editable install of the source tree.
    Path(site, "third_party.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "env" / "bin" / "orch"


def output(*command):
    return subprocess.run(command, cwd="/", check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow
def test_wheel_runs_a_sweep_without_the_source_tree(installed, tmp_path):
    environment = {**os.environ, "ORCH_HOME": str(tmp_path / "state")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [installed, "sweep", "recipe=mlp", "trials=2", "epochs=1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "winner" in done.stdout
    shown = subprocess.run(
        [
            installed.with_name("python"),
            "-c",
            "import recipes, orchestrator; print(recipes.__file__, orchestrator.__file__)",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(ROOT) not in shown.stdout


def test_makefile_installs_only_once():
    """`make sweep` on an installed tree has nothing to do but the sweep."""
    if not (ROOT / ".venv" / ".installed").exists():
        pytest.skip("this environment was not made by make")
    command = ["make", "--no-print-directory", "-n", "sweep"]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert planned.stdout.strip() == ".venv/bin/orch sweep recipe=cnn trials=50"

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadScopeScheduling

from orchestrator.settings import MLFLOW_VARIABLE, RECORD_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from xdist.remote import Producer


def _postgresql() -> str | None:
    """The newest folder of PostgreSQL's server programs; Debian puts them off the PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    if on_path := shutil.which("initdb"):
        folders.append(Path(on_path).parent)
    whole = [str(folder) for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()]
    return whole[-1] if whole else None


TOOLS: dict[str, Callable[[], str | None]] = {
    "chromium": lambda: shutil.which("chromium"),
    "faketime": lambda: shutil.which("faketime"),
    "postgresql": _postgresql,
}


def require(tool: str) -> Path:
    """Where a tool is (of postgresql, its folder); without it the test is skipped, but under CI=true it fails."""
    found = TOOLS[tool]()
    if found is None:
        reason = f"{tool} is not installed (Debian's package {tool})"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return Path(found)


class ByFile(LoadScopeScheduling):
    """Of several processes that run tests, one has a file's; and all on Ray, whose clusters a machine's others find.

    Marks for xdist's own `loadgroup` would say the same, but it renames tests which pytest 9 takes no notice of.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if Path(file).name.startswith("test_ray") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _only_local_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into a record or a tracking server that whoever runs the tests has set."""
    for variable in (RECORD_VARIABLE, MLFLOW_VARIABLE):
        monkeypatch.setenv(variable, "")

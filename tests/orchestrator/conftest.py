from __future__ import annotations

import shutil

import pytest

from orchestrator.promote import promote
from orchestrator.settings import HOME_VARIABLE
from tests.support import databases
from tests.support.sweeps import Sweep, settings_of
from tests.support.trained import STRONG, WEAK, make_home


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory):
    """A state folder whose mirrors' databases have their tables."""
    return databases.put_into(tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="session")
def two_trials_home(empty_home, tmp_path_factory):
    """A state folder with a study of two trained trials, a weak one and a strong one."""
    return make_home(tmp_path_factory.mktemp("trained") / "mlruns", empty_home, [WEAK, STRONG], export=False)


@pytest.fixture
def two_trials(two_trials_home, monkeypatch):
    """Settings of it."""
    monkeypatch.setenv(HOME_VARIABLE, str(two_trials_home))
    return settings_of(two_trials_home)


@pytest.fixture(scope="session")
def promoted_home(empty_home, tmp_path_factory):
    """A state folder with a promoted model, which is to stay as it is."""
    home = make_home(tmp_path_factory.mktemp("promoted") / "mlruns", empty_home, [STRONG])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        promote(settings_of(home))
    return home


@pytest.fixture
def promoted(promoted_home, monkeypatch):
    """Settings of it."""
    monkeypatch.setenv(HOME_VARIABLE, str(promoted_home))
    return settings_of(promoted_home)


@pytest.fixture
def prepared(empty_home, tmp_path):
    """Settings of a copy of it."""
    home = tmp_path / "mlruns"
    shutil.copytree(empty_home, home)
    return settings_of(home)


@pytest.fixture
def sweep(prepared):
    made = Sweep(prepared)
    yield made
    made.close()


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server."""
    from tests.support.postgres import running

    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def record_url(request, tmp_path):
    """The address of a database without tables, of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'orch.db'}"
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url

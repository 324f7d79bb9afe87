from __future__ import annotations

from pathlib import Path

import pytest

from tests import conftest
from tests.conftest import require


def test_a_missing_tool_skips_a_test_but_fails_it_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conftest.TOOLS, "faketime", lambda: None)
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="faketime is not installed"):
        require("faketime")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="faketime is not installed"):
        require("faketime")


def test_a_tool_that_is_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conftest.TOOLS, "faketime", lambda: "/usr/bin/env")
    assert require("faketime") == Path("/usr/bin/env")

from __future__ import annotations

import pytest

from orchestrator.reports import findings as found
from orchestrator.reports.report import report
from orchestrator.store import Record
from orchestrator.tables import State


@pytest.fixture
def write(tmp_path):
    """Makes the report of a sweep's study, and returns it as text."""

    def written(settings, study=""):
        file = tmp_path / "report.html"
        report(settings, study, file)
        return file.read_text()

    return written


@pytest.fixture
def find():
    """Reads a study as a report does."""

    def read(settings, study="s"):
        record = Record.open(settings.record_url)
        try:
            return found.findings(settings, record, record.study(study))
        finally:
            record.close()

    return read


@pytest.fixture
def varied(sweep):
    """A study of which trials are complete, pruned, failed and open."""
    for number in range(8):
        sweep.run(lr=10 ** -(1 + number / 4), width=16 * (1 + number % 4), optimizer=["sgd", "adamw"][number % 2])
    sweep.run(State.PRUNED, num_epochs=1)
    sweep.run(State.FAILED, num_epochs=0)
    sweep.train(sweep.start(), 1)
    return sweep

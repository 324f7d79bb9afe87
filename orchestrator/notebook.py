"""The command line's words in a notebook or a script: `orchestrator.sweep(recipe="cnn", trials=50)`.

What is heavy is imported by the functions that need it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from orchestrator import tables
    from orchestrator.store import Record
    from orchestrator.study import Study

Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]


def sweep(recipe: str, *, new_version: bool = False, **keys: Value) -> StudyResults:
    """Train, prune and compare many configurations, as `orch sweep` does; the same call again goes on.

    Keys are those of the command line, ranges among them: `lr="tag(log,interval(1e-4,1e-1))"`; a list is a choice.
    With `new_version`, a study that is searched otherwise than before keeps the trials that still fit.

    Raises:
        OrchError: whatever the command would say in one line (`orchestrator.errors`).
    """
    from orchestrator.study import load

    with _workers() as server:
        return _run(load(_typed(recipe=recipe, **keys)), server, new_version=new_version)


def train(recipe: str, **keys: Value) -> StudyResults:
    """Train one configuration, as `orch train` does.

    Raises:
        OrchError: whatever the command would say in one line.
    """
    from orchestrator.study import load

    with _workers() as server:
        return _run(load(_typed(recipe=recipe, **keys), single=True), server)


def resume(study: str, **keys: Value) -> StudyResults:
    """Finish a study that was stopped or killed, with another budget if `keys` say so, as `orch resume` does.

    Raises:
        OrchError: whatever the command would say in one line.
    """
    from orchestrator.names import named
    from orchestrator.recorded import from_record
    from orchestrator.study import change_budget, check_unchanged

    with _workers() as server:
        with _record() as record:
            recorded = from_record(named(record, study))
        check_unchanged(recorded)
        return _run(change_budget(recorded, _typed(**keys)), server, resume=True)


def open_study(name: str = "") -> StudyResults:
    """A study on record, the newest without a name; it may be running.

    Raises:
        OrchError: there is none.
    """
    from orchestrator.names import named

    with _record() as record:
        row = named(record, name) if name else record.newest_study()
    return StudyResults(row.name)


def contrast(*things: str) -> dict[str, Any]:
    """Runs, trials or studies beside each other, as `orch compare A B --json` has them: `contrast("s/3", "s/5")`.

    Raises:
        UsageError: no such run, trial or study.
    """
    from orchestrator import views

    with _record() as record:
        return views.contrast(record, things)


class StudyResults:
    """A study, read from the record whenever it is asked."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def trials(self) -> list[dict[str, Any]]:
        """A row a trial, the best first: `trial`, `value`, `params`, `epochs`, `seconds`, `state`, `run_id`, …"""
        return self.select()

    def select(self, where: str = "", *, sort: str = "") -> list[dict[str, Any]]:
        """The rows for which a filter holds, as of `orch compare --filter --sort`: `select("lr>1e-3", sort="-epochs")`.

        Raises:
            UsageError: it is no filter, or there is no such column.
        """
        from orchestrator import views

        with self._read() as (record, row):
            board = views.board(record, row)
        if where:
            board.filtered(where)
        if sort:
            board.sort(sort)
        return board.rows

    @property
    def front(self) -> list[dict[str, Any]]:
        """Of several objectives, the rows of `trials` that no other beats in all of them: the Pareto front."""
        return [row for row in self.trials if row["front"]]

    @property
    def best(self) -> dict[str, Any] | None:
        """The winner in full, as `orch show` has it: `value`, `config`, `folder`, `files`, …; None without one."""
        from orchestrator import compare, views
        from orchestrator.objectives import of_spec
        from orchestrator.settings import Settings

        with self._read() as (record, row):
            leaders = compare.ranked(record.trials(row.id), record.epochs(row.id), of_spec(row.spec))
            return views.trial_details(record, Settings.from_environment(), row, leaders[0].number) if leaders else None

    @property
    def status(self) -> dict[str, Any]:
        """How the study stands, as `orch status` has it."""
        from orchestrator import views

        with self._read() as (record, row):
            return views.status(record, row)

    def to_pandas(self) -> pd.DataFrame:
        """A row a trial, the best first, with a column for each field that differs (`params.lr`)."""
        import pandas as pd

        rows = [
            {name: value for name, value in row.items() if name not in {"params", "confirmed", "objectives"}}
            | row["objectives"]
            | {f"params.{name}": value for name, value in row["params"].items()}
            for row in self.trials
        ]
        return pd.DataFrame(rows)

    def report(self, file: str | Path | None = None) -> Path:
        """Write the study as one HTML page, to `<study>-report.html` if no file is given, as `orch report` does.

        Raises:
            OrchError: whatever the command would say in one line.
        """
        from orchestrator.reports.report import report
        from orchestrator.settings import Settings

        return report(Settings.from_environment(), self.name, Path(file) if file else None).file

    def __repr__(self) -> str:
        status = self.status
        best = "{objective} {value:.4f} (trial {trial})".format_map(status["best"]) if status["best"] else "none yet"
        ended = sum(status["states"][state] for state in ("complete", "pruned", "failed"))
        return f"<study {self.name}: {ended} of {status['total']} trials ended, best {best}>"

    @contextlib.contextmanager
    def _read(self) -> Iterator[tuple[Record, tables.Study]]:
        with _record() as record:
            yield record, record.study(self.name)


def _typed(**keys: Value) -> list[str]:
    """As one would type it."""
    return [f"{key}={_text(value)}" for key, value in keys.items()]


def _text(value: Value) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextlib.contextmanager
def _workers() -> Iterator[Any]:
    from orchestrator.forkserver import worker_server

    with worker_server() as server:
        yield server


def _run(study: Study, server: Any, *, resume: bool = False, new_version: bool = False) -> StudyResults:
    from orchestrator import coordinator, live
    from orchestrator.settings import Settings

    with live.monitor() as monitor:
        settings = Settings.from_environment()
        outcome = coordinator.run(study, settings, monitor, server, resume=resume, new_version=new_version)
    return StudyResults(outcome.study.name)


@contextlib.contextmanager
def _record() -> Iterator[Record]:
    from orchestrator.settings import Settings
    from orchestrator.store import Record

    record = Record.open(Settings.from_environment().record_url)
    try:
        yield record
    finally:
        record.close()

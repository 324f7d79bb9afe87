"""The rows of a leaderboard by columns: what can be sorted, filtered and shown of a trial. Pure."""

from __future__ import annotations

import csv
import functools
import io
from typing import TYPE_CHECKING, Any

from orchestrator import filters
from orchestrator.constraints import Kind, kind_of
from orchestrator.errors import printable
from orchestrator.tables import Reason, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from orchestrator.tables import Trial

    Row = Mapping[str, Any]

OF_ROW = ("trial", "value", "epochs", "seconds", "state", "reason", "message", "run_id", "confirms", "front")
WORDS = {"state": [*State], "reason": [*Reason]}


class Board:
    """A leaderboard with all that is known of its trials.

    Columns are those of a row, the objective, every field of the configuration, the metrics of the best epoch, and
    `mean` of further seeds, in this order where names are the same; `config.epochs` and `metrics.epochs` name one of
    the latter. `told` has the metrics of each trial's best epoch.
    """

    def __init__(
        self, rows: list[dict[str, Any]], trials: Iterable[Trial], told: Mapping[int, Mapping[str, float]]
    ) -> None:
        self.rows = rows
        self._configs = {trial.number: trial.config for trial in trials}
        self._told = told
        self._objective = str(rows[0]["objective"]) if rows else "value"
        self.columns = self._columns()

    def _columns(self) -> dict[str, Callable[[Row], Any]]:
        found: dict[str, Callable[[Row], Any]] = {name: functools.partial(_of_row, name) for name in OF_ROW}
        found |= {self._objective: functools.partial(_of_row, "value"), "mean": _mean}
        fields, metrics = _names(self._configs.values()), _names(self._told.values())
        of_field = {name: functools.partial(self._field, name) for name in fields}
        of_metric = {name: functools.partial(self._metric, name) for name in metrics}
        found |= {name: cell for name, cell in (of_metric | of_field).items() if name not in found}
        found |= {f"config.{name}": cell for name, cell in of_field.items()}
        return found | {f"metrics.{name}": cell for name, cell in of_metric.items()}

    def _field(self, name: str, row: Row) -> Any:
        differing = row["params"]  # where a field that was not drawn is None
        return differing[name] if name in differing else self._configs[row["trial"]].get(name)

    def _metric(self, name: str, row: Row) -> Any:
        return self._told.get(row["trial"], {}).get(name)

    def shown(self) -> list[str]:
        """The columns of a table, unless others are named."""
        several: Mapping[str, float] = next((row["objectives"] for row in self.rows if row["objectives"]), {})
        params = self.rows[0]["params"] if self.rows else {}
        names = ["trial", self._objective, *several, *(["front"] if several else [])]
        names += ["mean"] if any(row["confirmed"] for row in self.rows) else []
        names += [name if name not in OF_ROW else f"config.{name}" for name in params]
        return list(dict.fromkeys([*names, "epochs", "seconds", "state", "reason", "run_id"]))

    def check(self, names: Sequence[str]) -> None:
        """See that there are such columns.

        Raises:
            UsageError: there is none of one of the names.
        """
        for name in names:
            if name not in self.columns:
                raise filters.unknown_column(name, self.columns)

    def kinds(self, name: str) -> set[Kind]:
        """What the values of a column are; nothing where all are lacking."""
        types = {type(self.columns[name](row)) for row in self.rows}
        return {kind_of(each) for each in types - {type(None)}}

    def filtered(self, text: str) -> None:
        """Keep the rows for which a filter holds.

        Raises:
            UsageError: as of `filters.parse`.
        """
        read = filters.parse(text, self.columns, self.kinds, WORDS)
        cells = {name: self.columns[name] for name in read.columns}
        self.rows = [row for row in self.rows if read.holds({name: cell(row) for name, cell in cells.items()})]

    def sort(self, text: str) -> None:
        """Sort by columns, `state,-value` by two; what begins with `-` from large to small. What is lacking is last.

        Raises:
            UsageError: no such column.
        """
        names = [name.strip() for name in text.split(",")]
        self.check([name.removeprefix("-") for name in names])
        for name in reversed(names):  # a sort leaves rows that are equal in their order
            cell = self.columns[name.removeprefix("-")]
            values = {id(row): cell(row) for row in self.rows}
            there = [row for row in self.rows if values[id(row)] is not None]
            there.sort(key=lambda row: _order(values[id(row)]), reverse=name.startswith("-"))
            self.rows = there + [row for row in self.rows if values[id(row)] is None]

    def cells(self, names: Sequence[str]) -> list[list[Any]]:
        """The values of some columns, a line each row."""
        self.check(names)
        chosen = [self.columns[name] for name in names]
        return [[cell(row) for cell in chosen] for row in self.rows]


def as_csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Comma-separated values (RFC 4180, but with plain line ends); what is lacking is empty."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerows(
        [[printable(cell) if isinstance(cell, str) else cell for cell in line] for line in (header, *lines)]
    )
    return written.getvalue()


def _names(of: Iterable[Mapping[str, Any]]) -> list[str]:
    """All keys, in the order in which they come."""
    found: dict[str, Any] = {}
    for each in of:
        found |= each
    return list(found)


def _of_row(name: str, row: Row) -> Any:
    return row[name]


def _mean(row: Row) -> float | None:
    seeds = row["confirmed"]
    return None if seeds is None else float(seeds["mean"])


def _order(value: Any) -> tuple[bool, Any]:
    """Numbers before texts, where a column has both; lists and the like by how they are written."""
    is_number = isinstance(value, int | float)
    return (not is_number, value if is_number else str(value))

"""Which study a name means: a study may have versions, and its name goes on to the newest.

The first version is called NAME; later ones are studies of their own, NAME@2, NAME@3, …, with folders, mirrors and
leases of these names, so that nothing of an earlier one ever changes. Who says NAME means the newest; NAME@1 is the
first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqlalchemy import select

from orchestrator.errors import UsageError
from orchestrator.tables import Study

if TYPE_CHECKING:
    from orchestrator.store import Record

NUMBERED = re.compile(r".@\d+$")  # how names of versions end


def named(record: Record, reference: str) -> Study:
    """The study that a name means.

    Raises:
        UnknownNameError: there is none.
    """
    first, _, number = reference.rpartition("@")
    found = _newest(record, reference) or record.find_study(reference)
    if found is None and number == "1":
        found = record.find_study(first)
    return found or record.study(reference)  # whose error offers the nearest name


def is_taken(record: Record, name: str) -> bool:
    """Whether there is a study of that very name, or a later version of one that may be gone."""
    return record.find_study(name) is not None or _newest(record, name) is not None


def title(record: Record, row: Study) -> str:
    """What to call a study so that no other is meant."""
    return row.name if _newest(record, row.name) is None else f"{row.name}@1"


def family(row: Study) -> str:
    """The name of a study's first version, by which all are called."""
    version = row.spec.get("version")
    return str(version["of"]) if version else row.name


def is_newest(record: Record, row: Study) -> bool:
    """Whether a study has no later version."""
    newest = _newest(record, family(row))
    return newest is None or newest.id <= row.id


def check_open(record: Record, row: Study) -> None:
    """See that a study may change.

    Raises:
        UsageError: it is archived, or has a later version.
    """
    check_listed(row)
    if not is_newest(record, row):
        newest = named(record, family(row)).name
        raise UsageError(f"{title(record, row)} stays as it is, since {newest} is a later version of it")


def check_listed(row: Study) -> None:
    """See that a study is not put away.

    Raises:
        UsageError: it is.
    """
    if row.is_archived:
        raise UsageError(f"study {row.name!r} is archived; `orch archive {row.name} --restore` brings it back")


def origin(record: Record, row: Study, number: int) -> tuple[Study, int] | None:
    """The study and number of the trial that was taken over as this one; None if it was not, or that study is gone."""
    version = row.spec.get("version")
    if not version or number >= len(version["kept"]):
        return None
    former = record.find_study(version["former"])
    return (former, version["kept"][number]) if former else None


def _newest(record: Record, first: str) -> Study | None:
    """The newest of the later versions of a study."""
    of = Study.spec[("version", "of")].as_string()
    with record.read() as session:
        return session.scalar(select(Study).where(of == first).order_by(Study.id.desc()).limit(1))

"""The append-only ledger of promotions: which version an alias was moved to, by whom, on what figures.

It is written ahead: an entry of a kind in `BEGUN` before the alias moves, one of a kind in `DONE` after. Either of them
is proof that a version is ours, and of its bytes.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from orchestrator.errors import UnknownNameError, UsageError
from orchestrator.tables import Promotion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.leases import Lease
    from orchestrator.store import Record

BEGUN = {"promote": "promoting", "rollback": "rolling back"}
DONE = {begun: done for done, begun in BEGUN.items()}


def entries(record: Record, model: str) -> Sequence[Promotion]:
    """All that was written of a model, the newest last.

    Raises:
        UnknownNameError: nothing was promoted under that name.
    """
    found = _entries(record, model)
    if not found:
        with record.read() as session:
            raise UnknownNameError("model", model, session.scalars(select(Promotion.model).distinct()))
    return found


def moves(record: Record, model: str) -> list[Promotion]:
    """The moves of a model's aliases, the newest last; one of a kind in `DONE` was begun, and not ended.

    Raises:
        UnknownNameError: nothing was promoted under that name.
    """
    found = entries(record, model)
    open_ones = {alias: unfinished(record, model, alias) for alias in {entry.alias for entry in found}}
    last = {entry.alias: entry for entry in found}
    return [entry for entry in found if entry.kind in BEGUN or (open_ones[entry.alias] and last[entry.alias] is entry)]


def find_file(record: Record, model: str, sha256: str) -> Promotion | None:
    """The newest move to a version that has these bytes, or None."""
    found = (entry for entry in reversed(_entries(record, model)) if entry.kind in BEGUN)
    return next((entry for entry in found if entry.sha256 == sha256), None)


def find(record: Record, model: str, version: str) -> Promotion | None:
    """The newest entry on a version, or None."""
    return next((entry for entry in reversed(_entries(record, model)) if entry.to_version == version), None)


def entry(record: Record, model: str, version: str) -> Promotion:
    """The newest entry on a version.

    Raises:
        UnknownNameError: nothing was promoted under that name.
        UsageError: another program made that version.
    """
    found = find(record, model, version)
    if found is None:
        known = ", ".join(sorted({entry.to_version for entry in entries(record, model)}, key=int))
        raise UsageError(f"version {version} of model {model!r} is none that `orch promote` made; those are: {known}")
    return found


def begin(record: Record, lease: Lease, entry: Promotion) -> None:
    """Write that the move of `entry` is about to be made.

    Raises:
        FencedError: this process slept and another holds the lease now.
    """
    _append(record, lease, copied(entry, kind=BEGUN[entry.kind]))


def end(record: Record, lease: Lease, entry: Promotion) -> None:
    """Write that the move of `entry` is made."""
    _append(record, lease, copied(entry, kind=entry.kind))


def has_versions_of(record: Record, study: str) -> bool:
    """Whether a version was ever made of a trial of a study."""
    with record.read() as session:
        return session.scalar(select(Promotion.id).where(Promotion.study == study).limit(1)) is not None


def unfinished(record: Record, model: str, alias: str) -> Promotion | None:
    """The move of an alias that was begun last and not ended, or None."""
    last = next((entry for entry in reversed(_entries(record, model)) if entry.alias == alias), None)
    if last is None or last.kind not in DONE:
        return None
    return copied(last, kind=DONE[last.kind], who=last.who)


def copied(entry: Promotion, **changes: Any) -> Promotion:
    """A new entry like `entry` but for `changes`, of now."""
    columns = [column.key for column in Promotion.__table__.columns if column.key != "id"]
    values = {name: getattr(entry, name) for name in columns}
    return Promotion(**{**values, "recorded_at": time.time(), **changes})


def user() -> str:
    """Who this is, as `name@host`."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # in a container a user may be a mere number
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def _append(record: Record, lease: Lease, entry: Promotion) -> None:
    with record.write(lease) as session:
        session.add(entry)


def _entries(record: Record, model: str) -> Sequence[Promotion]:
    with record.read() as session:
        return session.scalars(select(Promotion).where(Promotion.model == model).order_by(Promotion.id)).all()

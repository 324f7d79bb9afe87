"""The tables of the record, as SQLAlchemy models.

All times are Unix seconds; JSON columns hold plain JSON values. Rows come back detached: read them, never write them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, Enum, ForeignKey, Index, Integer, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MAX_NAME_LENGTH = 200
ARCHIVED = "archived_at"  # key of the spec of a study that is put away
FREED = "weights were freed by "  # how the message of a trial begins that has none any more
PARENT = -1  # stands for the study itself where a trial's number is asked for

# SQLite counts up by itself only in a column of its own INTEGER type.
_Id = BigInteger().with_variant(Integer, "sqlite")


class State(StrEnum):
    """What a trial is doing, or how it ended."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"

    @property
    def finished(self) -> bool:
        """Whether a trial in this state will never run again."""
        return self in {State.COMPLETE, State.PRUNED, State.FAILED}


class Reason(StrEnum):
    """Why a trial failed, or an attempt ended early."""

    ERROR = "error"
    OOM = "oom"
    DIVERGED = "diverged"
    LOST = "lost"
    INTERRUPTED = "interrupted"  # of attempts only: the coordinator ended, which costs no retry


class Change(StrEnum):
    """What a row of `changes` says was written."""

    STUDY = "study"
    TRIAL = "trial"
    EPOCH = "epoch"
    EXPORT = "export"


def _words(enum: type[StrEnum]) -> Enum:
    """A text column that holds an enum's values, not its members' names."""
    return Enum(enum, native_enum=False, length=16, values_callable=lambda members: [m.value for m in members])


class Base(DeclarativeBase):
    """Declarative base of all tables."""

    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: JSON,
        list[Any]: JSON,
        State: _words(State),
        Reason: _words(Reason),
        Change: _words(Change),
    }


class Meta(Base):
    """Facts about the database itself."""

    __tablename__ = "meta"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(256))


class Study(Base):
    """One search: what is searched, over what, for how many trials."""

    __tablename__ = "studies"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), unique=True)
    recipe: Mapped[str]
    data: Mapped[str]
    spec: Mapped[dict[str, Any]]  # `study.Study` as JSON
    identity: Mapped[dict[str, Any]]  # what may not change; see `study.Study.identity`
    created_at: Mapped[float]

    @property
    def is_archived(self) -> bool:
        """Whether it is put away; it is there all the same for who names it."""
        return ARCHIVED in self.spec


class Trial(Base):
    """One configuration; it keeps its number over all its attempts."""

    __tablename__ = "trials"
    __table_args__ = (UniqueConstraint("study_id", "number"),)
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    number: Mapped[int]
    state: Mapped[State]
    params: Mapped[dict[str, Any]]  # the searched fields
    config: Mapped[dict[str, Any]]  # every field, flat
    threads: Mapped[int]  # part of the bits, so kept over all attempts
    confirms: Mapped[int | None]  # number of the trial whose configuration it repeats with another seed
    # The objective (val_accuracy, where images have classes) of the best epoch; before a trial has ended, of the best
    # up to where it was last paused, if it was.
    value: Mapped[float | None]
    best_epoch: Mapped[int | None]
    reason: Mapped[Reason | None]
    message: Mapped[str | None]  # one line
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]

    @property
    def is_freed(self) -> bool:
        """Whether it ended well and its weights were removed since; its message says by what."""
        return self.state in {State.COMPLETE, State.PRUNED} and (self.message or "").startswith(FREED)


class Attempt(Base):
    """One go at a trial, in a folder of its own."""

    __tablename__ = "attempts"
    trial_id: Mapped[int] = mapped_column(ForeignKey("trials.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[State]
    worker: Mapped[str]
    launch: Mapped[int | None] = mapped_column(BigInteger)  # of which it was; None if it was before there were any
    device: Mapped[str]  # cpu, mps or cuda:N, as the machine counts them
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    reason: Mapped[Reason | None]
    traceback: Mapped[str | None]
    manifest: Mapped[dict[str, Any] | None]  # file name -> SHA-256, of the files that count


class Launch(Base):
    """One run of the coordinator of a study, and what it ran with: code, packages, machine."""

    __tablename__ = "launches"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    study_id: Mapped[int] = mapped_column(index=True)  # which may be gone: a later version of it keeps attempts of it
    provenance: Mapped[dict[str, Any]]  # see `provenance.collect_launch`
    started_at: Mapped[float]


class Epoch(Base):
    """One finished epoch of a trial; recorded once, whichever attempt trained it."""

    __tablename__ = "epochs"
    trial_id: Mapped[int] = mapped_column(ForeignKey("trials.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)  # 1-based
    attempt: Mapped[int]
    metrics: Mapped[dict[str, Any]]
    seconds: Mapped[float]
    recorded_at: Mapped[float]


class Sample(Base):
    """How busy a trial's machine was at a moment of its training."""

    __tablename__ = "samples"
    trial_id: Mapped[int] = mapped_column(ForeignKey("trials.id"), primary_key=True)
    recorded_at: Mapped[float] = mapped_column(primary_key=True)  # by the worker's clock
    metrics: Mapped[dict[str, Any]]


class Export(Base):
    """The ONNX file of a trial's best epoch, in the folder of its last attempt; or why there is none (`error`)."""

    __tablename__ = "exports"
    trial_id: Mapped[int] = mapped_column(ForeignKey("trials.id"), primary_key=True)
    file: Mapped[str]  # path relative to the state folder
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    max_difference: Mapped[float]  # of the outputs, ONNX against PyTorch, on real validation images
    error: Mapped[str | None]
    recorded_at: Mapped[float]


class Promotion(Base):
    """The append-only ledger: which version an alias was moved to, by whom, on what figures."""

    __tablename__ = "promotions"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    model: Mapped[str]
    kind: Mapped[str] = mapped_column(String(16))  # promote, rollback
    from_version: Mapped[str | None]
    to_version: Mapped[str]
    study: Mapped[str]
    trial: Mapped[int]
    run_id: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))  # of the ONNX file
    # Accuracy, or what the task has in its place; the column has the name that it was first written under.
    test_score: Mapped[float] = mapped_column("test_accuracy", key="test_score")
    gates: Mapped[list[Any]]
    who: Mapped[str]
    alias: Mapped[str] = mapped_column(String(255), server_default="champion")
    reason: Mapped[str | None]  # why it was promoted though a gate said no
    figures: Mapped[dict[str, Any] | None]  # metrics on the test images, size and latency
    recorded_at: Mapped[float]


class Command(Base):
    """What another process asks of the one that runs a study."""

    __tablename__ = "commands"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    study_id: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))  # stop, pause, resume, set, retry
    arguments: Mapped[dict[str, Any]]
    issued_at: Mapped[float]
    answer: Mapped[str | None]  # one line; None until it is carried out


class LeaseRow(Base):
    """Who may write what `name` stands for; see `orchestrator.leases`."""

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH + 32), primary_key=True)
    token: Mapped[int]  # grows with each holder
    counter: Mapped[int]  # grows while the holder lives
    holder: Mapped[dict[str, Any] | None]  # host, boot, pid, started, and paused if it is; None when released


class ChangeRow(Base):
    """The order in which a study's facts were written; mirrors follow it with a cursor."""

    __tablename__ = "changes"
    __table_args__ = (Index("changes_by_study", "study_id", "seq"), {"sqlite_autoincrement": True})
    seq: Mapped[int] = mapped_column(_Id, primary_key=True)
    study_id: Mapped[int]
    kind: Mapped[Change]
    trial: Mapped[int | None]
    epoch: Mapped[int | None]


class Cursor(Base):
    """How far a mirror has brought a study."""

    __tablename__ = "cursors"
    mirror: Mapped[str] = mapped_column(String(64), primary_key=True)
    study_id: Mapped[int] = mapped_column(primary_key=True)
    seq: Mapped[int]


class MirrorRun(Base):
    """The MLflow run of a trial, or of the study itself (`trial` -1)."""

    __tablename__ = "mirror_runs"
    study_id: Mapped[int] = mapped_column(primary_key=True)
    trial: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(String(64))

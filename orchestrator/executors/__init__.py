"""Where jobs run: one protocol over slots, kept by every executor, held by one contract suite.

A job is sent to a free slot as plain data; what happens to it comes back as events, in order for each job. Jobs and
events are frozen dataclasses that travel as JSON, so that a slot may be a thread, a process or another machine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from orchestrator.tables import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

Decision = Literal["go", "stop", "pause"]


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One attempt at a trial, in full."""

    study: str
    trial: int
    attempt: int
    recipe: str
    config: dict[str, Any]  # flat
    folder: str  # of this attempt
    earlier_folders: tuple[str, ...]  # of earlier attempts, the newest first: where to resume from
    num_recorded_epochs: int
    decision_epochs: tuple[int, ...]
    threads: int
    objectives: tuple[str, ...] = ()  # metrics that the first epoch must have, beside what every one must
    alone: bool = False  # it gets its slot's memory with nothing of other jobs left there
    system_seconds: float = 0.0  # between two looks at the load of the machine; 0 is none


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """One ONNX export of a finished attempt."""

    study: str
    trial: int
    attempt: int
    recipe: str
    config: dict[str, Any]
    folder: str


Job = TrialSpec | ExportSpec


@dataclass(frozen=True, kw_only=True)
class EpochEnded:
    """An epoch is trained and its checkpoint durable; at a decision epoch the job now waits."""

    trial: int
    attempt: int
    number: int
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SystemSampled:
    """How busy the machine and the job's process are while it trains, by MLflow's names."""

    trial: int
    attempt: int
    metrics: dict[str, float]
    at: float


@dataclass(frozen=True, kw_only=True)
class TrialEnded:
    """The recipe ended, or was told to stop (`stopped`); `manifest` is file name -> SHA-256."""

    trial: int
    attempt: int
    stopped: bool
    manifest: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class TrialPaused:
    """The trial was told to pause: its checkpoint is in the attempt's folder, for a later attempt; the slot is free."""

    trial: int
    attempt: int
    manifest: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class TrialFailed:
    """The attempt failed, or its worker was lost; the slot is free again. So ends an export whose worker was lost."""

    trial: int
    attempt: int
    reason: Reason
    message: str
    traceback: str = ""
    disk_full: bool = False


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An ONNX file was written beside the weights and compared with PyTorch; `error` says why not."""

    trial: int
    attempt: int
    file: str = ""
    sha256: str = ""
    size_bytes: int = 0
    max_difference: float = 0.0
    error: str = ""


BEGINS = " begins: trial "  # in the line of a worker's log with which a job begins


def begins(study: str, trial: int, attempt: int) -> str:
    """The end of that line."""
    return f"{BEGINS}{trial} of {study}, attempt {attempt}"


Event = EpochEnded | SystemSampled | TrialEnded | TrialPaused | TrialFailed | Exported
UNDER_WAY = (EpochEnded, SystemSampled)  # all others are a job's end
_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (TrialSpec, ExportSpec, EpochEnded, SystemSampled, TrialEnded, TrialPaused, TrialFailed, Exported)
}


def encode(message: Job | Event) -> dict[str, Any]:
    """Return the JSON form of a job or an event."""
    return {"kind": type(message).__name__, **asdict(message)}


def decode(message: dict[str, Any]) -> Any:
    """Return the job or event of which `encode` made `message`."""
    fields = {key: value for key, value in message.items() if key != "kind"}
    if "reason" in fields:
        fields["reason"] = Reason(fields["reason"])
    return _TYPES[message["kind"]](**fields)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place for one job at a time: a set of devices on one host."""

    name: str
    threads: int
    devices: tuple[str, ...] = ()
    host: str = ""  # its machine, if that may be another than this one

    @property
    def memories(self) -> tuple[tuple[str, str], ...]:
        """What a job here fills, by names that slots share: each of its GPUs, or else its machine's own memory."""
        return tuple((self.host, device) for device in self.devices or ("",))


class Executor(Protocol):
    """Slots, and the jobs on them."""

    @property
    def slots(self) -> Sequence[Slot]:
        """All slots, free or not."""

    def free_slots(self) -> list[Slot]:
        """The slots that could take a job now."""

    def submit(self, job: Job, slot: Slot) -> None:
        """Start `job` on a free slot."""

    def events(self, timeout_seconds: float) -> list[Event]:
        """What happened since the last call, waiting at most so long for something to happen."""

    def decide(self, trial: int, decision: Decision) -> None:
        """Answer a job that waits at a decision epoch."""

    def close(self) -> None:
        """End all jobs at once; what their checkpoints hold is safe."""

"""A trial trained again from what is on record of it, and its losses held against those of then."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import provenance, recorded
from orchestrator.errors import UnavailableError, UsageError
from orchestrator.executors import EpochEnded, TrialFailed, TrialSpec
from orchestrator.executors.local import LocalExecutor, plan_slots, visible_gpus
from orchestrator.executors.start import device_of, placed
from orchestrator.store import Record
from orchestrator.study import made_of
from recipes.speed import results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from orchestrator.executors import Executor, Slot
    from orchestrator.forkserver import ForkServer
    from orchestrator.settings import Settings
    from orchestrator.study import Study
    from orchestrator.tables import Attempt, Epoch, Trial

# Of a loss, relative: other threads or another build of torch add in another order, which training amplifies.
TOLERANCE = 0.02
LOSSES = ("train_loss", "val_loss")
POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """How a trial went the second time: its `verdict`, and what is other than it was."""

    trial: str
    verdict: str  # same bits, within tolerance, or other losses
    epochs: int  # that were compared
    first_other_epoch: int | None  # the first with a metric that is not the same to the bit
    largest_difference: float  # of a loss, relative
    metrics: tuple[str, ...]  # that were compared
    same: dict[str, str]  # of code, packages, data, seed, threads, device: what is as it was
    differs: dict[str, str]  # and what is not

    @property
    def holds(self) -> bool:
        """Whether the losses are those of then, but for the order of additions."""
        return self.verdict != OTHER

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def line(self) -> str:
        """The verdict in a line."""
        begin = f"{self.trial}: {self.verdict}"
        if self.first_other_epoch is None:
            return f"{begin}: {', '.join(self.metrics)} of {self.epochs} epoch(s) are equal to the last digit"
        largest = f"a loss is off by {self.largest_difference:.2g} of itself at most, {TOLERANCE:g} is tolerated"
        return f"{begin}: from epoch {self.first_other_epoch} of {self.epochs} on; {largest}"


SAME, NEAR, OTHER = "same bits", "within tolerance", "other losses"


def reproduce(
    settings: Settings,
    study: str,
    number: int,
    server: ForkServer | None = None,
    *,
    check: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> Reproduced:
    """Train a trial again, or its first `check` epochs, with the threads it had; nothing of it is kept.

    Raises:
        UnknownNameError: no such study.
        UsageError: nothing of it was trained, it was imported, or its recipe or its data are gone.
        UnavailableError: the training failed.
    """
    with closing(Record.open(settings.record_url)) as record:
        row = record.study(study)
        recorded_study, trial = recorded.from_record(row), record.trial(row.id, number)
        epochs = record.epochs(row.id).get(number, [])
        if trial is None or not epochs:
            raise UsageError(f"trial {number} of {study!r} has no epochs to compare")
        attempt = record.attempts(trial.id)[-1]
        then = record.provenance(row, attempt)
    wanted = epochs[:check] if check else epochs
    slot = _slot(trial, attempt)
    same, differs = _compared(recorded_study, trial, attempt, then, slot)
    again = list(_train(recorded_study, trial, slot, server, len(wanted), tell))
    return replace(_judged(wanted, again), trial=f"{study}/{number}", same=same, differs=differs)


# -- training


def _slot(trial: Trial, attempt: Attempt) -> Slot:
    """A slot as the trial had one: its threads, and a GPU if it had one and there is one."""
    device = "cpu" if attempt.device == "cpu" else str(trial.config.get("device", "auto"))
    (slot,) = plan_slots(1, visible_gpus(device), num_useful=1, num_devices=int(trial.config.get("devices", 1)))
    return replace(slot, threads=trial.threads)


def _train(
    study: Study,
    trial: Trial,
    slot: Slot,
    server: ForkServer | None,
    num_epochs: int,
    tell: Callable[[str], None],
) -> Iterator[EpochEnded]:
    """The first epochs of a trial in a process of its own, in a folder that goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="orch-reproduce-") as folder:
        spec = TrialSpec(
            study=study.name,
            trial=trial.number,
            attempt=1,
            recipe=study.recipe,
            config=placed(trial.config, slot),
            folder=str(Path(folder) / "attempt"),
            earlier_folders=(),
            num_recorded_epochs=0,
            decision_epochs=(num_epochs,),
            threads=trial.threads,
        )
        with closing(LocalExecutor([slot], Path(folder) / "logs", server)) as executor:
            executor.submit(spec, executor.free_slots()[0])
            for epoch in _epochs(executor, num_epochs):
                tell(f"epoch {epoch.number} of {num_epochs}: val_loss {epoch.metrics['val_loss']:.6g}")
                yield epoch


def _epochs(executor: Executor, num_epochs: int) -> Iterator[EpochEnded]:
    while True:
        for event in executor.events(POLL_SECONDS):
            if isinstance(event, TrialFailed):
                raise UnavailableError(f"the trial cannot be trained again: {event.message}")
            if isinstance(event, EpochEnded):
                yield event
                if event.number == num_epochs:
                    return


# -- what it came to


def _judged(then: Sequence[Epoch], now: Sequence[EpochEnded]) -> Reproduced:
    """The verdict on two traces of equal length."""
    pairs = [(results(old.metrics), results(new.metrics)) for old, new in zip(then, now, strict=True)]
    compared = [{name: (old[name], new[name]) for name in old if name in new} for old, new in pairs]
    other = [place for place, each in enumerate(compared, 1) if any(old != new for old, new in each.values())]
    largest = max(_relative(*each[name]) for each in compared for name in LOSSES if name in each)
    verdict = SAME if not other else NEAR if largest <= TOLERANCE else OTHER
    return Reproduced(
        trial="",
        verdict=verdict,
        epochs=len(pairs),
        first_other_epoch=other[0] if other else None,
        largest_difference=largest,
        metrics=tuple(dict.fromkeys(name for each in compared for name in each)),
        same={},
        differs={},
    )


def _relative(old: float, new: float) -> float:
    return abs(new - old) / max(abs(old), abs(new), 1e-12)


def _compared(
    study: Study, trial: Trial, attempt: Attempt, then: Mapping[str, Any], slot: Slot
) -> tuple[dict[str, str], dict[str, str]]:
    """What of then and now is the same, and what differs, in words."""
    now = provenance.collect_launch(study.model_copy(update=_as_now(study)))
    changes = {
        "code": _code(then, now),
        "packages": _packages(then, now),
        "data": _changed(then, now, "data_fingerprint", "split_fingerprint"),
        "seed": "",  # it is of the configuration
        "threads": "",  # a slot is made as it had one
        "device": _device(then, now, attempt.device, device_of(trial.config, slot)),
    }
    told = {
        "code": f"commit {then['commit'][:12]}" if then.get("commit") else "by its hash",
        "packages": f"{len(now['packages'])} of them, torch {now['versions']['torch']}",
        "data": f"{study.data}, {now['data_fingerprint'][:12]}",
        "seed": str(trial.config.get("seed", study.seed)),
        "threads": str(trial.threads),
        "device": f"{attempt.device}, {now['hardware']['cpu']}",
    }
    return (
        {name: told[name] for name, change in changes.items() if not change},
        {name: change for name, change in changes.items() if change},
    )


def _as_now(study: Study) -> dict[str, str]:
    """The fields of a study that its recipe and its data would have if it began now."""
    now = made_of(study)
    return {"code_hash": now["code"], "data_fingerprint": now["data"], "split_fingerprint": now["split"]}


def _code(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    parts = {"recipe_code": "the recipe", "training_code": "the training library"}
    changed = [told for key, told in parts.items() if key in then and then[key] != now[key]]
    if not changed:
        return ""
    commits = f"commit {then['commit'][:12] or 'none'} -> {now['commit'][:12] or 'none'}"
    edits = ", with other uncommitted changes" if then.get("diff") != now["diff"] else ""
    return f"{' and '.join(changed)} changed; {commits}{edits}"


def _packages(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = then.get("packages"), now["packages"]
    if old is None:
        old, new = then.get("versions", {}), now["versions"]
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    changed.sort(key=lambda name: name not in provenance.PACKAGES)
    return ", ".join(f"{name} {old.get(name, 'absent')} -> {new.get(name, 'absent')}" for name in changed)


def _device(then: Mapping[str, Any], now: Mapping[str, Any], old: str, new: str) -> str:
    parts = [f"{old} -> {new}"] if old.partition(":")[0] != new.partition(":")[0] else []
    hardware = then.get("hardware", {})
    keys = [key for key in (("cpu",) if old == "cpu" else ("cpu", "gpus")) if key in hardware]
    parts += [f"{hardware[key]} -> {now['hardware'][key]}" for key in keys if hardware[key] != now["hardware"][key]]
    return "; ".join(parts)


def _changed(then: Mapping[str, Any], now: Mapping[str, Any], *keys: str) -> str:
    changed = [key for key in keys if then.get(key) != now[key]]
    return ", ".join(f"{key} {str(then.get(key))[:12]} -> {now[key][:12]}" for key in changed)

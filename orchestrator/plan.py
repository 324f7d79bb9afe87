"""What a sweep would do and cost, before anything of it runs: its space, its first trials, time, memory and disk.

Nothing is recorded. What can be measured in seconds is (`probe`); every figure says whether it was.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from orchestrator import packing, probe, pruning, recorded, versions
from orchestrator.errors import NothingRecordedError, UsageError
from orchestrator.executors import Slot
from orchestrator.executors.local import num_cores, plan_slots, visible_gpus
from orchestrator.pace import clock, epochs_ahead, expected_share
from orchestrator.probe import Part, Tried, drawn_of, part_of
from orchestrator.search import Search
from orchestrator.space import describe, plain
from orchestrator.store import Record
from orchestrator.tables import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from orchestrator.forkserver import ForkServer
    from orchestrator.settings import Settings
    from orchestrator.study import Study
    from orchestrator.tables import Epoch, Trial

NUM_SUGGESTED = 5
NUM_DRAWN = 16  # configurations whose models are built, to find small and large ones
SIZE_SECONDS, TRAIN_SECONDS = 5.0, 15.0  # of the whole probe
TRIED_PLACES = (0.0, 1.0, 0.5, 0.25, 0.75)  # from the smallest model to the largest, in this order while time lasts
MIN_ENDED = 5  # trials of a study, from which on its own pruning counts
COPIES = 3  # of the weights in a checkpoint, at most: themselves and two moments of the optimiser
GENERATIONS = 3  # of checkpoints on disk while the newest is being written
WEIGHT_BYTES = 4
UNITS = {"": "", "bytes": "B", "flop": "FLOP"}
Params = dict[str, Any]
Unit = Literal["", "s", "bytes", "flop"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure or its range, whether it was measured, and on what; `available` is what there is of it."""

    name: str
    low: float
    high: float
    unit: Unit
    basis: Literal["measured", "estimated"]
    how: str
    available: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep that has not run: plain data."""

    study: str
    trials: int
    num_ended: int
    workers: int
    threads: int
    devices: tuple[str, ...]
    sampler: str
    pruner: str
    space: dict[str, str]
    constraints: tuple[str, ...]
    suggestions: list[Params]
    first_trial: int  # the number of the first suggestion
    tried: list[dict[str, Any]]
    figures: list[Figure]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A study as it is on record, or as it would begin."""

    study: Study
    trials: Sequence[Trial]
    epochs: Mapping[int, Sequence[Epoch]]
    notes: list[str]

    @property
    def drawn(self) -> list[Trial]:
        """All trials but the further seeds of leaders."""
        return [trial for trial in self.trials if trial.confirms is None]

    @property
    def num_ended(self) -> int:
        return sum(trial.state.finished for trial in self.drawn)

    @property
    def num_unconfirmed(self) -> int:
        """Further seeds of leaders that are still to be trained."""
        num_ended = sum(trial.state.finished for trial in self.trials if trial.confirms is not None)
        return max(0, math.prod(self.study.budget.confirmations) - num_ended)

    def epochs_of(self, *, finished: bool) -> list[int]:
        """Epochs of each trial that has ended, or else of each other; the paused, most of which stay so, have ended."""
        return [
            len(self.epochs.get(trial.number, []))
            for trial in self.drawn
            if (trial.state.finished or trial.state is State.PAUSED) == finished
        ]


def make(study: Study, settings: Settings, server: ForkServer | None = None, *, new_version: bool = False) -> Plan:
    """Plan a study, or what is left of it, and try some of its configurations for seconds.

    Raises:
        UsageError: the study exists with another identity.
        UnavailableError: the record cannot be read.
    """
    begun = _begun(study, settings, new_version=new_version)
    num_left = study.budget.trials - begun.num_ended + begun.num_unconfirmed
    slots = layout(packing.settled(study, num_left, server, begun.notes.append), num_left)
    asked = _suggestions(begun)
    drawn = [*asked, *drawn_of(begun.study, NUM_DRAWN - len(asked))]
    measured = _Measured.of(begun.study, drawn, slots[0], server)
    figures = [*measured.figures(slots), *_times(begun, drawn, measured, len(slots))]
    figures += _disk(begun, measured, len(slots), settings.home)
    return Plan(
        study=begun.study.name,
        trials=study.budget.trials,
        num_ended=begun.num_ended,
        workers=len(slots),
        threads=slots[0].threads,
        devices=tuple(sorted({device for slot in slots for device in slot.devices})),
        sampler=study.sampler,
        pruner=study.budget.pruner,
        space={name: describe(plain(searched)) for name, searched in study.space.items()},
        constraints=study.constraints,
        suggestions=asked,
        first_trial=len(begun.trials),
        tried=measured.rows(),
        figures=figures,
        notes=[*begun.notes, *measured.complaints(), *_shortages(figures)],
    )


# -- what the study is


def _begun(study: Study, settings: Settings, *, new_version: bool) -> _Begun:
    """The study with what is on record of it; nothing is created."""
    notes: list[str] = []
    try:
        record = Record.open(settings.record_url)
    except NothingRecordedError:
        if study.warm_start or new_version:
            raise
        return _Begun(study=study, trials=[], epochs={}, notes=notes)
    try:
        study = versions.meant(record, study)
        row = record.find_study(study.name)
        if new_version and (row is None or row.identity != study.identity):
            return _new_version(record, study)
        recorded.check_identity(row, study)
        if row is None:
            study = recorded.with_known(record, study, notes.append) if study.warm_start else study
            return _Begun(study=study, trials=[], epochs={}, notes=notes)
        study = recorded.as_begun(study, recorded.from_record(row))
        return _Begun(study=study, trials=record.trials(row.id), epochs=record.epochs(row.id), notes=notes)
    finally:
        record.close()


def _new_version(record: Record, study: Study) -> _Begun:
    """The study as the next version of what is on record of it."""
    following = versions.prepare(record, study)
    recorded_epochs = record.epochs(following.former.id)
    pairs = zip(following.taken, following.trials, strict=True)
    return _Begun(
        study=following.study,
        trials=following.trials,
        epochs={new.number: recorded_epochs.get(old.number, []) for old, new in pairs},
        notes=following.notes,
    )


def layout(study: Study, num_left: int) -> list[Slot]:
    """The slots that the study's executor would have with so many trials left.

    Raises:
        UsageError: they are those of a cluster.
    """
    if study.budget.executor == "ray":
        raise UsageError("executor=ray: what is planned is measured on this machine; plan it without executor=ray")
    if study.budget.executor == "inline":
        return [Slot(name="inline", threads=num_cores())]
    gpus = visible_gpus(str(study.fixed.get("device", "auto")))
    num_devices = int(study.fixed.get("devices", 1))
    return plan_slots(
        study.budget.workers,
        gpus,
        num_useful=max(1, num_left),
        num_devices=num_devices,
        per_gpu=study.budget.per_gpu,
    )


def _suggestions(begun: _Begun) -> list[Params]:
    """The parameters of the next few new trials, as they are drawn from what is known now."""
    study = begun.study
    search = Search.of(study)
    search.restore(begun.drawn, begun.epochs)
    asked: list[Params] = []
    for count in range(min(NUM_SUGGESTED, study.budget.trials - len(begun.drawn))):
        if search.used_up:
            break
        asked.append(search.ask(len(begun.trials) + count))
    return asked


# -- what was measured


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What the probe found: sizes of all that was drawn, and epochs of some of it."""

    sizes: list[dict[str, float]]
    tried: list[tuple[Params, Tried]]  # with the times and the memory of all images
    part: Part
    threads: int

    @classmethod
    def of(cls, study: Study, drawn: Sequence[Params], slot: Slot, server: ForkServer | None) -> _Measured:
        """Build the models, then train from the smallest to the largest of them while time lasts."""
        configs = [study.config(params) for params in drawn]
        sizes = probe.sizes(study.recipe, configs, slot, server, SIZE_SECONDS)
        part = part_of(study, configs)
        chosen = _places(sizes, len(drawn))
        deadline, tried = time.monotonic() + TRAIN_SECONDS, list[tuple[Params, Tried]]()
        for count, place in enumerate(chosen):
            seconds = (deadline - time.monotonic()) / (len(chosen) - count)
            if seconds > 0:
                config = {**configs[place], **({"limit": part.limit} if part.limit else {})}
                found = probe.epochs(study.recipe, config, slot, server, seconds)
                tried.append((drawn[place], _of_all(found, part)))
        return cls(sizes=[size for size in sizes if size], tried=tried, part=part, threads=slot.threads)

    def values(self, name: str) -> list[float]:
        """A figure of all that was tried, as far as it is known."""
        return [value for _, tried in self.tried if (value := getattr(tried, name)) is not None]

    def complaints(self) -> list[str]:
        """Why something has no figures, each reason once."""
        reasons = Counter(tried.complaint for _, tried in self.tried if tried.complaint)
        return [f"{count} of {len(self.tried)} configurations tried: {reason}" for reason, count in reasons.items()]

    def rows(self) -> list[dict[str, Any]]:
        """Each configuration that was tried, with its figures."""
        return [{"params": params, **asdict(tried)} for params, tried in self.tried]

    def figures(self, slots: Sequence[Slot]) -> list[Figure]:
        """Sizes, seconds and memory."""
        models = f"{len(self.sizes)} models built"
        found = [
            _range("parameters", [size["num_parameters"] for size in self.sizes], "", models),
            _range("operations an image", [size["flops"] for size in self.sizes if "flops" in size], "flop", models),
        ]
        how = f"{len(self.values('epoch_seconds'))} tried, one at a time on {self.threads} thread(s)"
        if self.part.limit:
            how += f", on {self.part.limit} of the images"
        found.append(_range("seconds an epoch", self.values("epoch_seconds"), "s", how))
        if peaks := self.values("memory_bytes"):
            found.append(_memory(max(peaks), slots))
        return [figure for figure in found if figure is not None]


def _places(sizes: Sequence[Mapping[str, float]], count: int) -> list[int]:
    """Which of the configurations to try, the smallest and the largest first; without sizes, as they were drawn."""
    known = [place for place, size in enumerate(sizes) if size]
    ranked = sorted(known, key=lambda place: (sizes[place].get("flops", 0), sizes[place]["num_parameters"]))
    ranked = ranked or list(range(count))
    return list(dict.fromkeys(ranked[round(share * (len(ranked) - 1))] for share in TRIED_PLACES))


def _of_all(tried: Tried, part: Part) -> Tried:
    """The figures of an epoch on all images, from those on a part."""
    seconds = None if tried.epoch_seconds is None else tried.epoch_seconds * part.factor
    memory = None if tried.memory_bytes is None else tried.memory_bytes + part.missing_bytes
    return replace(tried, epoch_seconds=seconds, memory_bytes=memory)


def _range(name: str, values: Sequence[float], unit: Unit, how: str) -> Figure | None:
    if not values:
        return None
    return Figure(name=name, low=min(values), high=max(values), unit=unit, basis="measured", how=how)


def _memory(peak: float, slots: Sequence[Slot]) -> Figure:
    import torch

    from recipes.memory import free_bytes

    devices = Counter(device for slot in slots for device in slot.devices)
    num_together = max(devices.values(), default=len(slots))
    where = "a GPU" if devices else "this machine"
    return Figure(
        name="memory",
        low=peak * num_together,
        high=peak * num_together,
        unit="bytes",
        basis="measured",
        how=f"{num_together} worker(s) on {where}, each at the highest peak, shared pages too",
        available=free_bytes(torch.device("cuda" if devices else "cpu")),
    )


# -- what it comes to


def _times(begun: _Begun, drawn: Sequence[Params], measured: _Measured, num_workers: int) -> list[Figure]:
    """Epochs that are left, and how long they take."""
    study = begun.study
    configs = [study.config(params) for params in drawn]
    lengths = [int(config.get("epochs", study.max_epochs)) for config in configs] or [study.max_epochs]
    length = sum(lengths) / len(lengths)
    share, how = _share(begun)
    ended, begun_epochs = begun.epochs_of(finished=True), begun.epochs_of(finished=False)
    num_left = max(0, study.budget.trials - len(ended))
    num_epochs = max(0.0, num_left * length * share - sum(begun_epochs))
    confirmed = f", and {begun.num_unconfirmed} further seeds" if begun.num_unconfirmed else ""
    num_epochs += begun.num_unconfirmed * length
    if most := study.budget.max_epochs_total:
        num_epochs = min(num_epochs, max(0, most - sum(map(len, begun.epochs.values()))))
    found = [
        Figure(
            name="epochs",
            low=num_epochs,
            high=num_epochs,
            unit="",
            basis="estimated",
            how=f"{num_left} trials of {length:.3g}, {share:.0%} of them trained: {how}{confirmed}",
        )
    ]
    if seconds := measured.values("epoch_seconds"):
        longest = min(length, num_epochs)  # one trial at least trains to its end
        low, high = (max(num_epochs / num_workers, longest) * each for each in (min(seconds), max(seconds)))
        if limit := study.budget.timeout_seconds:
            low, high = min(low, limit), min(high, limit)
        how = "if all were as the fastest tried, or the slowest; start, exports and mirrors are extra"
        found.append(Figure(name="time", low=low, high=high, unit="s", basis="estimated", how=how))
    return found


def _share(begun: _Begun) -> tuple[float, str]:
    """The share of a trial's epochs that is trained on average, and how it was found."""
    study, ended = begun.study, begun.epochs_of(finished=True)
    if len(ended) >= MIN_ENDED:
        ahead = epochs_ahead(Counter(ended), begun.epochs_of(finished=False), study.max_epochs)
        return ahead[0] / study.max_epochs, f"as in the {len(ended)} trials so far"
    pruner = pruning.make(study.budget.pruner)
    if isinstance(pruner, pruning.NoPruner):
        return 1.0, "none is stopped"
    share = expected_share(pruner, study.budget.trials, study.max_epochs)
    if share is None:
        return 1.0, f"{study.budget.pruner} may stop some, which depends on their values"
    return share, f"{study.budget.pruner} on trials that differ by chance"


def _disk(begun: _Begun, measured: _Measured, num_workers: int, home: Path) -> list[Figure]:
    """The files of trials that are left: best weights of each, checkpoints while they run, and exports."""
    study = begun.study
    trained = measured.values("num_parameters")
    if not trained:
        return []
    weights = WEIGHT_BYTES * max(trained)
    exported = WEIGHT_BYTES * max([*trained, *(size["num_parameters"] for size in measured.sizes)])
    checkpoint = weights * (COPIES + (1 if study.fixed.get("ema") else 0))
    num_left = max(0, study.budget.trials - begun.num_ended) + begun.num_unconfirmed
    num_paused = num_left if isinstance(pruning.make(study.budget.pruner), pruning.AshaPause) else 0
    num_exports = min(study.budget.num_exports, study.budget.trials)
    num_bytes = num_left * weights + (num_workers * GENERATIONS + num_paused) * checkpoint + num_exports * exported
    paused = f", {num_paused} of paused trials" if num_paused else ""
    how = f"at most: weights of {num_left} trials, checkpoints of {num_workers} running{paused}, {num_exports} exports"
    return [
        Figure(
            name="disk",
            low=num_bytes,
            high=num_bytes,
            unit="bytes",
            basis="estimated",
            how=how,
            available=shutil.disk_usage(_existing(home)).free,
        )
    ]


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _shortages(figures: Iterable[Figure]) -> list[str]:
    return [
        f"not enough {figure.name}: {_amount(figure.high, figure.unit)} may be needed, "
        f"{_amount(figure.available, figure.unit)} are free"
        for figure in figures
        if figure.available is not None and figure.high > figure.available
    ]


# -- as text


def text(figure: Figure) -> str:
    """A figure as a person would say it: `0:40 to 2:10`, `812 MB of 9.1 GB`."""
    low, high = (_amount(value, figure.unit) for value in (figure.low, figure.high))
    said = low if low == high else f"{low} to {high}"
    return said if figure.available is None else f"{said} of {_amount(figure.available, figure.unit)}"


def _amount(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:.2g} s" if value < 10 else clock(value)
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if unit and value >= size:
            return f"{value / size:.3g} {prefix}{UNITS[unit]}"
    return f"{value:,.0f} {UNITS[unit]}".rstrip()

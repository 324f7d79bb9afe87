"""What the command line shows of the record, put together: one trial in full, and the end of a sweep."""

from __future__ import annotations

import collections
import contextlib
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from orchestrator import compare, contrasts, names
from orchestrator.columns import Board
from orchestrator.contrasts import Side
from orchestrator.curves import LETTERS
from orchestrator.errors import UnknownNameError, UsageError
from orchestrator.leases import holder_of, study_lease
from orchestrator.objectives import of_spec
from orchestrator.tables import PARENT, MirrorRun, Reason, State, Study
from recipes.config import objective_of
from recipes.speed import ALL_SPEED_METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.monitor import Outcome
    from orchestrator.settings import Settings
    from orchestrator.store import Record
    from orchestrator.tables import Epoch, Trial

MODEL_METRICS = ("num_parameters", "flops")  # what the first epoch tells of the model, and no later one
NOT_COMPARED = ("name", "fixed", "queue", "known")  # of studies: `fixed` is in each trial's configuration
TOLD_ONCE = (*MODEL_METRICS, *ALL_SPEED_METRICS)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A study at the end of a run: its leaderboard and what to say below it."""

    study: str
    rows: list[dict[str, Any]]
    folder: str  # of the winner's files; empty without a winner
    max_difference: float | None  # of the winner's ONNX file
    num_broken: int  # trials that failed by an error or lost their worker for good

    def lines(self, outcome: Outcome) -> list[str]:
        """The winner, where its files are, what is missing, and what to type next."""
        lines, name = [], shlex.quote(self.study)
        winner = self.rows[0] if self.folder else None
        if winner:
            lines.append(f"winner    trial {winner['trial']}, {winner['objective']} {winner['value']:.4f}")
            if front := [row for row in self.rows if row["front"]]:
                lines.append(f"front     {len(front)} trial(s) that no other beats in all: {_numbers(front)}")
            if seeds := winner["confirmed"]:
                mean = "mean {mean:.4f}, 95% interval {low:.4f} to {high:.4f}".format_map(seeds)
                lines.append(f"seeds     {seeds['num_seeds']} further ones: {mean}")
            lines.append(f"files     {self.folder}")
        if self.max_difference is not None:
            lines.append(f"ONNX      differs from PyTorch by at most {self.max_difference:.1e}")
        if self.num_broken:
            lines.append(f"failed    {self.num_broken} trial(s); the reason of one: orch show {name}/NUMBER")
        if outcome.mirror_lag:
            lines.append(f"mirrors   are behind the record; bring them up with: orch sync {name}")
        if outcome.timed_out:
            lines.append(f"next      orch resume {name}")
        elif winner:
            lines.append(f"next      orch ui  ·  orch promote {name}")
        return lines


def _numbers(rows: list[dict[str, Any]]) -> str:
    return ", ".join(str(row["trial"]) for row in rows)


def summarise(record: Record, settings: Settings, study: Study) -> Summary:
    """Read what the end of a run shows."""
    trials, epochs = record.trials(study.id), record.epochs(study.id)
    named = of_spec(study.spec)
    leaders = compare.ranked(trials, epochs, named)
    export = record.exports(study.id).get(leaders[0].number) if leaders else None
    rows = compare.leaderboard(trials, epochs, record.run_ids(study.id), study.spec.get("space"), named)
    return Summary(
        study=study.name,
        rows=[row for row in rows if row["confirms"] is None],
        folder=_last_folder(record, settings, study, leaders[0].number) if leaders else "",
        max_difference=export.max_difference if export else None,
        num_broken=sum(t.state is State.FAILED and t.reason in {Reason.ERROR, Reason.LOST} for t in trials),
    )


def status(record: Record, study: Study) -> dict[str, Any]:
    """How a study stands, and which process runs it: `process` is None, or its host, its pid and whether it waits."""
    holder = holder_of(record, study_lease(study.name))
    trials, epochs, run_ids = record.trials(study.id), record.epochs(study.id), record.run_ids(study.id)
    return {
        **compare.status(study, trials, epochs, run_ids),
        "study": names.title(record, study),
        "process": holder and {"host": holder["host"], "pid": holder["pid"], "paused": holder.get("paused", False)},
    }


def board(record: Record, study: Study) -> Board:
    """The leaderboard of a study by columns, from no more of the record than it needs: quick for 10,000 trials."""
    trials, epochs = record.trials(study.id), record.telling_epochs(study.id)
    space, named = study.spec.get("space"), of_spec(study.spec)
    rows = compare.leaderboard(trials, epochs, record.run_ids(study.id), space, named, record.totals(study.id))
    told = {t.number: compare.told_until_best(epochs.get(t.number, []), objective_of(t.config)) for t in trials}
    return Board(rows, trials, told)


def whole_study(record: Record, reference: str) -> Study:
    """The study that `reference` names, or the newest if it is empty, as of `find_study_or_trial`.

    Raises:
        UsageError: there is none, or a single trial is meant.
    """
    study, number = find_study_or_trial(record, reference)
    if number is None:
        return study
    name = f"{names.title(record, study)}/{number}"
    raise UsageError(f"{name} is one trial; name another to compare it with, or see `orch show {name}`")


def contrast(record: Record, references: Sequence[str]) -> dict[str, Any]:
    """Runs, trials and whole studies beside each other; see `contrasts.contrast`.

    Raises:
        UsageError: no such run, trial or study, or too many of them.
    """
    if len(references) > len(LETTERS):
        raise UsageError(f"at most {len(LETTERS)} things are compared; found {len(references)}")
    return contrasts.contrast([_side(record, *find_study_or_trial(record, each)) for each in references])


def _side(record: Record, study: Study, number: int | None) -> Side:
    from orchestrator.recorded import BESIDE, PROVENANCE  # imports what a study is read by, which takes a while

    named = of_spec(study.spec)
    trials = record.trials(study.id) if number is None else []
    leaders = compare.ranked(trials, record.telling_epochs(study.id), named) if trials else []
    trial = record.trial(study.id, number) if number is not None else next(iter(leaders), None)
    epochs = record.epochs_of(trial.id) if trial else []
    objective = objective_of(trial.config if trial else study.spec.get("fixed", {}))
    spec = {name: value for name, value in study.spec.items() if name not in {*BESIDE, *NOT_COMPARED}}
    attempts = record.attempts(trial.id) if trial else []
    provenance = record.provenance(study, attempts[-1]) if attempts else study.spec.get(PROVENANCE, {})
    name = names.title(record, study)
    return Side(
        name=name if number is None else f"{name}/{number}",
        whole_study=number is None,
        trial=trial.number if trial else None,
        state=trial.state.value if trial else None,
        run_id=record.run_ids(study.id).get(PARENT if number is None else number),
        objective=objective,
        config=trial.config if trial else {},
        study=spec,
        provenance={name: value for name, value in provenance.items() if name not in spec},
        figures=_figures(trial, epochs, objective) | (_counts(trials) if number is None else {}),
        curves={name: [e.metrics[name] for e in epochs if name in e.metrics] for name in (objective, "val_loss")},
        directions={each.name: each.direction for each in named},
    )


def _figures(trial: Trial | None, epochs: Sequence[Epoch], objective: str) -> dict[str, float]:
    """What a trial came to: the metrics of its best epoch, and what all epochs took."""
    if trial is None or not epochs:
        return {}
    told = {name: v for name, v in compare.told_until_best(epochs, objective).items() if name not in trial.config}
    best = compare.best_epoch(epochs, objective)
    value = {} if trial.value is None else {objective: trial.value}
    seconds = round(sum(epoch.seconds for epoch in epochs), 3)
    return told | value | {"best_epoch": best.number if best else 0, "epochs": len(epochs), "train_seconds": seconds}


def _counts(trials: Sequence[Trial]) -> dict[str, float]:
    """How many trials a study has, and how many of them ended how."""
    found = collections.Counter(trial.state.value for trial in trials)
    return {"trials": len(trials), **{state: found[state] for state in State if found[state]}}


def find_trial(record: Record, reference: str) -> tuple[Study, int]:
    """The study and number of `NUMBER` (of the newest study), `STUDY/NUMBER` or an MLflow run id.

    Raises:
        UsageError: there is no such trial.
    """
    name, _, number = reference.rpartition("/")
    if number.isdecimal():
        study = names.named(record, name) if name else record.newest_study()
        numbers = [str(trial.number) for trial in record.trials(study.id)]
        if str(int(number)) not in numbers:
            raise UnknownNameError(f"trial of {study.name}", number, numbers)
        return study, int(number)
    with record.read() as session:
        run = session.scalar(select(MirrorRun).where(MirrorRun.run_id == reference, MirrorRun.trial >= 0))
        if run is None:
            raise UsageError(f"unknown trial {reference!r}; expected NUMBER, STUDY/NUMBER or an MLflow run id")
        return session.get_one(Study, run.study_id), run.trial


def find_study_or_trial(record: Record, reference: str) -> tuple[Study, int | None]:
    """The study that `reference` names (its name, or its run in MLflow), or the newest if it is empty; else
    the trial as of `find_trial`.

    Raises:
        UsageError: neither.
    """
    if not reference:
        return record.newest_study(), None
    with contextlib.suppress(UnknownNameError):
        return names.named(record, reference), None
    with record.read() as session:
        parent = session.scalar(select(MirrorRun).where(MirrorRun.run_id == reference, MirrorRun.trial == PARENT))
        if parent is not None:
            return session.get_one(Study, parent.study_id), None
    try:
        return find_trial(record, reference)
    except UnknownNameError:
        raise
    except UsageError:
        return record.study(reference), None  # whose error offers the nearest name


def best_trial(record: Record, study: Study) -> int:
    """The number of a study's best trial.

    Raises:
        UsageError: none is complete yet.
    """
    leaders = compare.ranked(record.trials(study.id), record.epochs(study.id), of_spec(study.spec))
    if not leaders:
        raise UsageError(f"study {study.name!r} has no complete trial yet")
    return leaders[0].number


def trial_details(record: Record, settings: Settings, study: Study, number: int) -> dict[str, Any]:
    """Everything that the record holds of one trial."""
    trial = record.trial(study.id, number)
    assert trial is not None, "find_trial found it"
    attempts, epochs = record.attempts(trial.id), record.epochs(study.id).get(number, [])
    export = record.exports(study.id, failed=True).get(number)
    told = {name: value for epoch in epochs for name, value in epoch.metrics.items()}  # the latest of each
    origin = names.origin(record, study, number)
    return {
        "study": study.name,
        "trial": number,
        "kept_from": f"{names.title(record, origin[0])}/{origin[1]}" if origin else None,
        "state": trial.state.value,
        "reason": trial.reason.value if trial.reason else None,
        "message": trial.message,
        "traceback": next((attempt.traceback for attempt in reversed(attempts) if attempt.traceback), None),
        "value": trial.value,
        "best_epoch": trial.best_epoch,
        "threads": trial.threads,
        "run_id": record.run_ids(study.id).get(number),
        "folder": _last_folder(record, settings, study, number),
        "ran_with": _ran_with(record.provenance(study, attempts[-1])) if attempts else {},
        "model": {name: value for name, value in told.items() if name in MODEL_METRICS},
        "speed": {name: value for name, value in told.items() if name in ALL_SPEED_METRICS},
        "config": trial.config,
        "attempts": [
            {"number": a.number, "worker": a.worker, "state": a.state.value, "reason": a.reason and a.reason.value}
            for a in attempts
        ],
        "epochs": [
            {
                "number": epoch.number,
                "metrics": {name: value for name, value in epoch.metrics.items() if name not in TOLD_ONCE},
                "seconds": epoch.seconds,
                "attempt": epoch.attempt,
            }
            for epoch in epochs
        ],
        "files": dict((attempts[-1].manifest if attempts else None) or {}),
        "onnx": {"sha256": export.sha256, "max_difference": export.max_difference, "error": export.error}
        if export
        else None,
    }


def _ran_with(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What an attempt ran with, but for the long parts of it."""
    found = {name: provenance.get(name) for name in ("command", "folder", "commit", "machine")}
    hardware = provenance.get("hardware", {})
    return {
        **found,
        "uncommitted": bool(provenance.get("diff")),
        "cpu": hardware.get("cpu"),
        **provenance.get("versions", {}),
    }


def _last_folder(record: Record, settings: Settings, study: Study, number: int) -> str:
    trial = record.trial(study.id, number)
    assert trial is not None, f"trial {number} is in the record"
    attempts = record.attempts(trial.id)
    return str(settings.attempt_folder(study.name, number, attempts[-1].number)) if attempts else ""

"""What a report tells of a study, read from the record and, of the winner, found by asking it the validation images."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator import compare, names
from orchestrator.errors import OrchError
from orchestrator.evaluate import answers
from orchestrator.importances import importances
from orchestrator.objectives import of_spec
from orchestrator.recorded import IMPORTED, PROVENANCE
from orchestrator.tables import ARCHIVED, State
from recipes.config import objective_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.evaluate import Answers
    from orchestrator.importances import Importances
    from orchestrator.objectives import Objective
    from orchestrator.settings import Settings
    from orchestrator.store import Record
    from orchestrator.tables import Attempt, Epoch, Study, Trial

NUM_MISTAKES = 24
NUM_FAILURES = 10
INTERRUPTED = "interrupted"


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A trial that the search drew, as charts need it; `value` is that of its best epoch so far, if it has one."""

    number: int
    state: State
    value: float | None
    params: dict[str, Any]
    curve: tuple[tuple[int, float], ...]  # epoch and value
    objectives: dict[str, float]  # of several objectives
    on_front: bool

    @property
    def is_complete(self) -> bool:
        """Whether it was trained to its end."""
        return self.state is State.COMPLETE


@dataclass(frozen=True, kw_only=True)
class Work:
    """An attempt at a trial on a worker; times are Unix seconds."""

    worker: str
    trial: int
    begun_at: float
    ended_at: float
    outcome: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All of it. `rows` is the leaderboard, further seeds left out; `losses` are the winner's by name and epoch."""

    study: Study
    title: str
    made_at: float
    objective: str
    objectives: tuple[Objective, ...]
    rows: list[dict[str, Any]]
    trials: list[Drawn]
    losses: dict[str, list[tuple[int, float]]]
    work: list[Work]
    num_epochs: int
    train_seconds: float
    importances: dict[str, Importances]  # objective -> its
    failures: list[tuple[str, int]]  # what was said, and of how many trials
    winner: Trial | None
    device: str  # of the winner
    ran_with: dict[str, Any]  # what the winner's last attempt ran with, else what the study began with
    answers: Answers | None
    no_answers: str  # why a winner has none, in a line

    @property
    def is_imported(self) -> bool:
        """Whether it has neither a recipe nor files."""
        return IMPORTED in self.study.spec

    @property
    def archived_at(self) -> float | None:
        """When it was put away, if it is."""
        return self.study.spec.get(ARCHIVED)

    @property
    def searched(self) -> list[str]:
        """The searched fields, those that matter most first."""
        found = self.importances.get(self.objective)
        order = list(found.shares) if found else []
        return sorted(self.study.spec.get("space", {}), key=lambda name: order.index(name) if name in order else 999)


def findings(settings: Settings, record: Record, study: Study) -> Findings:
    """Read a study; ask its winner, if it has one with files."""
    trials, epochs, attempts = record.trials(study.id), record.epochs(study.id), record.attempts_of_study(study.id)
    named, space = of_spec(study.spec), study.spec.get("space", {})
    rows = compare.leaderboard(trials, epochs, record.run_ids(study.id), space, named)
    rows = [row for row in rows if row["confirms"] is None]
    winner = next(iter(compare.ranked(trials, epochs, named)), None)
    last = attempts[winner.number][-1] if winner and winner.number in attempts else None
    found, why = _answers(settings, study, winner)
    return Findings(
        study=study,
        title=names.title(record, study),
        made_at=time.time(),
        objective=_objective(study, trials),
        objectives=named,
        rows=rows,
        trials=_drawn(trials, epochs, rows, space),
        losses=_losses(epochs.get(winner.number, []) if winner else []),
        work=_work_of(attempts),
        num_epochs=sum(map(len, epochs.values())),
        train_seconds=sum(epoch.seconds for each in epochs.values() for epoch in each),
        importances=_importances(study, trials, rows),
        failures=_failures(trials),
        winner=winner,
        device=last.device if last else "",
        ran_with=record.provenance(study, last) if last else study.spec.get(PROVENANCE, {}),
        answers=found,
        no_answers=why,
    )


def _work_of(attempts: Mapping[int, Sequence[Attempt]]) -> list[Work]:
    """All attempts as they began."""
    found = [(number, attempt) for number, each in attempts.items() for attempt in each]
    return [_work(number, attempt) for number, attempt in sorted(found, key=lambda pair: pair[1].started_at)]


def _objective(study: Study, trials: Sequence[Trial]) -> str:
    return objective_of(trials[0].config if trials else study.spec.get("fixed", {}))


def _answers(settings: Settings, study: Study, winner: Trial | None) -> tuple[Answers | None, str]:
    """What the winner makes of the validation images; or why that cannot be said, which is no reason for no report."""
    if winner is None:
        return None, ""
    try:
        return answers(settings, study.name, winner.number, most=NUM_MISTAKES), ""
    except OrchError as error:
        return None, f"The winner was not asked anew: {error}."


def _drawn(
    trials: Sequence[Trial],
    epochs: Mapping[int, Sequence[Epoch]],
    rows: Sequence[Mapping[str, Any]],
    space: Mapping[str, Any],
) -> list[Drawn]:
    by_number = {row["trial"]: row for row in rows}
    return [
        Drawn(
            number=trial.number,
            state=trial.state,
            value=_value(trial, epochs.get(trial.number, ())),
            params={name: value for name, value in trial.params.items() if _takes(space.get(name), value)},
            curve=_curve(trial, epochs.get(trial.number, ())),
            objectives=by_number[trial.number]["objectives"],
            on_front=by_number[trial.number]["front"],
        )
        for trial in trials
        if trial.confirms is None
    ]


def _takes(searched: Mapping[str, Any] | None, value: Any) -> bool:
    """Whether a value is of a field as the study has it; Optuna lets a field change, so one of an import may not be."""
    if searched is None:
        return False
    return value in searched["choices"] if "choices" in searched else searched["low"] <= value <= searched["high"]


def _curve(trial: Trial, epochs: Sequence[Epoch]) -> tuple[tuple[int, float], ...]:
    return tuple(_points(epochs, objective_of(trial.config)))


def _points(epochs: Sequence[Epoch], metric: str) -> list[tuple[int, float]]:
    """Epochs and what a metric was, where it is a finite number."""
    told = [(epoch.number, epoch.metrics.get(metric)) for epoch in epochs]
    return [(number, value) for number, value in told if value is not None and math.isfinite(value)]


def _value(trial: Trial, epochs: Sequence[Epoch]) -> float | None:
    if trial.state is State.FAILED:
        return None
    return trial.value if trial.value is not None else max((value for _, value in _curve(trial, epochs)), default=None)


def _losses(epochs: Sequence[Epoch]) -> dict[str, list[tuple[int, float]]]:
    return {name: points for name in ("train_loss", "val_loss") if (points := _points(epochs, name))}


def _work(number: int, attempt: Attempt) -> Work:
    is_open = attempt.state is State.RUNNING
    interrupted = attempt.ended_at is not None and attempt.reason == INTERRUPTED
    return Work(
        worker=attempt.worker,
        trial=number,
        begun_at=attempt.started_at,
        ended_at=time.time() if attempt.ended_at is None and is_open else attempt.ended_at or attempt.started_at,
        outcome=INTERRUPTED if interrupted else attempt.state.value,
    )


def _importances(study: Study, trials: Sequence[Trial], rows: Sequence[Mapping[str, Any]]) -> dict[str, Importances]:
    """What matters for each objective, as far as it can be said."""
    complete = [row for row in rows if row["state"] == State.COMPLETE]
    values = {_objective(study, trials): {row["trial"]: row["value"] for row in complete}}
    for each in of_spec(study.spec):
        values[each.name] = {row["trial"]: each.sign * row["objectives"][each.name] for row in complete}
    space = study.spec.get("space", {})
    found = {name: importances(space, trials, each) for name, each in values.items()}
    return {name: each for name, each in found.items() if each is not None}


def _failures(trials: Sequence[Trial]) -> list[tuple[str, int]]:
    """Why trials failed, the most frequent reasons first."""
    said = Counter(trial.message or str(trial.reason or "") for trial in trials if trial.state is State.FAILED)
    return said.most_common(NUM_FAILURES)

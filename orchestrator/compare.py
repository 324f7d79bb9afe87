"""Records -> the leaderboard, the status of a study, what differs. Pure: rows in, plain data out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from orchestrator import confirm, pareto
from orchestrator.objectives import of_spec, values_at, vector
from orchestrator.tables import State
from recipes.config import objective_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from orchestrator.confirm import Confirmed
    from orchestrator.objectives import Objective
    from orchestrator.tables import Epoch, Study, Trial

_ORDER = (State.COMPLETE, State.PRUNED, State.RUNNING, State.PAUSED, State.WAITING, State.FAILED)


def best_epoch(epochs: Sequence[Epoch], objective: str) -> Epoch | None:
    """The epoch whose checkpoint would be promoted: highest objective, then lower val_loss, then the earlier."""
    return min(epochs, key=lambda e: (-e.metrics[objective], _val_loss(e), e.number), default=None)


def told_until_best(epochs: Sequence[Epoch], objective: str) -> dict[str, float]:
    """The metrics of the best epoch, and what an earlier one told that it does not, such as the model's size."""
    best = best_epoch(epochs, objective)
    told: dict[str, float] = {}
    for epoch in epochs:
        if best is not None and epoch.number <= best.number:
            told |= epoch.metrics
    return told


def ranked(
    trials: Iterable[Trial], epochs: Mapping[int, Sequence[Epoch]], named: Sequence[Objective] = ()
) -> list[Trial]:
    """Complete trials, the best first: those that further seeds confirm by their mean, then all others by value.

    Of several objectives front by front (`pareto.fronts`), in each by value.
    """
    trials = list(trials)
    seeds, fronts = confirm.confirmed(trials), _fronts(trials, epochs, named)
    leaders = by_value(trials, epochs)
    return sorted(leaders, key=lambda trial: (fronts.get(trial.number, 0), _standing(seeds.get(trial.number))))


def by_value(trials: Iterable[Trial], epochs: Mapping[int, Sequence[Epoch]]) -> list[Trial]:
    """Complete trials by value, then lower val_loss of the best epoch, then lower number; no further seeds of any."""
    complete = [trial for trial in trials if trial.state is State.COMPLETE and trial.confirms is None]
    return sorted(complete, key=lambda trial: _rank(trial, epochs))


def _fronts(
    trials: Iterable[Trial], epochs: Mapping[int, Sequence[Epoch]], named: Sequence[Objective]
) -> dict[int, int]:
    """Complete trial -> which front it is on, 0 being the Pareto front; nothing of one objective."""
    if not named:
        return {}
    complete = [trial for trial in trials if trial.state is State.COMPLETE]
    table = {trial.number: vector(_values(trial, epochs, named), named) for trial in complete}
    return {number: place for place, front in enumerate(pareto.fronts(table)) for number in front}


def _values(trial: Trial, epochs: Mapping[int, Sequence[Epoch]], named: Sequence[Objective]) -> dict[str, float]:
    """What the objectives were after a trial's best epoch; nothing before there is one, or of one objective."""
    return values_at(epochs.get(trial.number, []), trial.best_epoch, named) if trial.best_epoch else {}


def _standing(seeds: Confirmed | None) -> tuple[int, int, float]:
    """Before others where seeds were tried, and of those the ones with which none failed."""
    return (1, 0, 0.0) if seeds is None else (0, seeds.num_failed, -seeds.mean)


def leaderboard(
    trials: Sequence[Trial],
    epochs: Mapping[int, Sequence[Epoch]],
    run_ids: Mapping[int, str],
    space: Mapping[str, Any] | None = None,
    named: Sequence[Objective] = (),
    totals: Mapping[int, tuple[int, float]] | None = None,
) -> list[dict[str, Any]]:
    """A row a trial: complete ones first and best first, then pruned, then the rest. `params` hold what differs.

    A field that a trial did not draw, since the condition in the study's `space` did not hold, is None there. A row
    of a further seed says whom it `confirms`; what all of them say is `confirmed` in the row of that trial. Where
    several objectives are `named`, `objectives` has the value of each, and `front` says whether the trial is on the
    Pareto front of the complete ones. `totals` (number of epochs, their seconds) are those of a trial of which not all
    epochs are given.
    """
    if totals is None:
        totals = {number: (len(of), sum(epoch.seconds for epoch in of)) for number, of in epochs.items()}
    seeds, fronts = confirm.confirmed(trials), _fronts(trials, epochs, named)
    conditional = {name for name, searched in (space or {}).items() if searched.get("when")}
    differing = _differing([trial for trial in trials if trial.confirms is None])
    ordered = sorted(
        trials,
        key=lambda trial: (
            trial.confirms is not None,
            _ORDER.index(trial.state),
            fronts.get(trial.number, 0),
            _standing(seeds.get(trial.number)),
            *_rank(trial, epochs),
        ),
    )
    return [
        {
            "trial": trial.number,
            "objective": objective_of(trial.config),
            "value": trial.value,
            "objectives": _values(trial, epochs, named),
            "front": fronts.get(trial.number) == 0,
            "params": {
                name: None if name in conditional and name not in trial.params else trial.config.get(name)
                for name in differing
            },
            "epochs": totals.get(trial.number, (0, 0.0))[0],
            "seconds": round(totals.get(trial.number, (0, 0.0))[1], 3),
            "state": trial.state.value,
            "reason": trial.reason.value if trial.reason else None,
            "message": trial.message,
            "run_id": run_ids.get(trial.number),
            "confirms": trial.confirms,
            "confirmed": dataclasses.asdict(seeds[trial.number]) if trial.number in seeds else None,
        }
        for trial in ordered
    ]


def status(
    study: Study, trials: Sequence[Trial], epochs: Mapping[int, Sequence[Epoch]], run_ids: Mapping[int, str]
) -> dict[str, Any]:
    """One study in numbers: trials in each state, further seeds of leaders, epochs trained.

    `best` is the best trial, or None before there is one; of several objectives, the best by the task's own among
    those of the Pareto `front`, which else is empty.
    """
    named = of_spec(study.spec)
    leaders, fronts = ranked(trials, epochs, named), _fronts(trials, epochs, named)
    front = [trial for trial in leaders if fronts.get(trial.number) == 0]
    drawn = [trial for trial in trials if trial.confirms is None]
    return {
        "study": study.name,
        "recipe": study.recipe,
        "data": study.data,
        "total": study.spec["budget"]["trials"],
        "states": {state.value: sum(trial.state is state for trial in drawn) for state in State},
        "confirming": len(trials) - len(drawn),
        "epochs_trained": sum(map(len, epochs.values())),
        "best": _best(leaders[0], run_ids) if leaders else None,
        "front": [{"trial": trial.number, **_values(trial, epochs, named)} for trial in front],
    }


def _best(trial: Trial, run_ids: Mapping[int, str]) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "objective": objective_of(trial.config),
        "value": trial.value,
        "params": trial.params,
        "run_id": run_ids.get(trial.number),
    }


def _rank(trial: Trial, epochs: Mapping[int, Sequence[Epoch]]) -> tuple[float, float, int]:
    objective = objective_of(trial.config)
    best = best_epoch(epochs.get(trial.number, []), objective)
    if best is None:
        return (0.0, 0.0, trial.number)
    # An imported trial may be worth something else than its best epoch.
    value = trial.value if trial.state is State.COMPLETE and trial.value is not None else best.metrics[objective]
    return (-value, _val_loss(best), trial.number)


def _val_loss(epoch: Epoch) -> float:
    """By which equal values are told apart; what was imported has none."""
    return float(epoch.metrics.get("val_loss", 0.0))


def _differing(trials: Sequence[Trial]) -> list[str]:
    """Names of the fields that do not have the same value in all trials, in the Config's order."""
    configs = [trial.config for trial in trials]
    names: dict[str, Any] = {}
    for config in configs:
        names |= config
    alike, differing = list(names), set()
    for config in configs:  # at C's speed: there may be 10,000 trials of 60 fields each
        values = list(map(config.get, alike))
        if config is configs[0]:
            first, kinds = values, list(map(type, values))
        elif values != first or list(map(type, values)) != kinds:  # 1 is not True
            differing |= {name for name, *pair in zip(alike, values, first, strict=True) if len({*map(repr, pair)}) > 1}
            alike = [name for name in alike if name not in differing]
            first = list(map(configs[0].get, alike))
            kinds = list(map(type, first))
    return [name for name in names if name in differing]

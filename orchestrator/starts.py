"""What a study begins with: configurations that are tried first, and results of another study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import overrides, points, study_files
from orchestrator.errors import UnknownNameError, UsageError
from orchestrator.objectives import Objective, values_at
from orchestrator.space import Scalar, Space, describe, holds, in_order
from orchestrator.tables import Reason, State
from recipes.config import Part, objective_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from orchestrator.tables import Epoch, Trial


KEYS = ("default_first", "enqueue", "warm_start")


class Result(Part):
    """How a trial ended, as far as a sampler learns from it."""

    params: dict[str, Scalar]
    state: State  # failed: by memory or divergence
    value: float | None
    values: tuple[float, ...]  # the same of each epoch
    ends: tuple[float, ...] = ()  # of several objectives, if there are


def result(
    trial: Trial, epochs: Sequence[Epoch], params: Mapping[str, Scalar], named: Sequence[Objective] = ()
) -> Result | None:
    """What is to be learnt from an ended trial; nothing where it failed by an error or lost its worker."""
    if trial.state is State.FAILED and trial.reason in {Reason.ERROR, Reason.LOST}:
        return None
    objective = objective_of(trial.config)
    values = tuple(epoch.metrics[objective] for epoch in epochs)
    ends = tuple(values_at(epochs, trial.best_epoch, named).values()) if trial.best_epoch else ()
    return Result(params=dict(params), state=trial.state, value=trial.value, values=values, ends=ends)


def results_of(
    trials: Sequence[Trial],
    epochs: Mapping[int, Sequence[Epoch]],
    space: Space,
    objective: str,
    named: Sequence[Objective] = (),
) -> tuple[Result, ...]:
    """What another study's trials teach a search of `space`: those with all objectives, and with all fields inside."""
    found = []
    for trial in trials:
        own = epochs.get(trial.number, [])
        told = {name for epoch in own for name in epoch.metrics}
        fits = objective_of(trial.config) == objective and told >= {each.name for each in named}
        if trial.state.finished and trial.confirms is None and fits:
            params = inside(space, trial.config)
            found.append(result(trial, own, params, named) if params is not None else None)
    return tuple(each for each in found if each is not None)


def inside(space: Space, config: Mapping[str, Scalar]) -> dict[str, Scalar] | None:
    """What `space` searches of a configuration; None where some of it lies outside."""
    params: dict[str, Scalar] = {}
    for name in in_order(space):
        if holds(space[name].when, params):
            fits = points.fitting(space[name], config.get(name))
            if fits is None:
                return None
            params[name] = fits
    return params


def take(typed: dict[str, str], *, single: bool) -> dict[str, str]:
    """Take the keys of what a study begins with out of `typed`.

    Raises:
        UsageError: one is empty or not possible, or there is but a `single` configuration.
    """
    taken = {key: overrides.split(typed.pop(key))[1] for key in KEYS if key in typed}
    for key, text in taken.items():
        if single:
            raise UsageError(f"{key} belongs to `orch sweep`; `orch train` runs one configuration")
        if not text:
            raise UsageError(f"{key}= is empty; expected {'a file' if key == 'enqueue' else 'the name of a study'}")
    if taken.get("default_first", "false") not in {"true", "false"}:
        raise UsageError(f"default_first={taken['default_first']}: expected true or false")
    return taken


def queue(
    taken: Mapping[str, str],
    space: Space,
    fixed: Mapping[str, Scalar],
    defaults: Mapping[str, Scalar],
    complaint: Callable[[Mapping[str, Scalar]], str],
) -> tuple[dict[str, Scalar], ...]:
    """What is tried first: the recipe's default if it is asked for, then the configurations of a file.

    Raises:
        UsageError: the file is not usable, or a configuration has a `complaint`.
    """
    queued: list[dict[str, Scalar]] = []
    if taken.get("default_first") == "true":
        queued.append(default(space, defaults))
    if "enqueue" in taken:
        queued += read_queue(Path(taken["enqueue"]), space, fixed)
    for each in queued:
        # What is drawn to a partial one may make it possible.
        if is_whole(space, each) and (found := complaint(each)):
            told = ", ".join(f"{key}={value}" for key, value in each.items())
            raise UsageError(f"{told} cannot be tried first: {found}")
    return without_repeats(queued, space)


def default(space: Space, defaults: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The recipe's own configuration, or the nearest that the space has."""
    params: dict[str, Scalar] = {}
    for name in in_order(space):
        if holds(space[name].when, params):
            params[name] = points.nearest(space[name], defaults[name])
    return params


def is_whole(space: Space, params: Mapping[str, Scalar]) -> bool:
    """Whether nothing is left to draw."""
    return all(name in params for name, searched in space.items() if holds(searched.when, params))


def read_queue(path: Path, space: Space, fixed: Mapping[str, Scalar]) -> list[dict[str, Scalar]]:
    """The searched fields of each configuration in a YAML or JSON list.

    Raises:
        UsageError: no such list, an unknown field, or a value that the study does not have.
    """
    if not path.is_file():
        raise UsageError(f"enqueue={path} does not exist")
    listed = study_files.parse(path)
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise UsageError(f"{path}: expected a list of configurations, such as `- {{lr: 1e-3, width: 24}}`")
    return [_taken(each, space, fixed, f"{path}, configuration {n}") for n, each in enumerate(listed, 1)]


def without_repeats(queue: Sequence[Mapping[str, Scalar]], space: Space) -> tuple[dict[str, Scalar], ...]:
    """The queue, each whole configuration once; partial ones may come again, as the rest is drawn."""
    distinct: list[dict[str, Scalar]] = []
    for each in queue:
        if not is_whole(space, each) or each not in distinct:
            distinct.append(dict(each))
    return tuple(distinct)


def _taken(listed: Mapping[Any, Any], space: Space, fixed: Mapping[str, Scalar], where: str) -> dict[str, Scalar]:
    taken: dict[str, Scalar] = {}
    for name, value in listed.items():
        if name in space:
            fits = points.fitting(space[name], value)
            if fits is None:
                raise UsageError(
                    f"{where}: {name}={value} is not in what is searched, {describe(space[name].model_dump())}"
                )
            taken[name] = fits
        elif name not in fixed:
            raise UnknownNameError(f"field in {where}:", str(name), [*space, *fixed])
        elif value != fixed[name]:
            raise UsageError(f"{where}: {name}={value} is not searched; this study has {name}={fixed[name]}")
    for name in taken:
        when = space[name].when
        if when.keys() <= taken.keys() and not holds(when, taken):
            given = ", ".join(f"{parent}={taken[parent]}" for parent in when)
            raise UsageError(f"{where}: {name} is not searched where {given}")
    return taken

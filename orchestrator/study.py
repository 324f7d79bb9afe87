"""What is searched: a study file and the command line, checked against the recipe's Config before anything is written.

This module only reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import recipes
from orchestrator import catalogue, compatibility, fields, objectives, overrides, starts
from orchestrator.budget import BUDGET_KEYS, Budget, check_sampler, sampler_of, take_budget
from orchestrator.errors import UnavailableError, UnknownNameError, UsageError
from orchestrator.feasible import Feasible
from orchestrator.fields import PLACEMENT_FIELDS
from orchestrator.objectives import Objective
from orchestrator.space import Scalar, Space, plain, settle
from orchestrator.starts import Result
from orchestrator.tables import MAX_NAME_LENGTH
from recipes.config import Part, dataset_of, objective_of
from recipes.data import SHARDS, DataError, UnknownDataError, absolute, cache_folder, fingerprints

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_FILE_NAME_BYTES = 255  # a study is a folder
# Not of a study's identity: of data, what they are counts, which their fingerprint says, and not where they lie.
UNIDENTIFYING_FIELDS = PLACEMENT_FIELDS | {"data"}


class Version(Part):
    """What a study is a later version of; see `orchestrator.versions`."""

    of: str  # name of the first version
    former: str  # name of the version before
    kept: tuple[int, ...]  # numbers of that one's trials that are trials 0, 1, … of this one


class Study(Part):
    """A search, whole: where its name, its recipe, its space and its budget are settled."""

    name: str
    recipe: str
    code_hash: str
    data: str
    split_seed: int
    seed: int
    data_fingerprint: str
    split_fingerprint: str
    fixed: dict[str, Scalar]  # every field that is not searched, or under a condition only; defaults included
    space: Space
    constraints: tuple[str, ...] = ()
    objectives: tuple[Objective, ...] = ()  # if there are several
    budget: Budget
    queue: tuple[dict[str, Scalar], ...] = ()  # configurations that are tried first; the sampler draws what they lack
    warm_start: str = ""  # the study that the sampler knows from the start
    known: tuple[Result, ...] = ()  # what it knows of it, kept as it was then
    version: Version | None = None  # None of a first version

    @property
    def num_kept(self) -> int:
        """How many trials it began with."""
        return len(self.version.kept) if self.version else 0

    @property
    def sampler(self) -> str:
        """How parameters are drawn, with a name in place of `auto`."""
        return sampler_of(self.budget, self.space, several=bool(self.objectives))

    @property
    def objective(self) -> str:
        """The metric by which trials are ranked, and by which each one's epoch is chosen."""
        return objective_of(self.fixed)

    @property
    def identity(self) -> dict[str, Any]:
        """What may not change under one name."""
        return {
            "recipe": Path(self.recipe).stem,  # where its file lies does not matter, what it says does
            "code": self.code_hash,
            "objective": self.objective,
            "data": self.data_fingerprint,
            "split": self.split_fingerprint,
            "fixed": self.identifying(self.fixed),
            "space": {name: plain(searched) for name, searched in self.space.items()},
            **({"constraints": list(self.constraints)} if self.constraints else {}),
            **({"objectives": objectives.describe(self.objectives)} if self.objectives else {}),
        }

    def identifying(self, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The fields that make a difference to what comes out of a training."""
        # What order a stream is read in depends on who reads it.
        left_out = UNIDENTIFYING_FIELDS - ({"loader_workers"} if self.data.startswith(SHARDS) else set())
        return {name: value for name, value in values.items() if name not in left_out}

    def config(self, params: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The flat configuration of a trial."""
        return {**self.fixed, **params}

    @property
    def max_epochs(self) -> int:
        """The most epochs that a trial trains, as far as the recipe says; else 1."""
        return int(max(fields.values_of("epochs", self.fixed, self.space), default=1))


def load(arguments: Sequence[str], *, single: bool = False) -> Study:
    """Read `key=value` arguments and the recipe's study file; `single` is one configuration, nothing searched.

    Raises:
        UsageError: anything that is not known, possible or complete.
    """
    typed = _split(arguments)
    recipe = _load_recipe(typed.pop("recipe", ""))
    budget = take_budget(typed, single=single)
    beginning = starts.take(typed, single=single)
    named = objectives.take(typed, single=single)
    name = overrides.split(typed.pop("study"))[1] if "study" in typed else None
    told = fields.settings(recipe, typed, single=single)
    flat, space = fields.checked(recipe, told)
    if not space and not single:
        raise UsageError("nothing is searched; give a field a range, such as lr=tag(log,interval(1e-4,1e-1))")
    flat = _with_absolute_paths({**flat, **objectives.check(named, flat)})
    if budget.executor != "ray":  # whose nodes may have what this machine lacks; they are asked when it starts
        compatibility.check_device(flat)
    name = check_name(_default_name(recipe, flat, single=single) if name is None else name)
    possible = Feasible(recipe.config_type, flat, space, told.constraints)
    compatibility.check_needs(recipe, possible, space)
    _check_budget(budget, space, flat, named)
    queue = starts.queue(beginning, space, flat, fields.defaults(recipe), possible.complaint)
    data_fingerprint, split_fingerprint = _fingerprints(flat)
    if useless := compatibility.useless_fields(recipe, flat, space, set(typed) & {*told.space, *told.fixed}):
        defaults = fields.defaults(recipe)
        flat = {**flat, **{key: defaults[key] for key in useless}}
        space = settle({key: searched for key, searched in space.items() if key not in useless}, flat)
    compatibility.check(recipe, flat, space)
    return Study(
        name=name,
        recipe=str(Path(recipe.reference).resolve()) if recipe.reference.endswith(".py") else recipe.reference,
        code_hash=recipe.code_hash,
        data=str(flat.get("data", "")),
        split_seed=int(flat.get("split_seed", 0)),
        seed=int(flat.get("seed", 0)),
        data_fingerprint=data_fingerprint,
        split_fingerprint=split_fingerprint,
        fixed=flat,
        space=space,
        constraints=tuple(told.constraints),
        objectives=named,
        budget=budget,
        queue=tuple({key: value for key, value in each.items() if key in space} for each in queue),
        warm_start=beginning.get("warm_start", ""),
    )


def feasible(study: Study) -> Feasible:
    """What tells the possible configurations of a study."""
    config_type = catalogue.load(study.recipe).config_type
    return Feasible(config_type, study.fixed, study.space, study.constraints)


def change_budget(study: Study, arguments: Sequence[str]) -> Study:
    """The study with the budget keys among `arguments` changed; other keys are an error."""
    typed = _split(arguments)
    budget = take_budget(typed, start=study.budget)
    if typed:
        key = next(iter(typed))
        raise UsageError(f"{key} cannot be changed in an existing study; allowed: {', '.join(BUDGET_KEYS)}")
    _check_budget(budget, study.space, study.fixed, study.objectives)
    return study.model_copy(update={"budget": budget})


def made_of(study: Study) -> dict[str, str]:
    """The part of a study's identity that lies outside the record, as it is now: `code`, `data` and `split`.

    Raises:
        UsageError: the recipe or the data are not there.
    """
    code = _load_recipe(f"recipe={study.recipe}").code_hash
    data, split = _fingerprints(study.fixed)
    return {"code": code, "data": data, "split": split}


def check_unchanged(study: Study) -> None:
    """See that what a recorded study is made of is still there.

    Raises:
        UsageError: the recipe's code or the data are others now.
    """
    now = made_of(study)
    then = {name: study.identity[name] for name in now}
    if lines := differences(then, now):
        raise UsageError(f"study {study.name!r} cannot go on, what it is made of has changed: {'; '.join(lines)}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two identities, a line each: `space.lr.low: 0.001 -> 0.01`."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {_short(before)} -> {_short(after)}")
    return lines


def check_name(name: str) -> str:
    """Return `name` if a study may be called so.

    Raises:
        UsageError: empty, too long, or with a slash, a leading dot or control characters.
    """
    num_bytes = len(os.fsencode(name))
    if not name or len(name) > MAX_NAME_LENGTH or num_bytes > MAX_FILE_NAME_BYTES:
        allowed = f"1 to {MAX_NAME_LENGTH} characters and at most {MAX_FILE_NAME_BYTES} bytes"
        raise UsageError(f"a study's name has {allowed}; found {len(name)} characters, {num_bytes} bytes")
    # Category C: control codes, formats that reorder text, and bytes that are no text.
    if any(letter in "/\\" or unicodedata.category(letter).startswith("C") for letter in name) or name[0] == ".":
        raise UsageError(f"study name {name!r}: no slash, no control character and no leading dot are allowed")
    return name


# -- the command line


def _split(arguments: Sequence[str]) -> dict[str, str]:
    typed: dict[str, str] = {}
    for argument in arguments:
        key, _ = overrides.split(argument)
        if key in typed:
            raise UsageError(f"{key} is given twice")
        typed[key] = argument
    return typed


def _load_recipe(argument: str) -> recipes.Recipe:
    reference = argument.partition("=")[2]
    if not reference:
        raise UsageError(f"recipe= is missing; known: {', '.join(recipes.names())}, or a path to a .py file")
    return catalogue.load(reference)


def _check_budget(budget: Budget, space: Space, fixed: Mapping[str, Scalar], named: Sequence[Objective]) -> None:
    check_sampler(budget, space)
    objectives.check_budget(named, budget, sampler_of(budget, space, several=bool(named)))
    if budget.confirm != "none" and "seed" not in fixed:
        raise UsageError(
            f"confirm={budget.confirm} trains with further seeds; this study has no one seed to go on from"
        )


def _fingerprints(config: Mapping[str, Scalar]) -> tuple[str, str]:
    """Of the data and its split; empty for a recipe that has no field `data` and so brings its own."""
    if "data" not in config:
        return "", ""
    try:
        return fingerprints(dataset_of(config))
    except UnknownDataError as error:
        raise UnknownNameError("data", error.name, error.names) from error
    except DataError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UnavailableError(f"data cannot be kept in {cache_folder()}: {error.strerror}") from error


def _with_absolute_paths(config: dict[str, Scalar]) -> dict[str, Scalar]:
    """A study is resumed from any folder, and its workers run in their own."""
    found = absolute(dataset_of(config)).model_dump()
    return {name: found.get(name, value) for name, value in config.items()} if "data" in config else config


def _default_name(recipe: recipes.Recipe, config: Mapping[str, Scalar], *, single: bool) -> str:
    """`cnn-digits`; a path's slug and six hex digits for a path; six more for a single configuration."""
    parts = [_slug(recipe.reference), *([_slug(str(config["data"]))] if "data" in config else [])]
    return "-".join([*parts, *([_six_hex(json.dumps(config, sort_keys=True))] if single else [])])


def _slug(reference: str) -> str:
    if re.fullmatch(r"[\w.-]+", reference) and not reference.endswith(".py"):
        return reference
    words = re.sub(r"\W+", "-", reference.removesuffix(".py").rpartition("/")[2]).strip("-")
    return f"{words}-{_six_hex(reference)}"


def _six_hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"

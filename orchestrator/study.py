"""What is searched: a study file and the command line, checked against the recipe's Config before anything is written.

This module only reads.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, ValidationError

import recipes
from orchestrator import catalogue, constraints, overrides, pruning, study_files
from orchestrator import starts as beginnings
from orchestrator.errors import UnavailableError, UnknownNameError, UsageError
from orchestrator.feasible import Feasible
from orchestrator.points import MAX_COUNTED, num_values, plain_ranges
from orchestrator.space import Choices, Range, Scalar, Space, plain, settle
from orchestrator.starts import Result
from orchestrator.tables import MAX_NAME_LENGTH
from recipes.config import (
    AugmentConfig,
    DatasetConfig,
    FieldPath,
    OptimConfig,
    Part,
    dataset_of,
    fields,
    flatten,
    make,
    objective_of,
)
from recipes.data import CSV, SHARDS, DataError, UnknownDataError, absolute, cache_folder, fingerprints
from recipes.data import load as load_data

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic_core import ErrorDetails

MAX_FILE_NAME_BYTES = 255  # a study is a folder
# What may differ between two runs of one study: where a trial runs and where its files lie, not what comes out of it.
PLACEMENT_FIELDS = frozenset({"device", "data_root", "download", "profile", "pictures", "loading", "loader_workers"})
# Not of a study's identity: of data, what they are counts, which their fingerprint says, and not where they lie.
UNIDENTIFYING_FIELDS = PLACEMENT_FIELDS | {"data"}
# Fields of a Config that are set by the study key of the same name, whose text is read by the field's own type.
STUDY_FIELDS = (*DatasetConfig.model_fields, "seed")

SamplerName = Literal["auto", "tpe", "gp", "cmaes", "qmc", "random", "grid", "nsga2"]
MAX_GP_TRIALS = 100  # a draw of a Gaussian process costs the cube of the trials so far
ExecutorName = Literal["local", "inline"]


class Budget(Part):
    """The study keys that a later command may change."""

    trials: int = Field(20, gt=0, description="trials in total, failed ones counted")
    workers: int = Field(0, ge=0, description="processes that train; 0 (auto) is one a GPU, else one a core")
    executor: ExecutorName = Field("local", description="worker processes, or one thread that a debugger reaches")
    timeout_seconds: float = Field(0.0, ge=0, description="stop after this long; 0 is never")
    sampler: SamplerName = Field("auto", description="how parameters are drawn; auto is gp or tpe")
    pruner: str = Field("asha", description="which trials are stopped early, or paused")
    export: str = Field("top:3", description="trials exported to ONNX: best, top:K, all or none")
    retries: int = Field(2, ge=0, description="further attempts at a trial that raised or lost its worker")

    @property
    def num_exports(self) -> int:
        """How many of the leaders are exported."""
        if self.export.startswith("top:"):
            return int(self.export.removeprefix("top:"))
        return {"best": 1, "all": self.trials, "none": 0}[self.export]


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
    budget: Budget
    queue: tuple[dict[str, Scalar], ...] = ()  # configurations that are tried first; the sampler draws what they lack
    warm_start: str = ""  # the study that the sampler knows from the start
    known: tuple[Result, ...] = ()  # what it knows of it, kept as it was then

    @property
    def sampler(self) -> str:
        """How parameters are drawn, with a name in place of `auto`."""
        return _sampler_of(self.budget, self.space)

    @property
    def objective(self) -> str:
        """The metric by which trials are ranked."""
        return objective_of(self.fixed)

    @property
    def identity(self) -> dict[str, Any]:
        """What may not change under one name."""
        # What order a stream is read in depends on who reads it.
        left_out = UNIDENTIFYING_FIELDS - ({"loader_workers"} if self.data.startswith(SHARDS) else set())
        kept = {name: value for name, value in self.fixed.items() if name not in left_out}
        return {
            "recipe": Path(self.recipe).stem,  # where its file lies does not matter, what it says does
            "code": self.code_hash,
            "objective": self.objective,
            "data": self.data_fingerprint,
            "split": self.split_fingerprint,
            "fixed": kept,
            "space": {name: plain(searched) for name, searched in self.space.items()},
            **({"constraints": list(self.constraints)} if self.constraints else {}),
        }

    def config(self, params: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The flat configuration of a trial."""
        return {**self.fixed, **params}

    @property
    def max_epochs(self) -> int:
        """The most epochs that a trial trains, as far as the recipe says; else 1."""
        return int(max(_values("epochs", self.fixed, self.space), default=1))


def load(arguments: Sequence[str], *, single: bool = False) -> Study:
    """Read `key=value` arguments and the recipe's study file; `single` is one configuration, nothing searched.

    Raises:
        UsageError: anything that is not known, possible or complete.
    """
    typed = _split(arguments)
    recipe = _load_recipe(typed.pop("recipe", ""))
    known = fields(recipe.config_type)
    budget = _budget(typed, single=single)
    starts = _take_starts(typed, single=single)
    name = overrides.split(typed.pop("study"))[1] if "study" in typed else None
    told = _settings(recipe, typed, known, single=single)
    flat, space = _checked(recipe, told, known)
    if not space and not single:
        raise UsageError("nothing is searched; give a field a range, such as lr=tag(log,interval(1e-4,1e-1))")
    flat = _with_absolute_paths(flat)
    _check_device(flat)
    name = check_name(_default_name(recipe, flat, single=single) if name is None else name)
    possible = Feasible(recipe.config_type, flat, space, told.constraints)
    _check_needs(recipe, possible, space)
    _check_sampler(budget, space)
    queue = _queue(recipe, possible, flat, space, starts)
    data_fingerprint, split_fingerprint = _fingerprints(flat)
    if useless := _useless(recipe, flat, space, set(typed) & {*told.space, *told.fixed}):
        defaults = flatten(make(recipe.config_type, {}))
        flat = {**flat, **{key: defaults[key] for key in useless}}
        space = settle({key: searched for key, searched in space.items() if key not in useless}, flat)
    _check_loss(recipe, flat, space)
    _check_colours(recipe, flat, space)
    _check_stream(flat, space)
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
        budget=budget,
        queue=tuple({key: value for key, value in each.items() if key in space} for each in queue),
        warm_start=starts.get("warm_start", ""),
    )


def feasible(study: Study) -> Feasible:
    """What tells the possible configurations of a study."""
    config_type = catalogue.load(study.recipe).config_type
    return Feasible(config_type, study.fixed, study.space, study.constraints)


def check_file(recipe: recipes.Recipe, path: Path) -> study_files.StudyFile:
    """Read a study file and hold it against its recipe, without any data.

    Raises:
        UsageError: it cannot be read, or some value, condition or constraint is impossible.
    """
    known = fields(recipe.config_type)
    told = _read(path, known)
    _checked(recipe, told, known)
    return told


def change_budget(study: Study, arguments: Sequence[str]) -> Study:
    """The study with the budget keys among `arguments` changed; other keys are an error."""
    typed = _split(arguments)
    budget = _budget(typed, start=study.budget)
    if typed:
        key = next(iter(typed))
        raise UsageError(f"{key} cannot be changed in an existing study; allowed: {', '.join(_BUDGET_KEYS)}")
    _check_sampler(budget, study.space)
    return study.model_copy(update={"budget": budget})


def check_unchanged(study: Study) -> None:
    """See that what a recorded study is made of is still there.

    Raises:
        UsageError: the recipe's code or the data are others now.
    """
    recipe = _load_recipe(f"recipe={study.recipe}")
    now = {"code": recipe.code_hash, "data": "", "split": ""}
    now["data"], now["split"] = _fingerprints(study.fixed)
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


def _read_workers(text: str) -> Any:
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) == 0:
        raise ValueError("expected auto or a number of at least 1")
    return int(text)


def _read_seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|d|)", text)
    if match is None or not float(match[1]) > 0:
        raise ValueError("expected a duration such as 90, 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _read_export(text: str) -> str:
    if not re.fullmatch(r"best|top:[1-9][0-9]*|all|none", text):
        raise ValueError("expected best, all, none or top:K, such as top:3")
    return text


def _read_pruner(text: str) -> str:
    pruning.make(text)
    return text


_BUDGET_KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "trials": ("trials", str),
    "workers": ("workers", _read_workers),
    "timeout": ("timeout_seconds", _read_seconds),
    "executor": ("executor", str),
    "sampler": ("sampler", str),
    "pruner": ("pruner", _read_pruner),
    "export": ("export", _read_export),
    "retries": ("retries", str),
}


_START_KEYS = ("default_first", "enqueue", "warm_start")


def _take_starts(typed: dict[str, str], *, single: bool) -> dict[str, str]:
    """Take the keys of what a study begins with out of `typed`."""
    starts = {key: overrides.split(typed.pop(key))[1] for key in _START_KEYS if key in typed}
    for key, text in starts.items():
        if single:
            raise UsageError(f"{key} belongs to `orch sweep`; `orch train` runs one configuration")
        if not text:
            raise UsageError(f"{key}= is empty; expected {'a file' if key == 'enqueue' else 'the name of a study'}")
    if starts.get("default_first", "false") not in {"true", "false"}:
        raise UsageError(f"default_first={starts['default_first']}: expected true or false")
    return starts


def _queue(
    recipe: recipes.Recipe,
    possible: Feasible,
    fixed: Mapping[str, Scalar],
    space: Space,
    starts: Mapping[str, str],
) -> tuple[dict[str, Scalar], ...]:
    """What is tried first: the recipe's default if it is asked for, then the configurations of a file."""
    queue: list[dict[str, Scalar]] = []
    if starts.get("default_first") == "true":
        queue.append(beginnings.default(space, flatten(make(recipe.config_type, {}))))
    if "enqueue" in starts:
        queue += beginnings.read_queue(Path(starts["enqueue"]), space, fixed)
    for each in queue:
        # What is drawn to a partial one may make it possible.
        if beginnings.is_whole(space, each) and (complaint := possible.complaint(each)):
            told = ", ".join(f"{key}={value}" for key, value in each.items())
            raise UsageError(f"{told} cannot be tried first: {complaint}")
    return beginnings.without_repeats(queue, space)


def _sampler_of(budget: Budget, space: Space) -> str:
    """The budget's sampler; `auto` is `gp` if no trial is stopped early (`pruner=none`), all that is searched are
    ranges without conditions, and there are at most 100 trials, else `tpe`.
    """
    if budget.sampler != "auto":
        return budget.sampler
    numeric = 0 < len(space) == len(plain_ranges(space))
    return "gp" if numeric and budget.trials <= MAX_GP_TRIALS and budget.pruner == "none" else "tpe"


def _check_sampler(budget: Budget, space: Space) -> None:
    """See that the sampler can draw from the space."""
    sampler = _sampler_of(budget, space)
    if sampler == "grid":
        for name in space:
            if math.isinf(num_values(space[name])):
                raise UsageError(f"sampler=grid needs choices or steps; {name} is a range without, try {name}=a,b,c")
        if (size := math.prod(map(num_values, space.values()))) > MAX_COUNTED:
            raise UsageError(f"sampler=grid: {size} configurations; at most {MAX_COUNTED} are laid out")
    if sampler == "cmaes" and not plain_ranges(space):
        raise UsageError("sampler=cmaes needs a range that is searched in every trial; here there is none")


def _budget(typed: dict[str, str], *, start: Budget | None = None, single: bool = False) -> Budget:
    """Take the budget keys out of `typed`; their text is read by the types of `Budget`, not by Hydra's grammar."""
    changed: dict[str, Any] = {"trials": 1, "pruner": "none", "export": "best"} if single else {}
    for key in [key for key in typed if key in _BUDGET_KEYS]:
        if single and key == "trials":
            raise UsageError("trials belongs to `orch sweep`; `orch train` runs one")
        field, read = _BUDGET_KEYS[key]
        text = overrides.split(typed.pop(key))[1]
        try:
            changed[field] = read(text)
            Budget.model_validate({field: changed[field]})
        except ValidationError as error:
            raise _complaint(key, text, error.errors()[0]) from error
        except ValueError as error:
            raise UsageError(f"{key}={text}: {error}") from error
    return Budget.model_validate({**(start or Budget()).model_dump(), **changed})


# -- fields, fixed and searched


def _settings(
    recipe: recipes.Recipe, typed: Mapping[str, str], known: Mapping[str, FieldPath], *, single: bool
) -> study_files.StudyFile:
    """What the study file and then the command line say of each field."""
    data = overrides.split(typed["data"])[1] if "data" in typed else ""
    file = None if single else study_files.find(recipe.name, data)
    told = _read(file, known) if file else study_files.StudyFile()
    fixed, space = dict(told.fixed), dict(told.space)
    for key, text in typed.items():
        _check_known(key, known)
        value = overrides.split(text)[1] if key in STUDY_FIELDS else overrides.parse(text)[1]
        if known[key].info.annotation is str and not isinstance(value, str | Range | Choices):
            value = overrides.split(text)[1]  # a word may look like a number
        fixed.pop(key, None)
        space.pop(key, None)
        if isinstance(value, Range | Choices):
            if key in PLACEMENT_FIELDS or single:
                raise UsageError(f"{key} cannot be searched {'by `orch train`' if single else ''}".rstrip())
            space[key] = value
        else:
            fixed[key] = value
    return told.model_copy(update={"fixed": fixed, "space": space})


def _read(file: Path, known: Mapping[str, FieldPath]) -> study_files.StudyFile:
    """A study file whose names are all known."""
    told = study_files.read(file)
    where = f" in {file}"
    for key in [*told.fixed, *told.space]:
        _check_known(key, known, where)
        if key in {*STUDY_FIELDS, *PLACEMENT_FIELDS}:
            raise UsageError(f"{file}: {key} is given on the command line, not in a study file")
        if key in told.fixed and key in told.space and not told.space[key].when:
            raise UsageError(f"{file}: {key} is both fixed and searched")
    for key in [parent for searched in told.space.values() for parent in searched.when]:
        _check_known(key, known, where)
    try:
        for constraint in map(constraints.parse, told.constraints):
            for key in constraint.names:
                _check_known(key, known, where)
            constraint.check({key: _kind(known[key]) for key in constraint.names})
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from error
    for key, parent, wanted in [(k, p, w) for k, searched in told.space.items() for p, w in searched.when.items()]:
        if parent in told.space and not any(map(told.space[parent].takes, wanted)):
            raise UsageError(f"{file}: space.{key}.when: {parent} is never {' or '.join(map(str, wanted))}")
    return told


def _kind(field: FieldPath) -> constraints.Kind:
    annotation = field.info.annotation
    words = get_args(annotation)
    return constraints.kind_of(type(words[0]) if words else annotation if isinstance(annotation, type) else str)


def _check_known(key: str, known: Mapping[str, FieldPath], where: str = "") -> None:
    if key not in known:
        keys = [*known, *_BUDGET_KEYS, *_START_KEYS, "study", "recipe"]
        raise UnknownNameError(f"key{where}", key, keys)


def _typed(searched: Range | Choices, field: FieldPath) -> Range | Choices:
    """Make a range over a whole-number field a range of whole numbers; what is no number has no range."""
    if isinstance(searched, Choices) or field.info.annotation is float:
        return searched
    if field.info.annotation is not int:
        raise UsageError(f"{field.name} is not a number and has no range; give choices, as in {field.name}=a,b")
    if any(number != int(number) for number in (searched.low, searched.high, searched.step)):
        raise UsageError(f"{field.name}: a range of whole numbers cannot go from {searched.low} to {searched.high}")
    step = int(searched.step) or 1
    whole = {"low": int(searched.low), "high": int(searched.high), "step": step, "integer": True}
    return Range.model_validate({**searched.model_dump(), **whole})


def _checked(
    recipe: recipes.Recipe, told: study_files.StudyFile, known: Mapping[str, FieldPath]
) -> tuple[dict[str, Scalar], Space]:
    """What each field has that is not searched in every trial, and the space with its conditions on other fields.

    Each value must be one that its field takes, each choice possible with some draw of the others, and some draw of
    all. A range may hold values that the recipe refuses: they are drawn again.
    """
    fixed = {key: _taken(recipe, key, value, known) for key, value in told.fixed.items()}
    space = {key: _typed(searched, known[key]) for key, searched in told.space.items()}
    for key, searched in space.items():
        if key == "devices":
            raise UsageError("devices cannot be searched: slots are laid out for all trials of a study alike")
        for end in searched.ends():
            _taken(recipe, key, end, known)
        when = {
            parent: tuple(_taken(recipe, parent, value, known) for value in wanted)
            for parent, wanted in searched.when.items()
        }
        space[key] = searched.model_copy(update={"when": when})
    values = {**_defaults(recipe), **fixed}
    space = settle(space, values)
    possible = Feasible(recipe.config_type, values, space, told.constraints)
    config = _make(recipe, {**values, **(possible.find() or {})})
    for key, searched in space.items():
        for choice in searched.ends() if isinstance(searched, Choices) else ():
            possible.find({key: choice})
    flat = {key: value for key, value in config.items() if key not in space}
    otherwise = {key: values[key] for key, searched in space.items() if searched.when and key in values}
    return {**flat, **otherwise}, space


def _defaults(recipe: recipes.Recipe) -> dict[str, Scalar]:
    """The default of each field; none of a recipe that leaves something to be given."""
    try:
        return flatten(make(recipe.config_type, {}))
    except ValueError:
        return {}


def _taken(recipe: recipes.Recipe, key: str, value: Any, known: Mapping[str, FieldPath]) -> Any:
    """A value as its field takes it, whatever the other fields say."""
    try:
        return flatten(make(recipe.config_type, {key: value}))[key]
    except ValidationError as error:
        path = known[key].path
        for found in error.errors():
            if found["loc"][: len(path)] == path:
                raise _complaint(key, value, found) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    return value


def _make(recipe: recipes.Recipe, values: Mapping[str, Any]) -> dict[str, Scalar]:
    try:
        flat: dict[str, Scalar] = flatten(make(recipe.config_type, values))
    except ValidationError as error:
        first = error.errors()[0]
        raise _complaint(str((first["loc"] or (recipe.name,))[-1]), first["input"], first) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    for key, value in flat.items():
        if not isinstance(value, bool | int | float | str):
            raise UsageError(
                f"recipe {recipe.name}: {key} is {value!r}; only numbers, words, true and false can be set"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError("every number must be finite")
    return flat


def _complaint(key: str, found: object, first: ErrorDetails) -> UsageError:
    """One line on a thing that pydantic found wrong; a wrong word is met with the nearest right one."""
    message = first["msg"].removeprefix("Value error, ")
    if isinstance(found, dict):  # a whole part, whose fields do not fit together
        return UsageError(message)
    if first["type"] == "literal_error":
        return UnknownNameError(key, str(found), re.findall(r"'([^']+)'", first["ctx"]["expected"]))
    return UsageError(f"{key}={found}: {message}")


def _values(key: str, flat: Mapping[str, Scalar], space: Space) -> tuple[Scalar, ...]:
    """The ends of what a field may be."""
    return (*(space[key].ends() if key in space else ()), *((flat[key],) if key in flat else ()))


def _check_needs(recipe: recipes.Recipe, possible: Feasible, space: Space) -> None:
    """Ask the recipe whether it has all it needs, for each word that a field may be."""
    if not hasattr(recipe.module, "check"):
        return
    words = [{key: end} for key, searched in space.items() for end in searched.ends() if isinstance(end, str)]
    try:
        for pinned in [{}, *words]:
            if (params := possible.find(pinned)) is not None:
                recipe.module.check(possible.config(params))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_loss(recipe: recipes.Recipe, flat: Mapping[str, Scalar], space: Space) -> None:
    """See that all losses that may be drawn are for what the data ask."""
    part = recipe.config_type.model_fields.get("optim")
    if part is None or part.annotation is not OptimConfig:
        return
    from recipes import losses  # torch, which the recipe has imported by now

    task = dataset_of(flat).task
    drawn = {key: _values(key, flat, space) for key in ("loss", "balance")}
    try:
        for loss, balance in itertools.product(*drawn.values()):
            losses.check(OptimConfig.model_validate({"loss": loss, "balance": balance}), task)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _useless(recipe: recipes.Recipe, config: Mapping[str, Scalar], space: Space, typed: set[str]) -> list[str]:
    """Fields that say nothing about such data, whatever a study file searches: of a table, all changes of images.

    Raises:
        UsageError: the recipe takes no tables, or one of the fields was typed.
    """
    useless = ["label_smoothing"] if config.get("task") == "regression" else []
    if str(config.get("data", "")).startswith(CSV) and load_data(dataset_of(config)).info.columns:
        if not getattr(recipe.module, "TAKES_TABLES", False):
            raise UsageError(f"recipe {recipe.name} takes images; data={config['data']} is a table, for recipe=mlp")
        useless += AugmentConfig.model_fields
    found = [key for key in useless if key in config or key in space]
    for key in found:
        if key in typed:
            reason = "is for classes and labels" if key == "label_smoothing" else "changes images, and this is a table"
            raise UsageError(f"{key} {reason}")
    return found


def _check_colours(recipe: recipes.Recipe, flat: Mapping[str, Scalar], space: Space) -> None:
    """See that the images have the colours that the strongest augmentation changes; they are only read if it does."""
    part = recipe.config_type.model_fields.get("augment")
    if part is None or part.annotation is not AugmentConfig or "data" not in flat:
        return
    from recipes.colour import COLOUR_FIELDS, check_channels  # torch, which the recipe has imported by now

    strongest = {key: max(_values(key, flat, space)) for key in COLOUR_FIELDS}
    if not any(strongest.values()):
        return
    try:
        check_channels(AugmentConfig.model_validate(strongest), load_data(dataset_of(flat)).info)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_stream(flat: Mapping[str, Scalar], space: Space) -> None:
    """See that nothing is asked of a stream that needs its images in any order."""
    if not str(flat.get("data", "")).startswith(SHARDS):
        return
    for key, value in (("balance", "sampler"), ("loading", "resident")):
        if value in _values(key, flat, space):
            raise UsageError(f"{key}={value} needs training images in any order; data {flat['data']!r} is a stream")


def _check_device(config: Mapping[str, Scalar]) -> None:
    from recipes.device import check_devices  # torch, which the recipe has imported by now

    try:
        check_devices(str(config.get("device", "auto")), int(config.get("devices", 1)))
    except ValueError as error:
        raise UsageError(str(error)) from error


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

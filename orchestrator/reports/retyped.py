"""What to type to have a study of the record again, or one of its trials alone."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import catalogue, fields
from orchestrator.budget import BUDGET_KEYS, GATES, Budget
from orchestrator.errors import UsageError
from orchestrator.fields import PLACEMENT_FIELDS, STUDY_FIELDS
from orchestrator.objectives import describe, of_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.tables import Study, Trial

QUEUE_FILE = "queue.json"
LIMITS = ("max_epochs_total", "max_failures", "target_value", "patience")
OF_ANY_MACHINE = {"trials", "sampler", "pruner", "confirm", *LIMITS, *GATES}  # of the budget


def study_file_name(row: Study) -> str:
    """Under which name `orch sweep` finds the study file before all others."""
    stem = Path(row.recipe).stem
    return f"studies/{stem}-{row.data}.yaml" if re.fullmatch(r"[\w.-]+", row.data) else f"studies/{stem}.yaml"


def study_file(row: Study) -> str:
    """The study file in which all is that a command line cannot say, such as conditions; JSON's values are YAML's."""
    spec, lines = row.spec, []
    if fixed := _of_file(_changed(row, spec.get("fixed", {}))):
        lines += ["fixed:", *(f"  {name}: {json.dumps(value)}" for name, value in fixed.items())]
    lines += ["space:", *(f"  {name}: {_searched(searched)}" for name, searched in spec.get("space", {}).items())]
    if spec.get("constraints"):
        lines += ["constraints:", *(f"  - {json.dumps(text)}" for text in spec["constraints"])]
    return "\n".join(lines)


def queue_file(row: Study) -> str:
    """The configurations that a study began with, as `enqueue=` reads them; empty without any."""
    queue = row.spec.get("queue", [])
    return json.dumps(queue, indent=2) if queue else ""


def study_command(row: Study) -> str:
    """The command that sweeps it, given its study file."""
    spec = row.spec
    keys: dict[str, Any] = {"recipe": row.recipe, "data": row.data, "study": row.name}
    keys |= _of_command(_changed(row, spec.get("fixed", {})))
    keys |= _budget(spec.get("budget", {}))
    if named := of_spec(spec):
        keys["objectives"] = describe(named)
    if spec.get("warm_start"):
        keys["warm_start"] = spec["warm_start"]
    if spec.get("queue"):
        keys["enqueue"] = QUEUE_FILE
    return _command("sweep", keys)


def train_command(row: Study, trial: Trial) -> str:
    """The command that trains one of its configurations."""
    changed = _changed(row, trial.config)
    given = {"recipe": row.recipe, "data": row.data, **_of_command(changed)}
    typed = {name: _word(value) for name, value in _of_file(changed).items()}
    return _command("train", given | typed)


def reproduce_command(title: str, trial: Trial) -> str:
    """The command that trains a trial again and holds it against what is on record."""
    return shlex.join(["orch", "reproduce", f"{title}/{trial.number}"])


def _changed(row: Study, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that are not the recipe's own; all of them where the recipe is gone."""
    try:
        own = fields.defaults(catalogue.load(row.recipe))
    except UsageError:
        own = {}
    return {name: value for name, value in values.items() if name != "data" and own.get(name) != value}


def _of_file(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in {*STUDY_FIELDS, *PLACEMENT_FIELDS}}


def _of_command(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in {*STUDY_FIELDS, *PLACEMENT_FIELDS}}


def _budget(budget: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the budget that say how it is searched and what is promoted; where it runs is another machine's."""
    own = Budget().model_dump()
    return {
        key: budget[name]
        for key, name in BUDGET_KEYS.items()
        if name in budget and name in OF_ANY_MACHINE and (name == "trials" or budget[name] != own[name])
    }


def _searched(searched: Mapping[str, Any]) -> str:
    """A range or choices as a study file has it, without what is so anyway."""
    given = {name: value for name, value in searched.items() if value and name != "integer"}
    if "choices" not in searched:
        given = {"low": searched["low"], "high": searched["high"], **given}
        if searched.get("integer") and given.get("step") == 1:
            del given["step"]
    elif not searched.get("when"):
        return json.dumps(searched["choices"])
    return json.dumps(given)


def _word(value: Any) -> str:
    """A value in Hydra's grammar, which wants what is no plain word in quotes."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if re.fullmatch(r"[\w.:/@-]+", text) else json.dumps(text)


def _command(word: str, keys: Mapping[str, Any]) -> str:
    typed = (f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in keys.items())
    return shlex.join(["orch", word, *typed])

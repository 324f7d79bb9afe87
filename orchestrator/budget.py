"""How much a study may cost and where it runs: what a later command may change."""

from __future__ import annotations

import importlib.util
import math
import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from orchestrator import confirm, depot, overrides, pruning
from orchestrator.errors import UsageError, refused
from orchestrator.points import MAX_COUNTED, num_values, plain_ranges
from recipes.config import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from orchestrator.space import Space

SamplerName = Literal["auto", "tpe", "gp", "cmaes", "qmc", "random", "grid", "nsga2"]
MAX_GP_TRIALS = 100  # a draw of a Gaussian process costs the cube of the trials so far
ExecutorName = Literal["local", "inline", "ray"]


class Budget(Part):
    """The study keys that a later command may change."""

    trials: int = Field(20, gt=0, description="trials in total, failed ones counted")
    workers: int = Field(0, ge=0, description="processes that train; 0 (auto) is one a GPU, else one a core")
    per_gpu: int = Field(1, ge=0, description="workers on each GPU; 0 (auto) is as many as a probe finds worth it")
    executor: ExecutorName = Field("local", description="worker processes, one thread that a debugger reaches, or Ray")
    address: str = Field("auto", description="of the Ray cluster, host:port; auto is the one that runs on this machine")
    checkpoints: str = Field("", description="URL of what Ray's workers write where they share no folder")
    timeout_seconds: float = Field(0.0, ge=0, description="stop after this long; 0 is never")
    max_epochs_total: int = Field(0, ge=0, description="stop after so many epochs of all trials; 0 is never")
    max_failures: int = Field(0, ge=0, description="stop when so many trials failed by an error; 0 is never")
    target_value: float | None = Field(None, description="stop when a trial has ended at least as well; none is never")
    patience: int = Field(0, ge=0, description="stop when so many trials in a row were no better; 0 is never")
    sampler: SamplerName = Field("auto", description="how parameters are drawn; auto is gp or tpe")
    pruner: str = Field("asha", description="which trials are stopped early, or paused")
    max_disk_bytes: int = Field(0, ge=0, description="most that checkpoints of paused trials take; 0 is all there is")
    confirm: str = Field("none", description="leaders trained again with further seeds, as in 3x5; the best mean wins")
    export: str = Field("top:3", description="trials exported to ONNX: best, top:K, all or none")
    min_metric: float | None = Field(None, description="least that the objective must be on the test images; or none")
    min_class_recall: float = Field(0.0, ge=0, le=1, description="least recall of any class there; 0 is any")
    max_calibration_error: float = Field(0.0, ge=0, le=1, description="most that it may be there; 0 is any")
    max_latency_ms: float = Field(0.0, ge=0, description="most that the promoted model takes for an image; 0 is any")
    max_size_mb: float = Field(0.0, ge=0, description="most that its ONNX file takes; 0 is any")
    keep: str = Field("all", description="ended trials that keep their weights: all, best, top:K or none")
    system_metrics_seconds: float = Field(10.0, ge=0, description="between two looks at CPU, memory, GPU; 0 is none")
    retries: int = Field(2, ge=0, description="further attempts at a trial that raised or lost its worker")

    @property
    def has_limits(self) -> bool:
        """Whether the study may end before all trials are done, but for the time."""
        return bool(self.max_epochs_total or self.max_failures or self.patience or self.target_value is not None)

    @property
    def where(self) -> tuple[str, str, int, int, str]:
        """What decides on which workers it runs."""
        return self.executor, self.address, self.workers, self.per_gpu, self.checkpoints

    @property
    def confirmations(self) -> tuple[int, int]:
        """How many leaders are trained again, and with how many further seeds each."""
        return confirm.parse(self.confirm)

    @property
    def num_exports(self) -> int:
        """How many of the leaders are exported."""
        return self._count(self.export)

    @property
    def num_kept(self) -> int:
        """How many of the leaders keep their weights; what is yet to be exported or confirmed is among them."""
        return max(self._count(self.keep), self.num_exports, self.confirmations[0])

    def _count(self, text: str) -> int:
        if text.startswith("top:"):
            return int(text.removeprefix("top:"))
        return {"best": 1, "all": self.trials, "none": 0}[text]


# Keys that say what a model must be to be promoted.
GATES = ("min_metric", "min_class_recall", "max_calibration_error", "max_latency_ms", "max_size_mb")
# Keys that a later command may add to, as in trials=+50.
COUNTS = ("trials", "max_epochs_total")
# Study key -> field.
BUDGET_KEYS = {name.removesuffix("_seconds").removesuffix("_bytes"): name for name in Budget.model_fields}


def take_budget(typed: dict[str, str], *, start: Budget | None = None, single: bool = False) -> Budget:
    """Take the budget's keys out of `typed`; their text is read by the types of `Budget`, not by Hydra's grammar.

    Raises:
        UsageError: a value that is not possible, `trials` for a single configuration, or Ray where it is not installed,
            or its address without it.
    """
    changed: dict[str, Any] = {"trials": 1, "pruner": "none", "export": "best"} if single else {}
    for key in [key for key in typed if key in BUDGET_KEYS]:
        if single and key in {"trials", "confirm"}:
            raise UsageError(f"{key} belongs to `orch sweep`; `orch train` runs one trial")
        field, text = BUDGET_KEYS[key], overrides.split(typed.pop(key))[1]
        try:
            changed[field] = _READERS.get(key, str)(_added(text, start, field) if key in COUNTS else text)
            Budget.model_validate({field: changed[field]})
        except ValidationError as error:
            raise refused(key, text, error.errors()[0]) from error
        except ValueError as error:
            raise UsageError(f"{key}={text}: {error}") from error
    budget = Budget.model_validate({**(start or Budget()).model_dump(), **changed})
    if "address" in changed and budget.executor != "ray":
        raise UsageError(f"address={budget.address} is of a Ray cluster; it goes with executor=ray")
    if budget.checkpoints and budget.executor != "ray":
        raise UsageError(f"checkpoints={budget.checkpoints} is for workers of a Ray cluster; it goes with executor=ray")
    if budget.checkpoints and budget.max_disk_bytes:
        raise UsageError("max_disk is of this machine's disk; with checkpoints=URL paused trials have theirs elsewhere")
    if budget.per_gpu != 1 and (budget.workers or budget.executor != "local"):
        given = f"workers={budget.workers}" if budget.workers else f"executor={budget.executor}"
        raise UsageError(f"per_gpu is of local workers that are as many as the GPUs take; it does not go with {given}")
    if budget.executor == "ray" and importlib.util.find_spec("ray") is None:  # not imported: it takes half a second
        raise UsageError("ray is not installed; `pip install 'orch[ray]'`")
    return budget


def describe(budget: Budget, keys: Iterable[str]) -> str:
    """The values of some study keys, as one would type them."""
    values = {key: getattr(budget, BUDGET_KEYS[key]) for key in keys}
    units = {"timeout": "s", "system_metrics": "s", "max_disk": " bytes"}
    return ", ".join(f"{key}={value}{units.get(key, '')}" for key, value in values.items())


def sampler_of(budget: Budget, space: Space, *, several: bool = False) -> str:
    """The budget's sampler; `auto` is `gp` if no trial is stopped early (`pruner=none`), all that is searched are
    ranges without conditions, and there are at most 100 trials and not `several` objectives, else `tpe`.
    """
    if budget.sampler != "auto":
        return budget.sampler
    numeric = 0 < len(space) == len(plain_ranges(space))
    few = budget.trials <= MAX_GP_TRIALS and not several
    return "gp" if numeric and few and budget.pruner == "none" else "tpe"


def check_sampler(budget: Budget, space: Space) -> None:
    """See that the sampler can draw from the space.

    Raises:
        UsageError: it cannot.
    """
    sampler = sampler_of(budget, space)
    if sampler == "grid":
        for name in space:
            if math.isinf(num_values(space[name])):
                raise UsageError(f"sampler=grid needs choices or steps; {name} is a range without, try {name}=a,b,c")
        if (size := math.prod(map(num_values, space.values()))) > MAX_COUNTED:
            raise UsageError(f"sampler=grid: {size} configurations; at most {MAX_COUNTED} are laid out")
    if sampler == "cmaes" and not plain_ranges(space):
        raise UsageError("sampler=cmaes needs a range that is searched in every trial; here there is none")


def _added(text: str, start: Budget | None, field: str) -> str:
    """A count, where `+50` is fifty more than in the budget so far."""
    if not re.fullmatch(r"\+\d+", text):
        return text
    if start is None:
        raise ValueError("there is nothing to add to yet; `orch extend STUDY trials=+50` adds to a study")
    return str(getattr(start, field) + int(text))


def _read_or_none(text: str) -> Any:
    return None if text == "none" else text


def _read_workers(text: str) -> Any:
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) == 0:
        raise ValueError("expected auto or a number of at least 1")
    return int(text)


def _read_address(text: str) -> str:
    if text != "auto" and not re.fullmatch(r"(\[[\da-fA-F:]+\]|[\w.-]+):\d+", text):
        raise ValueError("expected auto or host:port, such as 10.0.0.1:6379")
    return text


def _read_checkpoints(text: str) -> str:
    if text == "none":
        return ""
    depot.check(text)
    return text


def _read_seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|d|)", text)
    if match is None or not float(match[1]) > 0:
        raise ValueError("expected a duration such as 90, 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _read_interval(text: str) -> float:
    return 0.0 if text in {"0", "none"} else _read_seconds(text)


def _read_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(KB|MB|GB|TB)", text)
    if match is None or not float(match[1]) > 0:
        raise ValueError("expected a size such as 500MB or 20GB")
    return int(float(match[1]) * {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[match[2]])


def _read_leaders(text: str) -> str:
    if not re.fullmatch(r"best|top:[1-9][0-9]*|all|none", text):
        raise ValueError("expected best, all, none or top:K, such as top:3")
    return text


def _read_confirm(text: str) -> str:
    confirm.parse(text)
    return text


def _read_pruner(text: str) -> str:
    pruning.make(text)
    return text


_READERS: dict[str, Callable[[str], Any]] = {
    "workers": _read_workers,
    "per_gpu": _read_workers,
    "address": _read_address,
    "checkpoints": _read_checkpoints,
    "timeout": _read_seconds,
    "system_metrics": _read_interval,
    "target_value": _read_or_none,
    "min_metric": _read_or_none,
    "pruner": _read_pruner,
    "max_disk": _read_bytes,
    "confirm": _read_confirm,
    "export": _read_leaders,
    "keep": _read_leaders,
}

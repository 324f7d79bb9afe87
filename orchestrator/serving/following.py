"""Which version of a model answers, and the one that takes over from it when its alias moves."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator import models
from orchestrator.errors import OrchError
from orchestrator.executors.local import num_cores
from orchestrator.inference import Model

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from orchestrator.serving.measures import Measures
    from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

# A model that answers one small picture sooner gains less from a second thread than waking that thread costs.
SMALL_SECONDS = 0.002
PROBE_PIXELS, NUM_PROBES = 64, 5


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A version in memory, whose bytes were those of the ledger."""

    model: Model
    name: str
    version: str
    sha256: str
    seconds: float  # for one row, or for one picture of `PROBE_PIXELS` a side

    def seconds_for(self, inputs: NDArray[Any]) -> float:
        """About how long it takes to compute pictures `(N, H, W, C)` or rows `(N, F)`."""
        pixels = inputs.shape[1] * inputs.shape[2] if inputs.ndim == 4 else 0
        return len(inputs) * self.seconds * max(1.0, pixels / PROBE_PIXELS**2)


class Following:
    """The version that `uri` stands for, as of the last look at it that went well."""

    def __init__(self, settings: Settings, uri: str, measures: Measures, *, threads: int = 0) -> None:
        """Load it.

        Raises:
            UsageError: as of `models.find`, or the file is no model.
            UnavailableError: MLflow cannot be reached.
        """
        self.uri, self.problem = uri, ""
        self._settings, self._measures, self._threads = settings, measures, threads
        self.loaded = self._load()
        measures.serves(self.loaded)

    @property
    def can_move(self) -> bool:
        """Whether the name may stand for another version tomorrow."""
        return "@" in self.uri

    def watch(self, seconds: float) -> None:
        """Look every so many seconds, on a thread that ends with the process."""

        def look_again() -> None:
            while True:
                time.sleep(seconds)
                self.look()

        threading.Thread(target=look_again, name="watch", daemon=True).start()

    def look(self) -> None:
        """Take over the version that the name stands for now; if that cannot be, keep this one and say why."""
        try:
            entry = models.find_entry(self._settings, self.uri)
            if (entry.to_version, entry.sha256) == (self.loaded.version, self.loaded.sha256):
                self._note("")
            else:
                self._take_over(self._load())
        except OrchError as error:
            self._measures.refusals.inc()
            self._note(f"version {self.loaded.version} answers still: {error}")
        except Exception as error:  # whatever MLflow or a driver raises: the present version goes on answering
            self._measures.refusals.inc()
            self._note(f"version {self.loaded.version} answers still: {type(error).__name__}")
            logger.debug("looking at %s", self.uri, exc_info=True)

    def _take_over(self, loaded: Loaded) -> None:
        before, self.loaded = self.loaded, loaded
        self._measures.serves(loaded)
        self._measures.switches.inc()
        logger.info("%s version %s takes over from version %s", loaded.name, loaded.version, before.version)
        self._note("")

    def _note(self, problem: str) -> None:
        if problem and problem != self.problem:
            logger.warning("%s", problem)
        self.problem = problem
        self._measures.problem.set(bool(problem))

    def _load(self) -> Loaded:
        entry, path = models.find(self._settings, self.uri)
        model, seconds = _opened(path, self._threads)
        return Loaded(model=model, name=entry.model, version=entry.to_version, sha256=entry.sha256, seconds=seconds)


def _opened(path: Path, threads: int) -> tuple[Model, float]:
    """The model at `path`, warm, and its seconds of one input; `threads` 0: one, or one a core for a large one."""
    model = Model(path, threads=threads or 1)
    seconds = _seconds_of_one(model)
    if threads or seconds < SMALL_SECONDS or num_cores() == 1:
        return model, seconds
    model = Model(path, threads=num_cores())
    return model, _seconds_of_one(model)


def _seconds_of_one(model: Model) -> float:
    shape = (1, model.num_channels) if model.columns else (1, PROBE_PIXELS, PROBE_PIXELS, model.num_channels)
    inputs = np.zeros(shape, np.float32 if model.columns else np.uint8)

    def once() -> float:
        since = time.perf_counter()
        model.outputs(inputs)
        return time.perf_counter() - since

    return min(once() for _ in range(NUM_PROBES))

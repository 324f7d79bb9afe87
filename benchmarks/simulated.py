"""What the benchmarks of the coordinator share: trials that are no work, and watches that say what is spent where."""

from __future__ import annotations

import dataclasses
import heapq
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import study
from orchestrator.executors import EpochEnded, Event, Slot, TrialEnded, TrialPaused, TrialSpec

if TYPE_CHECKING:
    from orchestrator.executors import Decision, Job
    from orchestrator.monitor import Monitor
    from orchestrator.settings import Settings
    from orchestrator.study import Study

NUM_REPORTS = 10


def load_study(**keys: object) -> Study:
    """A study of the recipe `mlp` on the digits, ten epochs a trial, nothing exported."""
    given = {"recipe": "mlp", "study": "simulated", "epochs": NUM_REPORTS, "export": "none", **keys}
    return study.load([f"{key}={value}" for key, value in given.items()])


class SimulatedExecutor:
    """Slots that train nothing and answer at once, by the protocol of `orchestrator.executors`.

    An epoch takes as long as `pace` says, by a clock of its own that runs a unit each call of `events`; with (1, 3)
    trials end out of order, with (0, 0) a job says all that it can in one go. A trial's values rise to a level that is
    drawn from its number, or to one that is `equal`. A job that is told to stop or pause does. `watch` hears of calls.
    """

    def __init__(
        self, num_slots: int, watch: Watch, *, pace: tuple[float, float] = (1.0, 3.0), equal: bool = False
    ) -> None:
        self._pace, self._equal = pace, equal
        self.slots = tuple(Slot(name=f"slot-{number}", threads=1) for number in range(num_slots))
        self._free = {slot.name: slot for slot in self.slots}
        self._jobs: dict[int, _Job] = {}
        self._due: list[tuple[float, int]] = []  # when a trial goes on
        self._now = 0.0
        self._watch = watch

    def free_slots(self) -> list[Slot]:
        """The slots without a job."""
        self._watch.events_handled()
        return list(self._free.values())

    def submit(self, job: Job, slot: Slot) -> None:
        """Take a trial."""
        assert isinstance(job, TrialSpec), "nothing is exported here"
        del self._free[slot.name]
        self._jobs[job.trial] = _Job(spec=job, slot=slot, number=job.num_recorded_epochs)
        if self._equal:
            self._jobs[job.trial].level = 0.5
        self._plan(job.trial)
        self._watch.asked(job.trial)

    def events(self, timeout_seconds: float) -> list[Event]:
        """What happens in the next unit of time."""
        del timeout_seconds
        self._watch.events_handled()
        self._now = max(self._now, self._due[0][0] if self._due else 0.0) + 1.0
        found: list[Event] = []
        while self._due and self._due[0][0] <= self._now:
            self._step(heapq.heappop(self._due)[1], found)
        self._watch.events_sent([event.trial for event in found])
        return found

    def decide(self, trial: int, decision: Decision) -> None:
        """Let a trial that waits go on, or end it."""
        self._jobs[trial].decision = decision
        self._plan(trial)

    def close(self) -> None:
        """Do nothing: there is nothing to end."""

    def _plan(self, trial: int) -> None:
        heapq.heappush(self._due, (self._now + self._jobs[trial].chance.uniform(*self._pace), trial))

    def _step(self, trial: int, found: list[Event]) -> None:
        job = self._jobs[trial]
        if job.decision in {"stop", "pause"} or job.number == NUM_REPORTS:
            found.append(job.ended())
            self._free[job.slot.name] = job.slot
            del self._jobs[trial]
            return
        found.append(job.trained())
        if job.number not in job.spec.decision_epochs:
            self._plan(trial)


@dataclasses.dataclass
class _Job:
    spec: TrialSpec
    slot: Slot
    number: int  # epochs that are done
    decision: Decision = "go"

    def __post_init__(self) -> None:
        self.chance = random.Random(self.spec.trial)
        self.level = self.chance.random()

    def trained(self) -> EpochEnded:
        """The next epoch."""
        self.number += 1
        value = self.level * (1 - 0.5**self.number)
        metrics = {"val_loss": 1 - value, "val_accuracy": value}
        given = {"trial": self.spec.trial, "attempt": self.spec.attempt, "seconds": 0.0}
        return EpochEnded(number=self.number, metrics=metrics, **given)  # type: ignore[arg-type]

    def ended(self) -> Event:
        """How it ends, with the folder that it would have written to."""
        Path(self.spec.folder).mkdir(parents=True, exist_ok=True)
        if self.decision == "pause":
            return TrialPaused(trial=self.spec.trial, attempt=self.spec.attempt, manifest={})
        stopped = self.decision == "stop"
        return TrialEnded(trial=self.spec.trial, attempt=self.spec.attempt, stopped=stopped, manifest={})


class Watch:
    """Seconds that each trial costs the coordinator, and core seconds; what the executor itself takes is left out."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = defaultdict(float)
        self.core_seconds: dict[int, float] = defaultdict(float)
        self._trials: list[int] = []
        self._start()

    def asked(self, trial: int) -> None:
        """All since the last call was for this trial."""
        self._spend([trial])

    def events_sent(self, trials: list[int]) -> None:
        """From now on these trials' events are handled."""
        self._trials = trials
        self._start()

    def events_handled(self) -> None:
        """All since the events were sent is theirs, in equal parts."""
        self._spend(self._trials)

    def _start(self) -> None:
        self._since = time.perf_counter(), time.process_time()

    def _spend(self, trials: list[int]) -> None:
        seconds, core_seconds = time.perf_counter() - self._since[0], time.process_time() - self._since[1]
        for trial in trials:
            self.seconds[trial] += seconds / len(trials)
            self.core_seconds[trial] += core_seconds / len(trials)
        self._start()


class NoMirror:
    """In place of the mirrors, which are another process."""

    def __init__(self, study: str, settings: Settings, monitor: Monitor) -> None:
        del study, settings, monitor

    def keep_alive(self) -> None:
        """Nothing."""

    def finish(self, seconds: float) -> int:
        """Nothing."""
        del seconds
        return 0

    def kill(self) -> None:
        """Nothing."""

    def __enter__(self) -> NoMirror:
        return self

    def __exit__(self, *_: object) -> None:
        pass

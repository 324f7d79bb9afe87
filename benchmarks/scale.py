"""How a trial's cost and memory grow with the number of trials, in a coordinator of 1,000 workers that do nothing.

It is the real coordinator and the real record, on SQLite and on PostgreSQL; only training is left out (`simulated.py`),
and so are the mirrors, which are a process of their own. A trial's cost is all that the coordinator does for it: draw
it, send it, record and judge ten epochs, record its end. Trials of the first tenth are held against those of the last.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import machine
import psutil
from simulated import NoMirror, SimulatedExecutor, Watch, load_study

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' PostgreSQL server

from orchestrator import coordinator, recent, search
from orchestrator.live import PlainMonitor
from orchestrator.settings import Settings
from orchestrator.space import draw
from orchestrator.tables import Epoch, State, Trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIMIT = 1.5
TENTHS = 10
SIZES, NUM_DRAWS = (100, 300, 1000, 2000, 5000, 10_000), 7
_middle, _mean = statistics.median, statistics.mean


class Gauge(Watch):
    """Also reads the memory of this process whenever another tenth of the trials was asked for."""

    def __init__(self, num_trials: int) -> None:
        super().__init__()
        self._every = num_trials // TENTHS
        self.memory_bytes = [_memory_bytes()]

    def asked(self, trial: int) -> None:
        """See `Watch.asked`."""
        super().asked(trial)
        if (trial + 1) % self._every == 0 and (trial + 1) // self._every == len(self.memory_bytes):
            self.memory_bytes.append(_memory_bytes())


def main() -> None:
    arguments = _arguments()
    num_cores = machine.use_cores(2)
    print(machine.hardware(num_cores))
    print(machine.versions("optuna", "sqlalchemy", "psycopg"))
    if arguments.draws:
        _tell_draws(arguments.draws)
    for url in arguments.on if not arguments.draws else []:
        for repeat in range(arguments.repeat):
            with _database(url) as (record_url, home):
                gauge = _swept(arguments, Settings(home=home, record_url=record_url, tracking_uri=""))
            _tell(url, repeat, arguments, gauge)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--pruner", default="asha")
    parser.add_argument("--on", nargs="+", choices=["sqlite", "postgresql"], default=["sqlite", "postgresql"])
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--draws", nargs="+", default=[], help="only: how long draws of these samplers take")
    return parser.parse_args()


@contextlib.contextmanager
def _database(kind: str) -> Iterator[tuple[str, Path]]:
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        if kind == "sqlite":
            yield f"sqlite:///{folder}/orch.db", Path(folder)
            return
        from tests.support import postgres

        with postgres.running() as server, server.database() as url:
            yield url, Path(folder)


def _swept(arguments: argparse.Namespace, settings: Settings) -> Gauge:
    keys = {name: getattr(arguments, name) for name in ("trials", "sampler", "pruner")}
    study = load_study(**keys)
    gauge = Gauge(arguments.trials)
    executor = SimulatedExecutor(arguments.workers, gauge)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        outcome = coordinator.run(study, settings, PlainMonitor(), executor=executor, make_mirror=NoMirror)
    assert not outcome.timed_out, "all trials ended"
    return gauge


def _tell(kind: str, repeat: int, arguments: argparse.Namespace, gauge: Gauge) -> None:
    size = arguments.trials // TENTHS
    seconds, core_seconds = (_tenths(spent, size) for spent in (gauge.seconds, gauge.core_seconds))
    grown = [(after - before) / size / 1024 for before, after in itertools.pairwise(gauge.memory_bytes)]
    keys = f"{arguments.workers} workers, {arguments.trials} trials, {arguments.sampler}, {arguments.pruner}"
    print(f"\n{kind}, {keys}, run {repeat + 1}")
    print("tenth  ms a trial, median and mean   core ms, median and mean   RSS MiB   KiB a trial")
    for number in range(TENTHS):
        times = "".join(f"{_middle(of[number]):15.2f}{_mean(of[number]):9.2f}" for of in (seconds, core_seconds))
        print(f"{number + 1:5}{times}{gauge.memory_bytes[number + 1] / 2**20:15.0f}{grown[number]:14.1f}")
    for what, of in (("ms", seconds), ("core ms", core_seconds)):
        ratios = [middle(of[-1]) / middle(of[0]) for middle in (_middle, _mean)]
        print(f"{what}, last tenth over first: {ratios[0]:.2f} of medians, {ratios[1]:.2f} of means (limit {LIMIT})")
    print(f"memory a trial, last half over tenths 3 to 5: {_mean(grown[5:]) / _mean(grown[2:5]):.2f}", flush=True)


def _tenths(spent: Mapping[int, float], size: int) -> list[list[float]]:
    """Milliseconds of each trial, a list each tenth."""
    return [[1000 * spent[trial] for trial in range(part * size, (part + 1) * size)] for part in range(TENTHS)]


# -- draws


def _tell_draws(names: list[str]) -> None:
    """Print how long a draw takes after so many results of eight fields, a ninth of them complete, the rest pruned."""
    print(
        f"\ncore ms a draw, median of {NUM_DRAWS}, after so many results\n{'':20}"
        + "".join(f"{num:9}" for num in SIZES)
    )
    for name in names:
        print(f"{name:20}" + "".join(f"{cost:9.1f}" for cost in _draws(name)), flush=True)
        if name == "tpe":
            with _everything_shown():
                print(f"{'tpe of all results':20}" + "".join(f"{cost:9.1f}" for cost in _draws(name)), flush=True)


def _draws(name: str) -> list[float]:
    space, chance = load_study(trials=1).space, random.Random(0)
    searching, costs = search.Search(space, name, seed=0), []
    for start, size in itertools.pairwise((0, *SIZES)):
        told, trained = [], {}
        for number in range(start, size):
            value, params = chance.random(), draw(space, chance)
            state = State.PRUNED if number % 9 else State.COMPLETE
            told.append(Trial(number=number, params=params, config=params, state=state, value=value))
            trained[number] = [Epoch(number=1, metrics={"val_accuracy": value})]
        searching.restore(told, trained)
        times = []
        for ahead in range(NUM_DRAWS):
            since = time.process_time()
            searching.ask(1_000_000 + size + ahead)
            times.append(1000 * (time.process_time() - since))
        costs.append(statistics.median(times))
    return costs


@contextlib.contextmanager
def _everything_shown() -> Iterator[None]:
    former, recent.NUM_LATEST = recent.NUM_LATEST, sys.maxsize
    try:
        yield
    finally:
        recent.NUM_LATEST = former


def _memory_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    if platform.system() == "Linux":
        main()

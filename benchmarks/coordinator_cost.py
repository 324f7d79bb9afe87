"""What a trial costs beside its training: `orch`, Optuna with MLflow by hand, and Ray Tune, side by side.

Trials do nothing but report ten times, and end up in SQLite and in MLflow's SQLite database. Nothing is pruned. Each
side searches the same three fields. A side's time is from its first trial until all is recorded, on the same two cores;
starting up (imports, creating databases, our mirror's process, Ray's cluster and its first trial) is left out.
"""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # MLflow is to be what Ray Tune writes
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import machine
from mlflow import MlflowClient
from simulated import NUM_REPORTS, SimulatedExecutor, Watch, load_study

from orchestrator import coordinator, mirror, pruning
from orchestrator.leases import Holding
from orchestrator.mirrors import Place
from orchestrator.mirrors.mlflow_store import opening_store
from orchestrator.search import Search
from orchestrator.settings import Settings
from orchestrator.store import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from orchestrator.monitor import Monitor

OF_OPTUNA, OF_RAY = 1 / 5, 1 / 15
NUM_SLOTS = 2
NOOP = Path(__file__).with_name("noop.py")
SPACE = {
    "lr": "tag(log,interval(5e-4,2e-2))",
    "weight_decay": "tag(log,interval(1e-3,0.3))",
    "dropout": "interval(0.0,0.5)",
}
# What is timed of ours, beside the mirror: name -> class, its methods.
PARTS = {
    "ask": (Search, ["ask"]),
    "tell": (Search, ["tell"]),
    "decision": (pruning.Asha, ["goes_on"]),
    "record": (Record, ["start_trial", "start_attempt", "add_epochs_of", "end_attempt"]),
}


def main() -> None:
    arguments = _arguments()
    print(machine.hardware(machine.use_cores(2)))
    print(machine.versions("optuna", "mlflow", "ray", "sqlalchemy"))
    sides: dict[str, Callable[[Path, int], float]] = {
        "orch": functools.partial(_ours, split=defaultdict(list), pace=(0.0, 0.0)),
        "orch, an epoch at a time": functools.partial(_ours, split=defaultdict(list), pace=(1.0, 3.0)),
        "Optuna and MLflow by hand": _optuna,
        "Ray Tune with MLflow": _ray,
    }
    sides = {name: side for name, side in sides.items() if arguments.only in name}
    found: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(arguments.repeat):
        for name in list(sides)[:: -1 if repeat % 2 else 1]:  # neither is always first
            with tempfile.TemporaryDirectory(prefix="cost-", ignore_cleanup_errors=True) as folder:
                found[name].append(1000 * sides[name](Path(folder), arguments.trials))
                print(f"{name:27} {found[name][-1]:8.1f} ms a trial", flush=True)
    _tell(sides, found, arguments.trials)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="", help="sides whose name holds this")
    return parser.parse_args()


def _tell(sides: dict[str, Any], found: dict[str, list[float]], num_trials: int) -> None:
    print(f"\n{'side':27} n  ms a trial, {num_trials} trials of {NUM_REPORTS} reports")
    for name, costs in found.items():
        print(f"{name:27} {len(costs)}  {machine.spread(costs, 1)}")
    for name, side in sides.items():
        if isinstance(side, functools.partial):
            parts = [f"{part} {machine.spread(costs, 2)}" for part, costs in side.keywords["split"].items()]
            print(f"{name}: {', '.join(parts)}")
    middle = {name: statistics.median(costs) for name, costs in found.items()}
    for peer, limit in (("Optuna and MLflow by hand", OF_OPTUNA), ("Ray Tune with MLflow", OF_RAY)):
        for name in (name for name in middle if name.startswith("orch") and peer in middle):
            print(f"{name} of {peer}: 1/{middle[peer] / middle[name]:.1f} (limit 1/{1 / limit:.0f})")


# -- ours


def _ours(home: Path, num_trials: int, *, split: dict[str, list[float]], pace: tuple[float, float]) -> float:
    """Seconds a trial of a whole sweep, until MLflow is up to date; `split` gets milliseconds of each part."""
    settings = Settings(
        home=home, record_url=f"sqlite:///{home / 'orch.db'}", tracking_uri=f"sqlite:///{home / 'mlflow.db'}"
    )
    study = load_study(recipe=NOOP, trials=num_trials, sampler="tpe", **SPACE)
    with opening_store(settings):
        MlflowClient(settings.tracking_uri).search_experiments()
    seconds: dict[str, float] = defaultdict(float)
    executor = SimulatedExecutor(NUM_SLOTS, Watch(), pace=pace, equal=True)
    with _Timed(seconds):
        begun = _Begun()
        coordinator.run(
            study, settings, begun, executor=executor, make_mirror=functools.partial(_MlflowMirror, seconds)
        )
    total = seconds.pop("finished at") - begun.at
    assert _num_runs(settings.tracking_uri, study.name) == num_trials + 1, "each has a run, and the study has one"
    seconds["rest"] = total - sum(spent for part, spent in seconds.items() if part != "mirror, beside the rest")
    for part, spent in seconds.items():
        split[part].append(1000 * spent / num_trials)
    return total / num_trials


class _MlflowMirror:
    """The mirror of MLflow alone in a process of its own, as in a sweep; it is up before the first trial."""

    def __init__(self, seconds: dict[str, float], study: str, settings: Settings, monitor: Monitor) -> None:
        del monitor
        self._seconds = seconds
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._child = context.Process(target=_follow, args=(theirs, settings, study))
        self._child.start()
        self._ours.recv()  # it is up

    def keep_alive(self) -> None:
        """Nothing: it looks by itself."""

    def finish(self, seconds: float) -> int:
        """Let it catch up."""
        del seconds
        since = time.perf_counter()
        self._ours.send("finish")
        self._seconds["mirror, beside the rest"] = self._ours.recv()
        self._seconds["finished at"] = time.perf_counter()
        self._seconds["waiting for it at the end"] = self._seconds["finished at"] - since
        return 0

    def kill(self) -> None:
        """End it at once."""
        self._child.kill()

    def __enter__(self) -> _MlflowMirror:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.join()


def _follow(connection: Connection, settings: Settings, study: str) -> None:
    """The mirror's process; at the end it says for how many seconds it was at work."""
    gc.set_threshold(mirror.GC_THRESHOLD)
    record = Record.open(settings.record_url)
    with Holding(record, f"mirror:{study}") as lease:
        follower = mirror.Follower(
            "mlflow", Place(settings=settings, record=record, lease=lease, study=record.study(study))
        )
        follower.drain()
        connection.send("up")
        seconds, finishing = 0.0, False
        while not finishing:
            finishing = connection.poll(mirror.POLL_SECONDS)
            since = time.perf_counter()
            follower.drain()
            seconds += time.perf_counter() - since
        connection.send(seconds)
        follower.close()


class _Timed:
    """A context in which the calls of `PARTS` add up their seconds."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._former = [(kind, name, getattr(kind, name)) for kind, names in PARTS.values() for name in names]
        for part, (kind, names) in PARTS.items():
            for name in names:
                setattr(kind, name, self._timed(part, getattr(kind, name)))

    def __exit__(self, *_: object) -> None:
        for kind, name, method in self._former:
            setattr(kind, name, method)

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            since = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self._seconds[part] += time.perf_counter() - since

        return timed


class _Begun:
    """A monitor that nobody looks at, but for when the first trial is asked for."""

    at = 0.0

    def started(self, *_: object) -> None:
        """See `monitor.Monitor`."""
        self.at = time.perf_counter()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


# -- the others


def _optuna(home: Path, num_trials: int) -> float:
    """Optuna's storage on SQLite, and a call of MLflow for each metric."""
    import mlflow
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
    mlflow.set_experiment("naive")
    study = optuna.create_study(
        storage=f"sqlite:///{home / 'optuna.db'}", direction="maximize", pruner=optuna.pruners.NopPruner()
    )

    def objective(trial: optuna.Trial) -> float:
        params = {
            "lr": trial.suggest_float("lr", 5e-4, 2e-2, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-3, 0.3, log=True),
            "dropout": trial.suggest_float("dropout", 0.0, 0.5),
        }
        with mlflow.start_run():
            mlflow.log_params(params)
            for step in range(1, NUM_REPORTS + 1):
                value = 0.5 * (1 - 0.5**step)
                trial.report(value, step)
                mlflow.log_metric("val_accuracy", value, step=step)
                if trial.should_prune():
                    raise optuna.TrialPruned
        return value

    since = time.perf_counter()
    study.optimize(objective, n_trials=num_trials)
    seconds = time.perf_counter() - since
    assert _num_runs(f"sqlite:///{home / 'mlflow.db'}", "naive") == num_trials
    return seconds / num_trials


def _ray(home: Path, num_trials: int) -> float:
    """Ray Tune with kept actors and its own MLflow callback, from its first result on."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    ray.init(num_cpus=NUM_SLOTS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    uri = f"sqlite:///{home / 'mlflow.db'}"
    MlflowClient(uri).search_experiments()
    first = _First()
    space = {
        "lr": tune.loguniform(5e-4, 2e-2),
        "weight_decay": tune.loguniform(1e-3, 0.3),
        "dropout": tune.uniform(0.0, 0.5),
    }
    tuner = tune.Tuner(
        _reports,
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=num_trials,
            metric="val_accuracy",
            mode="max",
            reuse_actors=True,
            max_concurrent_trials=NUM_SLOTS,
        ),
        run_config=tune.RunConfig(
            storage_path=str(home / "ray"),
            verbose=0,
            callbacks=[first.callback(), MLflowLoggerCallback(tracking_uri=uri, experiment_name="ray")],
        ),
    )
    try:
        results = tuner.fit()
        seconds = time.perf_counter() - first.at
    finally:
        ray.shutdown()
    assert len(results) == _num_runs(uri, "ray") == num_trials
    return seconds / num_trials


def _reports(config: dict[str, float]) -> None:
    from ray import tune

    del config
    for step in range(1, NUM_REPORTS + 1):
        tune.report({"val_accuracy": 0.5 * (1 - 0.5**step)})


class _First:
    """When the first result came."""

    at = 0.0

    def callback(self) -> Any:
        """What Ray Tune is given."""
        from ray import tune

        first = self

        class Callback(tune.Callback):  # type: ignore[misc]
            def on_trial_result(self, *args: Any, **kwargs: Any) -> None:
                del args, kwargs
                first.at = first.at or time.perf_counter()

        return Callback()


def _num_runs(uri: str, experiment: str) -> int:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    token, num = None, 0
    while True:
        page = client.search_runs([found.experiment_id], max_results=1000, page_token=token)
        num, token = num + len(page), page.token
        if not token:
            return num


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()

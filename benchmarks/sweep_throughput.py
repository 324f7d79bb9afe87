"""Trials a minute: `orch sweep recipe=cnn` against the script that one would write by hand (`handwritten.py`).

Both do 24 trials of at most 10 epochs in turn, from process start to exit, each time in a new folder; then what each
recorded is counted in MLflow and Optuna, and must be whole on both sides. Time and epochs stand side by side because
the two prune differently.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import machine

NUM_TRIALS, MAX_EPOCHS, NUM_EXPORTS = 24, 10, 3
NUM_CORES = 2
MIN_REPEATS = 3
NAME = "cnn-digits"
METRICS = ("train_loss", "val_loss", "val_accuracy", "lr")
LIMIT = 4.0
LONGEST_SECONDS = 1800

COMMANDS = {
    "orch": [str(machine.ORCH), "sweep", "recipe=cnn", f"trials={NUM_TRIALS}", f"epochs={MAX_EPOCHS}", "device=cpu"],
    "by hand": [
        *(sys.executable, str(Path(__file__).with_name("handwritten.py"))),
        *("--trials", str(NUM_TRIALS), "--epochs", str(MAX_EPOCHS)),
    ],
}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What one run left in MLflow and in Optuna's storage."""

    runs: int
    epochs: int  # values of each metric of `METRICS`, over all runs
    checkpoints: int
    onnx_files: int
    optuna_trials: int
    best: float

    def check(self, side: str) -> None:
        """Raise a `SystemExit` that names what is missing."""
        wanted = {"runs": NUM_TRIALS, "checkpoints": NUM_TRIALS, "onnx_files": NUM_EXPORTS, "optuna_trials": NUM_TRIALS}
        for name, count in wanted.items():
            if getattr(self, name) != count:
                raise SystemExit(f"{side} recorded {getattr(self, name)} {name}, not {count}")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One run of one side."""

    side: str
    seconds: float
    core_seconds: float  # used by the command and all its children
    others: float  # share of the cores' time that other processes used meanwhile
    recorded: Recorded

    @property
    def trials_per_minute(self) -> float:
        """All trials over all of the time, start-up and exports too."""
        return NUM_TRIALS / self.seconds * 60

    @property
    def epoch_seconds(self) -> float:
        """All of the time over the epochs that were trained."""
        return self.seconds / self.recorded.epochs


def measure(side: str, num_cores: int) -> Timing:
    """Run one side in a new folder, which stays only if something went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="sweep-throughput-"))
    before, busy_before = _child_seconds(), machine.busy_seconds()
    started = time.perf_counter()
    with (folder / "output.log").open("wb") as output:
        code = subprocess.run(
            COMMANDS[side],
            cwd=folder,
            env={**machine.environment(), "ORCH_HOME": str(folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=LONGEST_SECONDS,
            check=False,
        ).returncode
    seconds = time.perf_counter() - started
    own, busy = _child_seconds() - before, machine.busy_seconds() - busy_before
    if code != 0:
        raise SystemExit(f"{side} ended with code {code}; see {folder}/output.log")
    recorded = count(folder)
    recorded.check(f"{side} (in {folder})")
    shutil.rmtree(folder)
    others = max(0.0, busy - own) / (seconds * num_cores)
    return Timing(side=side, seconds=seconds, core_seconds=own, others=others, recorded=recorded)


def count(folder: Path) -> Recorded:
    """Count what both sides keep in `mlflow.db` and `optuna.db` of their folder; a study's own run is no trial."""
    import optuna
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [run for run in client.search_runs(experiments) if "mlflow.parentRunId" in run.data.tags]
    ids = [run.info.run_id for run in runs]
    values = {name: sum(len(client.get_metric_history(run_id, name)) for run_id in ids) for name in METRICS}
    if len(set(values.values())) != 1:
        raise SystemExit(f"{folder}: the metrics differ in number: {values}")
    files = {kind: sum(len(client.list_artifacts(run_id, kind)) for run_id in ids) for kind in ("checkpoint", "onnx")}
    study = optuna.load_study(study_name=NAME, storage=f"sqlite:///{folder / 'optuna.db'}")
    return Recorded(
        runs=len(runs),
        epochs=values["val_accuracy"],
        checkpoints=files["checkpoint"],
        onnx_files=files["onnx"],
        optuna_trials=sum(trial.state.is_finished() for trial in study.trials),
        best=max(run.data.metrics["best_val_accuracy"] for run in runs),
    )


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show(timings: list[Timing]) -> None:
    """Print a line a side, and the two ratios of medians."""
    print(f"\n{'side':8} {'n':>2}  {'seconds':24} {'trials a minute':24} {'epochs':18} {'best val_accuracy':24}")
    medians: dict[str, tuple[float, float]] = {}
    for side in COMMANDS:
        own = [timing for timing in timings if timing.side == side]
        columns = [
            machine.spread([timing.seconds for timing in own], 1),
            machine.spread([timing.trials_per_minute for timing in own], 1),
            machine.spread([timing.recorded.epochs for timing in own], 0),
            machine.spread([timing.recorded.best for timing in own], 4),
        ]
        print(f"{side:8} {len(own):2}  {columns[0]:24} {columns[1]:24} {columns[2]:18} {columns[3]:24}")
        rate = statistics.median(timing.trials_per_minute for timing in own)
        medians[side] = rate, statistics.median(timing.epoch_seconds for timing in own)
    (rate, epoch), (peer_rate, peer_epoch) = medians["orch"], medians["by hand"]
    print(f"\ntrials a minute, ratio of medians: {rate / peer_rate:.2f} (limit {LIMIT:.0f})")
    print(f"seconds an epoch, ratio of medians: {peer_epoch / epoch:.2f}")
    disturbed = max(timing.others for timing in timings)
    if disturbed > machine.QUIET:
        print(f"the machine was not quiet: others took up to {disturbed:.0%} of the cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=MIN_REPEATS, help="runs of each side, at least 3")
    repeat = parser.parse_args().repeat
    if repeat < MIN_REPEATS:
        parser.error(f"--repeat must be at least {MIN_REPEATS}")
    num_cores = machine.use_cores(NUM_CORES)
    print(machine.hardware(num_cores))
    print(machine.versions("torch", "torchvision", "mlflow", "optuna"), flush=True)
    timings = []
    for turn in range(repeat):
        for side in list(COMMANDS)[:: -1 if turn % 2 else 1]:  # neither is always the first
            timing = measure(side, num_cores)
            timings.append(timing)
            print(
                f"{side:8} {timing.seconds:6.1f} s, {timing.core_seconds:6.1f} core seconds, "
                f"{timing.recorded.epochs} epochs, others {timing.others:.0%}",
                flush=True,
            )
    show(timings)


if __name__ == "__main__":
    main()

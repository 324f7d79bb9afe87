"""How long `orch compare STUDY --sort … --filter …` takes on 10,000 trials of ten epochs, from process start to exit.

The study is written straight into the record, with an epoch's usual metrics; a third of the trials are complete.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path

import machine
from simulated import load_study

from orchestrator.leases import Holding, study_lease
from orchestrator.recorded import new_row
from orchestrator.space import draw
from orchestrator.store import Record
from orchestrator.tables import Base, State

LIMIT = 2.0
NUM_EPOCHS = 10
COMMANDS = {
    "filtered": ["--sort", "val_loss", "--filter", "lr>1e-3 and state=complete"],
    "all": [],
    "all, as CSV": ["--csv"],
}


def write_study(home: Path, num_trials: int) -> str:
    """Write a study whose trials all have ended; return its name."""
    study, chance = load_study(trials=num_trials), random.Random(0)
    tables = Base.metadata.tables
    with (
        closing(Record.open(f"sqlite:///{home / 'orch.db'}", create=True)) as record,
        Holding(record, study_lease(study.name)) as lease,
    ):
        row = record.create_study(lease, new_row(study))
        rows = [_trial(row.id, number, draw(study.space, chance), study.config, chance) for number in range(num_trials)]
        with record.write(lease) as session:
            connection = session.connection()
            connection.execute(tables["trials"].insert(), rows)
            connection.execute(tables["epochs"].insert(), [epoch for trial in rows for epoch in _epochs(trial)])
    return study.name


def _trial(study_id, number, params, config_of, chance):  # type: ignore[no-untyped-def]
    state = State.PRUNED if number % 3 else State.COMPLETE
    told = {"state": state, "params": params, "config": config_of(params), "value": chance.random()}
    ended = {"best_epoch": NUM_EPOCHS, "created_at": 0.0, "started_at": 1.0, "ended_at": 2.0, "threads": 1}
    return {"id": number + 1, "study_id": study_id, "number": number, **told, **ended}


def _epochs(trial):  # type: ignore[no-untyped-def]
    for number in range(1, NUM_EPOCHS + 1):
        losses = {
            "train_loss": 1 / number,
            "val_loss": 2 / number,
            "val_accuracy": trial["value"] * number / NUM_EPOCHS,
        }
        speed = {"lr": 0.1, "images_per_second": 1e3, "step_seconds": 0.01, "peak_memory_bytes": 1e8}
        size = {"num_parameters": 1e5, "flops": 1e6} if number == 1 else {}
        told = {"metrics": losses | speed | size, "seconds": 0.5, "recorded_at": 1.5, "attempt": 1}
        yield {"trial_id": trial["id"], "number": number, **told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=10)
    arguments = parser.parse_args()
    print(machine.hardware(machine.use_cores(2)))
    print(machine.versions("sqlalchemy", "rich", "typer"))
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        name = write_study(Path(folder), arguments.trials)
        environment = machine.environment() | {"ORCH_HOME": folder}
        environment |= {key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
        for what, options in COMMANDS.items():
            times, since = [], os.times()
            for turn in range(arguments.repeat + 1):  # the first writes byte code and fills the file cache
                started = time.perf_counter()
                command = [str(machine.ORCH), "compare", name, *options]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
                times += [time.perf_counter() - started] if turn else []
            now, lines = os.times(), done.stdout.count(b"\n")
            spent = now.children_user + now.children_system - since.children_user - since.children_system
            core = f"{spent / (arguments.repeat + 1):.2f} core s"
            print(f"{what:12} {lines:6} lines, n {len(times)}, {machine.spread(times, 2)} s, {core}", flush=True)
    print(f"limit {LIMIT:.0f} s")


if __name__ == "__main__":
    main()

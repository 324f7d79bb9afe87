"""Studies in a record whose trials really were trained: small, on the digits, in this process."""

from __future__ import annotations

import shutil
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator import compare, provenance, tables
from orchestrator.executors import EpochEnded, Exported, ExportSpec, TrialEnded, TrialSpec
from orchestrator.executors.inline import done
from orchestrator.leases import Holding
from orchestrator.settings import HOME_VARIABLE
from orchestrator.store import Record
from orchestrator.study import load
from orchestrator.tables import State
from recipes import cnn
from recipes.config import flatten, make
from tests.support.sweeps import settings_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from orchestrator.leases import Lease
    from orchestrator.settings import Settings

# Fields of a CNN that trains in half a second: `STRONG` names 97 of 100 digits, `WEAK` hardly more than guesses.
STRONG = {
    "epochs": 2,
    "width": 16,
    "depth": 1,
    "batch_size": 16,
    "lr": 1e-2,
    "warmup_epochs": 0.0,
    "crop": 0,
    "dropout": 0.0,
    "label_smoothing": 0.0,
}
WEAK = {**STRONG, "epochs": 1, "lr": 1e-5}


def make_home(home: Path, empty: Path, trials: Sequence[Mapping[str, Any]], **how: Any) -> Path:
    """Make a state folder with a study as of `add_study`, beginning with the databases in `empty`."""
    shutil.copytree(empty, home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        add_study(settings_of(home), trials, **how)
    return home


def copy_home(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a copy of a state folder in `folder`, which is that of the environment from now on."""
    copied = folder / "mlruns"
    shutil.copytree(home, copied)
    monkeypatch.setenv(HOME_VARIABLE, str(copied))
    return settings_of(copied)


def add_study(
    settings: Settings,
    trials: Sequence[Mapping[str, Any]],
    *,
    name: str = "cnn-digits",
    split_seed: int = 0,
    export: bool = True,
) -> None:
    """Record a study of the CNN with one complete trial for each of these sets of fields."""
    study = load([f"study={name}", "recipe=cnn", f"split_seed={split_seed}", f"trials={max(1, len(trials))}"])
    spec = {
        **study.model_dump(mode="json"),
        "provenance": {"data_fingerprint": study.data_fingerprint, "split_fingerprint": study.split_fingerprint},
    }
    row = tables.Study(
        name=name, recipe="cnn", data="digits", spec=spec, identity=study.identity, created_at=time.time()
    )
    with closing(Record.open(settings.record_url, create=True)) as record, Holding(record, f"study:{name}") as lease:
        record.create_study(lease, row)
        launch = record.add_launch(lease, row.id, provenance.collect_launch(study)).id
        for fields in trials:
            config = flatten(make(cnn.Config, {**study.fixed, **STRONG, **fields}))
            _add_trial(settings, record, lease, row, config, launch, export=export)


def delete_study(settings: Settings, name: str = "cnn-digits") -> None:
    """Remove a study and its files; what it promoted stays in the ledger."""
    with closing(Record.open(settings.record_url)) as record, Holding(record, f"study:{name}") as lease:
        record.delete_study(lease, record.study(name).id)
    shutil.rmtree(settings.study_folder(name))


def _add_trial(
    settings: Settings,
    record: Record,
    lease: Lease,
    study: tables.Study,
    config: dict[str, Any],
    launch: int,
    *,
    export: bool,
) -> None:
    trial = record.add_trial(lease, study.id, params={"lr": config["lr"]}, config=config, threads=1)
    _, attempt = record.start_attempt(lease, trial, "test", launch=launch)
    folder = settings.attempt_folder(study.name, trial.number, attempt.number)
    place = {"study": study.name, "trial": trial.number, "attempt": attempt.number, "recipe": "cnn", "config": config}
    *epochs, ended = done(
        TrialSpec(**place, folder=str(folder), earlier_folders=(), num_recorded_epochs=0, decision_epochs=(), threads=1)
    )
    assert isinstance(ended, TrialEnded), ended
    rows = [_epoch(trial, event) for event in epochs]
    record.add_epochs(lease, trial, rows)
    best = compare.best_epoch(rows, "val_accuracy")
    assert best is not None
    record.end_attempt(
        lease,
        trial,
        attempt.number,
        State.COMPLETE,
        manifest=ended.manifest,
        value=best.metrics["val_accuracy"],
        best_epoch=best.number,
    )
    if export:
        (exported,) = done(ExportSpec(**place, folder=str(folder)))
        assert isinstance(exported, Exported), exported
        file = str((folder / exported.file).relative_to(settings.home))
        row = tables.Export(
            trial_id=trial.id,
            file=file,
            sha256=exported.sha256,
            size_bytes=exported.size_bytes,
            max_difference=exported.max_difference,
            recorded_at=time.time(),
        )
        record.add_export(lease, trial, row)


def _epoch(trial: tables.Trial, event: EpochEnded) -> tables.Epoch:
    return tables.Epoch(
        trial_id=trial.id,
        number=event.number,
        attempt=event.attempt,
        metrics=event.metrics,
        seconds=event.seconds,
        recorded_at=time.time(),
    )

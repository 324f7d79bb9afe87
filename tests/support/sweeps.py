"""A sweep written into a real record by hand, and what the mirrors show of it."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING, Any

import optuna
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orchestrator.leases import Holding
from orchestrator.processes import Pinger, spawn
from orchestrator.settings import HOME_VARIABLE, MLFLOW_VARIABLE, Settings
from orchestrator.store import Record
from orchestrator.tables import Epoch, Export, Reason, State, Study, Trial

if TYPE_CHECKING:
    from pathlib import Path

SPACE = {
    "lr": {"low": 1e-4, "high": 1e-1, "log": True, "step": 0, "integer": False},
    "width": {"low": 16, "high": 128, "log": False, "step": 16, "integer": True},
    "optimizer": {"choices": ["adamw", "sgd"]},
}
FIXED = {"epochs": 3, "seed": 7, "device": "auto", "data": "digits"}


def settings_of(home: Path, tracking_uri: str = "") -> Settings:
    """Settings of a state folder, whatever the environment says."""
    return Settings(
        home=home,
        record_url=f"sqlite:///{home / 'orch.db'}",
        tracking_uri=tracking_uri or f"sqlite:///{home / 'mlflow.db'}",
    )


class Sweep:
    """A study in a record, and the lease to write it."""

    def __init__(self, settings: Settings, name: str = "s", trials: int = 4) -> None:
        self.settings, self.name = settings, name
        self.record = Record.open(settings.record_url, create=True)
        self._holding = Holding(self.record, f"study:{name}")
        self.lease = self._holding.__enter__()
        spec = {
            "name": name,
            "fixed": FIXED,
            "space": SPACE,
            "seed": 7,
            "split_seed": 0,
            "budget": {"trials": trials, "workers": 2, "export": "top:3"},
            "provenance": {
                "data_fingerprint": "d" * 64,
                "split_fingerprint": "e" * 64,
                "commit": "c0ffee",
                "versions": {"torch": "2.15.0", "orch": "0.1.0"},
            },
        }
        study = Study(name=name, recipe="cnn", data="digits", spec=spec, identity={}, created_at=time.time())
        self.study = self.record.create_study(self.lease, study)

    def close(self) -> None:
        """Give the lease and the record back."""
        self._holding.__exit__(None, None, None)
        self.record.close()

    def extend(self, trials: int) -> None:
        """Ask for more trials."""
        spec = {**self.study.spec, "budget": {**self.study.spec["budget"], "trials": trials}}
        self.record.update_study(self.lease, self.study.id, spec)

    def start(self, **params: Any) -> Trial:
        """Add a trial and start its first attempt."""
        params = {"lr": 1e-3, "width": 32, "optimizer": "sgd", **params}
        config = {**FIXED, **params}
        trial = self.record.add_trial(self.lease, self.study.id, params=params, config=config, threads=1)
        self.record.start_attempt(self.lease, trial, "host/cpu0")
        return trial

    def train(self, trial: Trial, *epochs: int, **metrics: float) -> None:
        """Record finished epochs; their values are told by trial and epoch."""
        for number in epochs:
            found = {name: value_of(trial.number, number, name) for name in ("train_loss", "val_loss", "val_accuracy")}
            epoch = Epoch(
                trial_id=trial.id,
                number=number,
                attempt=1,
                metrics={**found, **metrics},
                seconds=0.5,
                recorded_at=time.time(),
            )
            self.record.add_epochs(self.lease, trial, [epoch])

    def end(self, trial: Trial, state: State = State.COMPLETE, best_epoch: int = 3, **more: Any) -> bytes:
        """End the only attempt of a trial, with a checkpoint if it has a result; return the checkpoint's bytes."""
        folder = self.settings.attempt_folder(self.name, trial.number, 1)
        folder.mkdir(parents=True, exist_ok=True)
        content = os.urandom(1000)
        if state is not State.FAILED:
            (folder / "best.safetensors").write_bytes(content)
            more["manifest"] = {"best.safetensors": hashlib.sha256(content).hexdigest()}
            more["value"] = value_of(trial.number, best_epoch, "val_accuracy")
            more["best_epoch"] = best_epoch
        self.record.end_attempt(self.lease, trial, 1, state, **more)
        return content

    def run(self, state: State = State.COMPLETE, num_epochs: int = 3, **params: Any) -> Trial:
        """A whole trial."""
        trial = self.start(**params)
        self.train(trial, *range(1, num_epochs + 1))
        more = {"reason": Reason.ERROR, "message": "ValueError: no"} if state is State.FAILED else {}
        self.end(trial, state, best_epoch=num_epochs, **more)
        return trial

    def export(self, trial: Trial, content: bytes = b"") -> bytes:
        """Record an ONNX file, or what is called one."""
        file = self.settings.attempt_folder(self.name, trial.number, 1) / "model.onnx"
        content = content or os.urandom(2000)
        file.write_bytes(content)
        row = Export(
            trial_id=trial.id,
            file=str(file.relative_to(self.settings.home)),
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            max_difference=1e-7,
            error=None,
            recorded_at=time.time(),
        )
        self.record.add_export(self.lease, trial, row)
        return content


class MirrorProcess:
    """The mirror of study `s` as a process, as the coordinator starts it."""

    def __init__(self, settings: Settings) -> None:
        self.log = settings.home / "mirror.log"
        environment = {HOME_VARIABLE: str(settings.home), MLFLOW_VARIABLE: settings.tracking_uri}
        self.child = spawn("orchestrator.mirror", ["s"], log=self.log, environment=environment)
        self._pinger = Pinger()
        self._pinger.add(self.child.channel)

    def finish(self, seconds: float = 60) -> dict[str, int]:
        """Let it catch up and end; return what it says to lack."""
        self.child.channel.send({"finish": seconds})
        assert self.child.channel.wait(seconds + 10), self.log.read_text()
        messages = self.child.channel.receive()
        assert messages, self.log.read_text()
        assert self.child.process.wait(10) == 0
        lag: dict[str, int] = messages[0]["lag"]
        return lag

    def kill(self) -> None:
        """Send SIGKILL to it and all that it started."""
        self._pinger.stop()
        self.child.kill()


def value_of(trial: int, epoch: int, metric: str) -> float:
    """The value that `Sweep.train` records."""
    return round(1 / (1 + trial + epoch), 4) if "loss" in metric else round(0.5 + trial / 100 + epoch / 1000, 4)


def expected(num_epochs: dict[int, int], metric: str = "val_loss") -> dict[int, list[tuple[int, float]]]:
    """Trial -> its epochs and values, as every mirror must show them: each once, in order."""
    return {
        trial: [(epoch, value_of(trial, epoch, metric)) for epoch in range(1, epochs + 1)]
        for trial, epochs in num_epochs.items()
    }


def runs_of(settings: Settings, name: str = "s") -> tuple[MlflowClient, dict[int, Any]]:
    """MLflow's active runs of a study: trial -> run, the parent as -1; two runs of one trial are an error."""
    client = MlflowClient(settings.tracking_uri)
    experiment = client.get_experiment_by_name(name)
    found: dict[int, Any] = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000) if experiment else []:
        number = int(run.data.tags.get("orch.trial", -1))
        assert number not in found, f"trial {number} has two runs"
        found[number] = run
    return client, found


def in_mlflow(settings: Settings, metric: str = "val_loss", name: str = "s") -> dict[int, list[tuple[int, float]]]:
    """Trial -> steps and values of a metric, in the order in which MLflow stored them."""
    client, runs = runs_of(settings, name)
    return {
        number: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric)]
        for number, run in sorted(runs.items())
        if number >= 0
    }


def in_optuna(settings: Settings, name: str = "s") -> dict[int, list[tuple[int, float]]]:
    """Trial -> steps and intermediate values."""
    study = optuna.load_study(study_name=name, storage=settings.optuna_url)
    return {trial.number: list(trial.intermediate_values.items()) for trial in study.trials}


def in_tensorboard(settings: Settings, metric: str = "val_loss", name: str = "s") -> dict[int, list[tuple[int, float]]]:
    """Trial -> steps and values of a scalar."""
    found: dict[int, list[tuple[int, float]]] = {}
    for folder in sorted((settings.tensorboard / name).iterdir()):
        if folder.is_dir():
            events = EventAccumulator(str(folder)).Reload()
            scalars = events.Scalars(metric) if metric in events.Tags()["scalars"] else []
            found[int(folder.name)] = [(scalar.step, round(scalar.value, 4)) for scalar in scalars]
    return found

"""Where state lives: the only place that builds paths and reads the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

HOME_VARIABLE = "ORCH_HOME"
RECORD_VARIABLE = "ORCH_RECORD_URL"
MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Absolute paths and URLs of one state folder (`./mlruns`, or `ORCH_HOME`)."""

    home: Path
    record_url: str
    tracking_uri: str

    @classmethod
    def from_environment(cls) -> Settings:
        """Read `ORCH_HOME`, `ORCH_RECORD_URL` and `MLFLOW_TRACKING_URI`; nothing is created."""
        home = Path(os.environ.get(HOME_VARIABLE) or "mlruns").resolve()
        return cls(
            home=home,
            record_url=os.environ.get(RECORD_VARIABLE) or _sqlite_url(home / "orch.db"),
            tracking_uri=os.environ.get(MLFLOW_VARIABLE) or _sqlite_url(home / "mlflow.db"),
        )

    @property
    def artifacts(self) -> Path:
        """Root of MLflow's artifacts when its store is the local database."""
        return self.home / "artifacts"

    @property
    def optuna_url(self) -> str:
        """URL of the Optuna storage that mirrors the record."""
        return _sqlite_url(self.home / "optuna.db")

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard event files, one subfolder a study and trial."""
        return self.home / "tensorboard"

    @property
    def logs(self) -> Path:
        """Folder of the log files of workers, the mirror and the dashboards."""
        return self.home / "logs"

    def study_folder(self, study: str) -> Path:
        """Folder of all attempts of a study."""
        return self.home / "trials" / study

    def trial_folder(self, study: str, trial: int) -> Path:
        """Folder of all attempts of a trial."""
        return self.study_folder(study) / f"{trial:04d}"

    def attempt_folder(self, study: str, trial: int, attempt: int) -> Path:
        """Folder that one attempt of one trial, and nothing else, writes into."""
        return self.trial_folder(study, trial) / str(attempt)


def _sqlite_url(path: Path) -> str:
    # What would be read as an escape or a query; the rest stays, since MLflow takes the text as a path, too.
    return f"sqlite:///{str(path).replace('%', '%25').replace('?', '%3F')}"

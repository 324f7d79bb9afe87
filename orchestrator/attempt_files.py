"""The folders of a study's attempts: where they are, what of them is no longer needed, and how much they take."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.checkpoint import BEST, remove_generations

if TYPE_CHECKING:
    from orchestrator.depot import Depot
    from orchestrator.settings import Settings


class AttemptFiles:
    """Those of one study, on this machine and, where workers share no folder with it, at a `depot`."""

    def __init__(self, settings: Settings, study: str, depot: Depot | None) -> None:
        self._settings, self._study, self._depot = settings, study, depot

    def folder(self, trial: int, attempt: int) -> str:
        """That of an attempt."""
        return str(self._settings.attempt_folder(self._study, trial, attempt))

    def earlier_folders(self, trial: int, attempt: int) -> tuple[str, ...]:
        """Those of the attempts before, the newest first."""
        return tuple(self.folder(trial, number) for number in range(attempt - 1, 0, -1))

    def drop_checkpoints(self, trial: int, attempt: int) -> None:
        """Free what only a resume would have needed, now that the result of a trial's last attempt is recorded."""
        remove_generations(Path(self.folder(trial, attempt)))
        if self._depot is not None:
            self._depot.remove_generations(self.folder(trial, attempt))
        self.drop_earlier(trial, attempt)

    def drop_earlier(self, trial: int, attempt: int) -> None:
        """Remove the folders of the attempts before."""
        for folder in self.earlier_folders(trial, attempt):
            shutil.rmtree(folder, ignore_errors=True)
            if self._depot is not None:
                self._depot.remove(folder)

    def drop_weights(self, trial: int) -> None:
        """Remove the weights of a trial, of which the record says that they no longer count."""
        for path in self._settings.trial_folder(self._study, trial).glob(f"*/{BEST}"):
            path.unlink(missing_ok=True)
            if self._depot is not None:
                self._depot.remove_file(str(path.parent), BEST)

    def size_bytes(self, trial: int) -> int:
        """What all of a trial takes on this machine."""
        folder = self._settings.trial_folder(self._study, trial)
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

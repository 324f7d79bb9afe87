"""`orch gc`: files that no policy keeps and that nothing refers to.

Of a study only under its lease, so that none of a live holder is touched. What the record names goes only after the
record no longer does (`retention.py`); all else here is named by nothing, so that a kill at any point leaves what the
next call finds again.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from sqlalchemy import select

from orchestrator import depot, mirror, names
from orchestrator.attempt_files import AttemptFiles
from orchestrator.budget import Budget
from orchestrator.errors import HeldError, UnavailableError
from orchestrator.leases import Holding, Lease, holder_of, study_lease
from orchestrator.recorded import IMPORTED
from orchestrator.retention import Retention
from orchestrator.store import Record
from orchestrator.tables import LeaseRow, Promotion, Reason, State, Trial
from recipes.checkpoint import BEST, is_checkpoint
from recipes.config import dataset_of
from recipes.data.cache import path_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from os import stat_result

    from orchestrator.settings import Settings
    from orchestrator.tables import Attempt, Study

WEIGHTS = "weights beyond keep="
EARLIER = "earlier attempts"
CHECKPOINTS = "checkpoints of ended trials"
TEMPORARY = "files of killed processes"
DELETED = "folders of deleted studies"
CACHES = "caches of data that no study names"
KINDS = (WEIGHTS, EARLIER, CHECKPOINTS, TEMPORARY, DELETED, CACHES)
TEMPORARY_PATTERN = "*.tmp"
WHOLE_PATTERN = f"*.{'[0-9a-f]' * 8}.tmp"  # of `recipes.files`, among artifacts that are anybody's
WRITING_SECONDS = 3600  # since its last byte a temporary file of the cache counts as left behind
# A trial that failed so would fail again; others may be tried once more, from their last checkpoint.
_FINAL = (Reason.OOM, Reason.DIVERGED)


@dataclass
class Collected:
    """What was freed, or would be: kind -> number of files and bytes; what was left, and why."""

    num_files: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    num_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    left: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        kinds = {kind: {"files": self.num_files[kind], "bytes": self.num_bytes[kind]} for kind in KINDS}
        return {"freed": kinds, "bytes": sum(self.num_bytes.values()), "left": self.left}


def collect(settings: Settings, references: Sequence[str] = (), *, dry_run: bool = False) -> Collected:
    """Free what nothing needs of some studies; without any of all, and what belongs to none. `dry_run` only looks.

    Raises:
        UnknownNameError: no such study.
        UnavailableError: the record cannot be used.
    """
    with closing(Record.open(settings.record_url)) as record:
        rows = [names.named(record, each) for each in references] or list(record.studies())
        collector = _Collector(settings, record, dry_run=dry_run)
        for row in rows:
            collector.collect_study(row)
        if not references:
            collector.collect_deleted()
            collector.collect_caches()
        return collector.found


class _Collector:
    def __init__(self, settings: Settings, record: Record, *, dry_run: bool) -> None:
        self._settings, self._record, self._dry_run = settings, record, dry_run
        self.found = Collected()

    # -- a study

    def collect_study(self, row: Study) -> None:
        with self._alone(row.name) as lease:
            if lease is None:
                return
            num_freed = self._apply_policy(row, lease)
            self._tidy(row)
        if num_freed and not self._dry_run:
            self._tell_mirrors(row)

    @contextlib.contextmanager
    def _alone(self, study: str) -> Iterator[Lease | None]:
        """The lease of a study, in a dry run one that stands for it; None if another process has it."""
        name = study_lease(study)
        if holder := holder_of(self._record, name):
            self.found.left.append(f"study {study} is run by process {holder['pid']} on {holder['host']}")
            yield None
        elif self._dry_run:
            yield Lease(name=name, token=-1)
        else:
            try:
                holding = Holding(self._record, name)
            except HeldError as error:
                self.found.left.append(str(error))
                yield None
                return
            with holding as lease:
                yield lease

    def _apply_policy(self, row: Study, lease: Lease) -> int:
        """Free the weights that the study's policy does not keep; how many trials lose theirs."""
        if IMPORTED in row.spec:
            return 0
        budget, folder = Budget.model_validate(row.spec["budget"]), self._settings.study_folder(row.name)
        kept_at = depot.of_study(budget.checkpoints, row.name, row.created_at, folder)
        files = AttemptFiles(self._settings, row.name, kept_at)
        retention = Retention(budget, row, self._settings, self._record, lease, files)
        trials, epochs = self._record.trials(row.id), self._record.telling_epochs(row.id)
        spare = retention.spare(trials, epochs)
        folders = [self._settings.trial_folder(row.name, trial.number) for trial in spare]
        self._count(WEIGHTS, [file for each in folders for file in each.glob(f"*/{BEST}")])
        if spare and not self._dry_run:
            retention.ended([], epochs)
        return len(spare)

    def _tidy(self, row: Study) -> None:
        """Remove what killed processes left of a study that nobody runs."""
        trials = {trial.number: trial for trial in self._record.trials(row.id)}
        attempts = self._record.attempts_of_study(row.id)
        exports = {number: Path(export.file).parent.name for number, export in self._record.exports(row.id).items()}
        for folder in _numbered(self._settings.study_folder(row.name)):
            trial = trials.get(int(folder.name))
            if trial is None:
                self._remove(DELETED, [folder])
                continue
            self._remove(TEMPORARY, folder.rglob(TEMPORARY_PATTERN))
            self._tidy_trial(trial, attempts.get(trial.number, []), folder, exports.get(trial.number, ""))

    def _tidy_trial(self, trial: Trial, attempts: Sequence[Attempt], folder: Path, exported: str) -> None:
        accepted = next((str(each.number) for each in reversed(attempts) if each.manifest is not None), "")
        if trial.state in {State.COMPLETE, State.PRUNED} and accepted:
            folders = _numbered(folder)
            self._remove(EARLIER, [each for each in folders if each.name not in {accepted, exported}])
            self._remove(CHECKPOINTS, filter(is_checkpoint, (folder / accepted).glob("*")))
        elif trial.state is State.FAILED and trial.reason in _FINAL:
            self._remove(CHECKPOINTS, filter(is_checkpoint, folder.glob("*/*")))
        if trial.is_freed:  # by one who was killed behind the record's word
            self._remove(WEIGHTS, folder.glob(f"*/{BEST}"))

    def _tell_mirrors(self, row: Study) -> None:
        """Let MLflow drop its copies, or second names, of the weights."""
        if row.is_archived:
            self.found.left.append(f"MLflow's copies of {row.name}, which is archived")
            return
        try:
            mirror.sync(self._settings, row.name)
        except UnavailableError as error:
            self.found.left.append(f"MLflow's copies of {row.name}: {error}; later: orch sync {row.name}")

    # -- what belongs to no study

    def collect_deleted(self) -> None:
        """Remove folders of studies that this record once had, by their leases: another record may use them, too."""
        with self._record.read() as session:
            leases = session.scalars(select(LeaseRow.name)).all()
        known = {row.name for row in self._record.studies()}
        prefix = study_lease("")
        for name in sorted({each.removeprefix(prefix) for each in leases if each.startswith(prefix)} - known):
            folders = [self._settings.study_folder(name), self._settings.logs / name, self._settings.tensorboard / name]
            if not any(folder.is_dir() for folder in folders):
                continue
            with self._alone(name) as lease:
                if lease is not None and self._record.find_study(name) is None:
                    self._remove(DELETED, filter(Path.is_dir, folders))

    def collect_caches(self) -> None:
        """Remove prepared data of configurations that no study has; whoever wants them prepares them again."""
        cache = self._settings.home / "cache"
        stems, recipes = self._stems_and_recipes()
        spare = defaultdict(list)
        for file in sorted(each for each in cache.glob("*") if each.is_file()):
            is_used = any(file.name.startswith((f"{stem}.", f"{stem}-rest-")) for stem in stems)
            if (
                file.suffix != ".tmp"
                and not is_used
                and not ("transfer" in recipes and file.name.startswith("features-"))
            ):
                spare[file.name.partition(".")[0]].append(file)
        for stem, files in spare.items():
            with contextlib.suppress(Timeout), self._locked(cache / f"{stem}.lock"):
                self._remove(CACHES, files)
        with self._record.read() as session:
            promoted = set(session.scalars(select(Promotion.sha256)))
        self._remove(CACHES, (file for file in cache.glob("models/*.onnx") if file.stem not in promoted))
        long_ago = time.time() - WRITING_SECONDS
        left = [*cache.rglob(TEMPORARY_PATTERN), *self._settings.artifacts.rglob(WHOLE_PATTERN)]
        self._remove(TEMPORARY, (file for file in left if file.stat().st_mtime < long_ago))

    @contextlib.contextmanager
    def _locked(self, lock: Path) -> Iterator[None]:
        """Keep others from preparing what goes; raises `Timeout` if one does."""
        if self._dry_run:
            yield
            return
        with FileLock(lock, timeout=0):
            yield
            lock.unlink(missing_ok=True)

    def _stems_and_recipes(self) -> tuple[set[str], set[str]]:
        """How names of files begin that studies use, and the studies' recipes."""
        rows = self._record.studies()
        stems = set()
        for row in rows:
            configs = [trial.config for trial in self._record.trials(row.id)]
            for config in [row.spec.get("fixed", {}), *configs]:
                with contextlib.suppress(ValueError):  # of an imported study, whose fields are anything
                    stems.add(path_of(dataset_of(config)).stem)
        return stems, {Path(row.recipe).stem for row in rows}

    # -- removing

    def _remove(self, kind: str, paths: Iterable[Path]) -> None:
        paths = list(paths)
        self._count(kind, paths)
        for path in [] if self._dry_run else paths:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _count(self, kind: str, paths: Iterable[Path]) -> None:
        """Count files, and the bytes of those that have no further name elsewhere; MLflow drops its name of weights."""
        names_of: dict[tuple[int, int], list[stat_result]] = defaultdict(list)
        for top in paths:
            for path in [top] if top.is_file() else top.rglob("*"):
                if path.is_file():
                    status = path.stat()
                    names_of[status.st_dev, status.st_ino].append(status)
                    self.found.num_files[kind] += 1
        for found in names_of.values():
            if found[0].st_nlink <= len(found) + (kind == WEIGHTS):
                self.found.num_bytes[kind] += found[0].st_size


def _numbered(folder: Path) -> list[Path]:
    """The folders in it whose names are numbers: those of trials, or of attempts."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(each for each in found if each.is_dir() and re.fullmatch(r"\d+", each.name))

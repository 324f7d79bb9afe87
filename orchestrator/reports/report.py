"""`orch report`: a study as one HTML file, which also becomes an artifact of the study's run in MLflow."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import names
from orchestrator.errors import OrchError, UnavailableError, UsageError
from orchestrator.reports.findings import findings
from orchestrator.reports.page import page
from orchestrator.store import Record
from orchestrator.tables import PARENT
from recipes.files import write_whole

if TYPE_CHECKING:
    from orchestrator.settings import Settings
    from orchestrator.tables import Study

SUFFIX = "-report.html"
MAX_STEM_BYTES = 200  # a name of a file has 255, of which a temporary one needs some
ARTIFACT = "report.html"


@dataclass(frozen=True, kw_only=True)
class Written:
    """Where a report is. `run_id` is of the MLflow run that has it too; without one, `not_stored` says why."""

    study: str
    file: Path
    size_bytes: int
    run_id: str | None
    not_stored: str

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**asdict(self), "file": str(self.file)}


def report(settings: Settings, study: str = "", file: Path | None = None) -> Written:
    """Write the report of a study, the newest without a name, to `file`, or to `<study>-report.html` here.

    Raises:
        UnknownNameError: no such study.
        UsageError: the file is a folder, or its folder is not there.
        UnavailableError: the file cannot be written; what it held before stays.
    """
    with closing(Record.open(settings.record_url)) as record:
        row = names.named(record, study) if study else record.newest_study()
        file = file or Path(_default_name(row))
        _check_target(file)
        text = page(findings(settings, record, row))
        run_id = record.run_ids(row.id).get(PARENT)
    data = text.encode()
    try:
        write_whole(file, data)
    except OSError as error:
        raise UnavailableError(f"{file} cannot be written: {error.strerror}") from error
    stored, why = _store(settings, run_id, data)
    return Written(study=row.name, file=file, size_bytes=len(data), run_id=run_id if stored else None, not_stored=why)


def _default_name(row: Study) -> str:
    """The study's name as that of a file; a name may be longer than a file's."""
    return row.name.encode()[:MAX_STEM_BYTES].decode(errors="ignore") + SUFFIX


def _check_target(file: Path) -> None:
    """See that the file can be written, before the work is done."""
    if file.is_dir():
        raise UsageError(f"{file} is a folder")
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent} is no folder")


def _store(settings: Settings, run_id: str | None, data: bytes) -> tuple[bool, str]:
    """Make it an artifact of the study's run, if MLflow is there; whether that went well, and why not."""
    from orchestrator.registry import Registry

    if run_id is None:
        return False, "MLflow has no run of this study; `orch sync` brings it there"
    try:
        Registry(settings).store(run_id, ARTIFACT, data)
    except OrchError as error:
        return False, str(error)
    return True, ""

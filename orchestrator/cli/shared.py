"""What commands share: the application, their arguments, the record, JSON."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator import tables
    from orchestrator.forkserver import ForkServer
    from orchestrator.settings import Settings
    from orchestrator.store import Record

app = typer.Typer(
    help="Sweep PyTorch image models, compare the runs, promote the best.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # saves a third of the time that --help takes
    pretty_exceptions_enable=False,
)

Keys = Annotated[list[str], typer.Argument(metavar="key=value…", show_default=False)]
MoreKeys = Annotated[list[str] | None, typer.Argument(metavar="[key=value…]", show_default=False)]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", show_default=False)]
AnyStudy = Annotated[str, typer.Argument(metavar="[STUDY]", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def the_settings() -> Settings:
    """Where state lies, by the environment."""
    from orchestrator.settings import Settings

    return Settings.from_environment()


@contextlib.contextmanager
def open_record() -> Iterator[Record]:
    """The record, for as long as it is read."""
    from orchestrator.store import Record

    record = Record.open(the_settings().record_url)
    try:
        yield record
    finally:
        record.close()


def workers() -> contextlib.AbstractContextManager[ForkServer | None]:
    """The process that workers are forked from: it imports torch beside this one, which has the study to read."""
    from orchestrator.forkserver import worker_server

    return worker_server()


def one_study(record: Record, name: str) -> tables.Study:
    """The study that a name means; without a name, the only one or else the newest."""
    from orchestrator.names import named

    return named(record, name) if name else record.newest_study()


def print_json(value: Any) -> None:
    """What `--json` prints."""
    print(json.dumps(value, indent=2, allow_nan=False))

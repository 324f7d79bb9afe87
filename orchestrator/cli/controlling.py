"""Commands on a study that runs in another terminal, or waits."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.shared import Keys, StudyName, app, open_record
from orchestrator.errors import UsageError, printable


@app.command(no_args_is_help=True)
def stop(study: StudyName) -> None:
    """End a sweep that runs in another terminal; all finished epochs are saved, and `orch resume` goes on with it."""
    from orchestrator import control

    with open_record() as record:
        print(printable(control.stop(record, study)))


@app.command(no_args_is_help=True)
def pause(study: StudyName) -> None:
    """Free the workers of a sweep that runs in another terminal, which then waits for `orch resume`."""
    from orchestrator import control

    with open_record() as record:
        print(printable(control.pause(record, study)))


@app.command("set", no_args_is_help=True)
def set_(study: StudyName, keys: Keys) -> None:
    """Change the budget of a study, while it runs or for its next run: orch set cnn-digits workers=4 timeout=2h"""
    from orchestrator import control

    with open_record() as record:
        print(printable(control.set_budget(record, study, keys)))


@app.command(no_args_is_help=True)
def extend(study: StudyName, keys: Keys) -> None:
    """Give a study more to do: orch extend cnn-digits trials=+50"""
    from orchestrator import control

    with open_record() as record:
        print(printable(control.extend(record, study, keys)))


@app.command(no_args_is_help=True)
def retry(
    study: StudyName,
    trials: Annotated[list[int] | None, typer.Argument(metavar="[NUMBER…]", show_default=False)] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed.")] = False,
) -> None:
    """Let trials that failed be tried once more."""
    from orchestrator import control

    if bool(trials) == failed:
        raise UsageError("name the trials to try again, or pass --failed for all that failed")
    with open_record() as record:
        print(printable(control.retry(record, study, trials or [])))

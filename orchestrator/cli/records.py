"""Commands that show, delete or mirror what is on record."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path  # noqa: TC003 (typer reads it at run time)
from typing import Annotated

import typer

from orchestrator.cli.shared import AnyStudy, AsJson, StudyName, app, one_study, open_record, print_json, the_settings
from orchestrator.errors import UsageError, printable

TrialReference = Annotated[
    str, typer.Argument(metavar="TRIAL|RUN", help="A trial's number, STUDY/NUMBER, or an MLflow run id.")
]


@app.command()
def status(study: AnyStudy = "", as_json: AsJson = False) -> None:
    """Show how far a study is, and its best trial."""
    from orchestrator import render, views

    with open_record() as record:
        shown = views.status(record, one_study(record, study))
    if as_json:
        return print_json(shown)
    states = {state: count for state, count in shown["states"].items() if count}
    process = shown.pop("process")
    runs = "{pid} on {host}".format_map(process) + (", paused" if process["paused"] else "") if process else "none"
    front = ", ".join(str(row["trial"]) for row in shown.pop("front"))
    more = {"front": f"trials {front}"} if front else {}
    return render.show_pairs({**shown, "states": states, **more, "process": runs})


@app.command()
def ls(
    archived: Annotated[bool, typer.Option("--archived", help="Those that are put away.")] = False,
    as_json: AsJson = False,
) -> None:
    """List all studies but those that are archived."""
    from orchestrator import render, views

    with open_record() as record:
        rows = [views.status(record, row) for row in record.studies() if row.is_archived == archived]
    if as_json:
        return print_json(rows)
    lines = [
        [
            row["study"],
            row["recipe"],
            row["data"],
            f"{sum(row['states'][state] for state in ('complete', 'pruned', 'failed'))}/{row['total']}",
            "{objective} {value:.4f} (trial {trial})".format_map(row["best"]) if row["best"] else "",
        ]
        for row in rows
    ]
    return render.show_table(["study", "recipe", "data", "ended", "best"], lines)


@app.command(no_args_is_help=True)
def show(
    trial: TrialReference,
    as_json: AsJson = False,
) -> None:
    """Show one trial: its configuration, epochs, attempts and files."""
    from orchestrator import render, views

    with open_record() as record:
        study, number = views.find_trial(record, trial)
        shown = views.trial_details(record, the_settings(), study, number)
    if as_json:
        return print_json(shown)
    epochs, config, attempts = shown.pop("epochs"), shown.pop("config"), shown.pop("attempts")
    shown["files"] = ", ".join(shown["files"])  # their hashes are in --json
    render.show_pairs({name: value for name, value in shown.items() if value})
    render.show_table(["field", "value"], list(config.items()))
    render.show_table(["attempt", "worker", "state", "reason"], [[a or "" for a in row.values()] for row in attempts])
    names = list(epochs[0]["metrics"]) if epochs else []
    lines = [[epoch["number"], *(render.short(epoch["metrics"].get(name)) for name in names)] for epoch in epochs]
    return render.show_table(["epoch", *names], lines)


@app.command(no_args_is_help=True)
def logs(
    trial: TrialReference,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the trial has ended.")] = False,
) -> None:
    """Print what the workers wrote while they trained a trial."""
    from orchestrator import logs as worker_logs
    from orchestrator import views

    with open_record() as record:
        study, number = views.find_trial(record, trial)
        for line in worker_logs.lines(record, the_settings(), study, number, follow=follow):
            print(printable(line), flush=True)


@app.command()
def report(
    study: AnyStudy = "",
    out: Annotated[
        Path | None, typer.Option(help="The HTML file; <study>-report.html by default.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a study as one HTML page that needs no network: charts, the winner's mistakes, how to reproduce."""
    from orchestrator.reports.report import report as write_report

    written = write_report(the_settings(), study, out)
    if as_json:
        return print_json(written.to_json())
    print(printable(f"written   {written.file}: {written.size_bytes / 1e6:.1f} MB"))
    if written.not_stored:
        print(f"orch: it is not stored in MLflow: {printable(written.not_stored)}", file=sys.stderr)
    return None


@app.command(no_args_is_help=True)
def archive(
    study: StudyName,
    restore: Annotated[bool, typer.Option("--restore", help="Bring it back.")] = False,
) -> None:
    """Put a study away: `orch ls` and MLflow's UI no longer list it. Nothing of it is lost."""
    from orchestrator.recorded import archive as archive_study

    name = archive_study(the_settings(), study, restore=restore)
    print(printable(f"{name} is back" if restore else f"{name} is archived; `orch archive {name} --restore` undoes it"))


@app.command(no_args_is_help=True)
def delete(
    study: StudyName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a study: its record, its files and its mirrored runs. Promoted versions stay."""
    from orchestrator.names import title
    from orchestrator.recorded import delete as delete_study

    settings = the_settings()
    with open_record() as record:
        row = one_study(record, study)
        study, num_trials = title(record, row), len(record.trials(row.id))
    with contextlib.suppress(typer.Abort):  # nobody is there to answer
        yes = yes or typer.confirm(f"Delete {study} with {num_trials} trials?", err=True)
    if not yes:
        raise UsageError(f"{study} was not deleted")
    delete_study(settings, study)
    if as_json:
        return print_json({"study": study, "trials": num_trials, "deleted": True})
    return print(f"{study} is deleted")


@app.command("import", no_args_is_help=True)
def import_(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Its name in the storage.", show_default=False)],
    storage: Annotated[str, typer.Option(metavar="FILE|URL", help="Optuna's storage.", show_default=False)],
    name: Annotated[str, typer.Option(help="Another name for it here.", show_default=False)] = "",
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="PARAMETER=FIELD", help="A field that has another name here.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take in a study of Optuna's: orch import old --storage sqlite:///old.db --rename learning_rate=lr

    It can be compared with others, and a sweep learns from it: warm_start=STUDY.
    """
    from orchestrator.importing import import_study

    found = import_study(the_settings(), storage, study, target=name, renamed=rename or [])
    if as_json:
        return print_json({"study": found.study, "trials": found.num_trials, "fields": found.fields, **found.states})
    states = ", ".join(f"{count} {state}" for state, count in found.states.items())
    print(printable(f"study {found.study} has {found.num_trials} trial(s): {states}"))
    print(printable(f"fields    {', '.join(found.fields)}"))
    return print(printable(f"next      orch compare {found.study}  ·  orch sweep recipe=… warm_start={found.study}"))


@app.command()
def sync(study: AnyStudy = "") -> None:
    """Bring MLflow, the Optuna storage and TensorBoard up to the record."""
    from orchestrator.mirror import sync as sync_mirrors

    with open_record() as record:
        name = one_study(record, study).name if study else None
    for target, applied in sync_mirrors(the_settings(), name).items():
        print(f"{target}: {applied} change(s) applied")


@app.command()
def ui(port: Annotated[int, typer.Option(help="First of three ports.")] = 5000) -> None:
    """Start MLflow's UI, optuna-dashboard and TensorBoard on this machine only; Ctrl-C stops them."""
    from orchestrator.dashboards import ui as run_dashboards

    run_dashboards(the_settings(), port)

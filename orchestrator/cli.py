"""The command line: parse, call one function, print. Whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from pathlib import Path  # noqa: TC003 (typer reads it at run time)
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import EXIT_TRIALS_FAILED, OrchError, UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator import tables
    from orchestrator.forkserver import ForkServer
    from orchestrator.settings import Settings
    from orchestrator.store import Record
    from orchestrator.study import Study

NUM_SHOWN = 10
# Imports make a million objects that stay; looking through them again and again takes a tenth of the time.
GC_THRESHOLD = 100_000

app = typer.Typer(
    help="Sweep PyTorch image models, compare the runs, promote the best.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # saves a third of the time that --help takes
    pretty_exceptions_enable=False,
)

recipes_app = typer.Typer(help="List recipes, show their fields, copy one out for editing.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
studies_app = typer.Typer(
    help="List, show, check and copy study files, which say what is searched.", no_args_is_help=True
)
app.add_typer(studies_app, name="studies")

Keys = Annotated[list[str], typer.Argument(metavar="key=value…", show_default=False)]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", show_default=False)]
RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A name, or a path to a .py file.", show_default=False)
]
StudyFileName = Annotated[str, typer.Argument(metavar="NAME", help="As of `orch studies ls`.", show_default=False)]
AnyStudy = Annotated[str, typer.Argument(metavar="[STUDY]", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@app.command(no_args_is_help=True)
def sweep(keys: Keys) -> None:
    """Train, prune and compare many configurations: orch sweep recipe=cnn trials=50

    Study keys: recipe, data, trials, workers, timeout, seed, split_seed, study, sampler (auto, tpe, gp, cmaes, qmc,
    nsga2, grid, random), pruner (asha, asha-pause, median, hyperband, none, …), export (top:K, best, all, none),
    retries, executor (local, inline); what is tried first: default_first, enqueue (FILE), warm_start (STUDY).

    Every other key is a field of the recipe, fixed (lr=1e-3) or searched (lr=tag(log,interval(1e-4,1e-1)),
    optimizer=sgd,adamw, depth=range(2,6), width=int(interval(16,128))).

    The same command again goes on where it stopped, and trains nothing twice.
    """
    with _workers() as server:
        from orchestrator import study as studies

        _run(studies.load(_with_weights(keys)), server)


@app.command(no_args_is_help=True)
def train(keys: Keys) -> None:
    """Train one configuration, recorded like a sweep: orch train recipe=cnn lr=3e-3"""
    with _workers() as server:
        from orchestrator import study as studies

        _run(studies.load(_with_weights(keys), single=True), server)


@app.command(no_args_is_help=True)
def resume(
    study: StudyName,
    keys: Annotated[list[str] | None, typer.Argument(metavar="[key=value…]", show_default=False)] = None,
) -> None:
    """Finish a study that was stopped or killed; trials=, workers=, timeout= and the like may change."""
    with _workers() as server:
        from orchestrator import study as studies
        from orchestrator.recorded import from_record

        with _record() as record:
            recorded = from_record(record.study(study))
        studies.check_unchanged(recorded)
        _run(studies.change_budget(recorded, keys or []), server, resume=True)


@app.command()
def status(study: AnyStudy = "", as_json: AsJson = False) -> None:
    """Show how far a study is, and its best trial."""
    from orchestrator import compare, render

    with _record() as record:
        row = _one_study(record, study)
        shown = compare.status(row, record.trials(row.id), record.epochs(row.id), record.run_ids(row.id))
    if as_json:
        return _print_json(shown)
    states = {state: count for state, count in shown["states"].items() if count}
    return render.show_pairs({**shown, "states": states})


@app.command()
def ls(as_json: AsJson = False) -> None:
    """List all studies."""
    from orchestrator import compare, render

    with _record() as record:
        rows = [
            compare.status(row, record.trials(row.id), record.epochs(row.id), record.run_ids(row.id))
            for row in record.studies()
        ]
    if as_json:
        return _print_json(rows)
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
    trial: Annotated[
        str, typer.Argument(metavar="TRIAL|RUN", help="A trial's number, STUDY/NUMBER, or an MLflow run id.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show one trial: its configuration, epochs, attempts and files."""
    from orchestrator import render, views

    with _record() as record:
        study, number = views.find_trial(record, trial)
        shown = views.trial_details(record, _settings(), study, number)
    if as_json:
        return _print_json(shown)
    epochs, config, attempts = shown.pop("epochs"), shown.pop("config"), shown.pop("attempts")
    shown["files"] = ", ".join(shown["files"])  # their hashes are in --json
    render.show_pairs({name: value for name, value in shown.items() if value})
    render.show_table(["field", "value"], list(config.items()))
    render.show_table(["attempt", "worker", "state", "reason"], [[a or "" for a in row.values()] for row in attempts])
    names = list(epochs[0]["metrics"]) if epochs else []
    lines = [[epoch["number"], *(render.short(epoch["metrics"].get(name)) for name in names)] for epoch in epochs]
    return render.show_table(["epoch", *names], lines)


@app.command("compare")
def compare_(study: AnyStudy = "", as_json: AsJson = False) -> None:
    """Rank the trials of a study: value, the parameters that differ, epochs, seconds, state."""
    from orchestrator import compare, render

    with _record() as record:
        row = _one_study(record, study)
        trials, epochs, run_ids = record.trials(row.id), record.epochs(row.id), record.run_ids(row.id)
        rows = compare.leaderboard(trials, epochs, run_ids, row.spec.get("space"))
    if as_json:
        return _print_json(rows)
    return render.show_leaderboard(rows)


@app.command(no_args_is_help=True)
def delete(
    study: StudyName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a study: its record, its files and its mirrored runs. Promoted versions stay."""
    from orchestrator.recorded import delete as delete_study

    settings = _settings()
    with _record() as record:
        num_trials = len(record.trials(record.study(study).id))
    with contextlib.suppress(typer.Abort):  # nobody is there to answer
        yes = yes or typer.confirm(f"Delete {study} with {num_trials} trials?", err=True)
    if not yes:
        raise UsageError(f"{study} was not deleted")
    delete_study(settings, study)
    if as_json:
        return _print_json({"study": study, "trials": num_trials, "deleted": True})
    return print(f"{study} is deleted")


@app.command()
def promote(study: AnyStudy = "", as_json: AsJson = False) -> None:
    """Check the best trial against the champion on untouched test images; if it holds, make it @champion."""
    from orchestrator.promote import promote as promote_study

    promoted = promote_study(_settings(), study or None)
    if as_json:
        return _print_json(promoted.to_json())
    return _show_promoted(promoted)


@app.command(no_args_is_help=True)
def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)], as_json: AsJson = False
) -> None:
    """Make @previous the champion again."""
    from orchestrator.promote import rollback as roll_back

    promoted = roll_back(_settings(), model)
    if as_json:
        return _print_json(promoted.to_json())
    return print(f"{promoted.model}@{promoted.alias} is version {promoted.version} again")


@app.command(no_args_is_help=True)
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/NAME@ALIAS", show_default=False)],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE|FOLDER|TABLE…", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="A .csv or .parquet file to write.", show_default=False)] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that are no images.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Compute in half precision, fp16.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a promoted model makes of PNG or JPEG images, of all in folders, or of the rows of CSV files."""
    from orchestrator import predictions, render

    if output is not None:
        predictions.check_output(output)
    bad: list[UsageError] = []
    on_bad = bad.append if skip_bad else None
    found = predictions.predict(_settings(), model, images, half=half, on_bad=on_bad, follow=render.progress)
    if bad:
        print(f"orch: {len(bad)} file(s) left out; the first: {bad[0]}", file=sys.stderr)
    if output is not None:
        predictions.write(found, output)
    if as_json:
        return _print_json(found.rows)
    if output is not None:
        kind = "row" if "row" in found.kinds else "image"
        print(f"written   {output}: {len(found.rows)} {kind}(s)")
        return None
    for row in found.rows:
        print(printable("  ".join(render.short(value) for value in row.values())))
    return None


@app.command()
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="[STUDY|TRIAL]", help="A study's best, or a trial as of `orch show`.", show_default=False
        ),
    ] = "",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Draw the confusion matrix and the worst mistakes there.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how good a trial is: accuracy, F1, AUROC, calibration, each class, and the most frequent mistakes.

    The confusion matrix is in --json. The test images are for the end: choosing by them spoils them.
    """
    from orchestrator import evaluate as evaluation
    from orchestrator import render, views

    with _record() as record:
        study, number = views.find_study_or_trial(record, target)
    found = evaluation.evaluate(_settings(), study.name, number, split=split, pictures=pictures)
    if as_json:
        return _print_json(found)
    render.show_pairs({name: found[name] for name in ("study", "trial", "split", "images")} | found["metrics"])
    render.show_table(
        list(found["classes"][0]), [[render.short(cell) for cell in row.values()] for row in found["classes"]]
    )
    if found["confusion"]:
        render.show_table(["class", "taken for", "images"], found["mistakes"])
    if pictures is not None:
        print(f"written   {pictures}")
    return None


@app.command(no_args_is_help=True)
def export(
    file: Annotated[Path, typer.Argument(help="A .onnx or .pt2 file to write.", show_default=False)],
    target: Annotated[
        str, typer.Argument(metavar="[STUDY|TRIAL]", help="A study's best, or one trial.", show_default=False)
    ] = "",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    as_json: AsJson = False,
) -> None:
    """Write a trial's model to a file and measure what that costs: orch export small.onnx --precision int8"""
    from orchestrator import exports, render, views

    exports.check_target(file, precision)
    with _record() as record:
        study, number = views.find_study_or_trial(record, target)
    found = exports.export(_settings(), study.name, number, file, precision)
    return _print_json(found) if as_json else render.show_pairs(found)


@app.command()
def sync(study: AnyStudy = "") -> None:
    """Bring MLflow, the Optuna storage and TensorBoard up to the record."""
    from orchestrator.mirror import sync as sync_mirrors

    with _record() as record:
        name = record.study(study).name if study else None
    for target, applied in sync_mirrors(_settings(), name).items():
        print(f"{target}: {applied} change(s) applied")


@app.command()
def ui(port: Annotated[int, typer.Option(help="First of three ports.")] = 5000) -> None:
    """Start MLflow's UI, optuna-dashboard and TensorBoard on this machine only; Ctrl-C stops them."""
    from orchestrator.dashboards import ui as run_dashboards

    run_dashboards(_settings(), port)


@recipes_app.command("ls")
def list_recipes(as_json: AsJson = False) -> None:
    """List the recipes: those that come along, and those of installed packages."""
    from orchestrator import catalogue, render

    rows = catalogue.rows()
    if as_json:
        return _print_json(rows)
    return render.show_table(["recipe", "about"], [[row["recipe"], row["about"]] for row in rows])


@recipes_app.command("show", no_args_is_help=True)
def show_recipe(recipe: RecipeName, as_json: AsJson = False) -> None:
    """Show every field of a recipe: what it takes, its default, what is searched, and what it means."""
    from orchestrator import catalogue, render

    rows = catalogue.field_rows(catalogue.load(recipe))
    if as_json:
        return _print_json(rows)
    return render.show_table(list(rows[0]), [list(row.values()) for row in rows])


@recipes_app.command("cp", no_args_is_help=True)
def copy_recipe(recipe: RecipeName, file: Annotated[Path, typer.Argument(show_default=False)]) -> None:
    """Copy a recipe to a file of yours, with its study file: orch recipes cp cnn my_cnn.py"""
    from orchestrator import catalogue

    for path in catalogue.copy(catalogue.load(recipe), file):
        print(f"written   {path}")
    print(f"next      orch sweep recipe={file}")


@recipes_app.command("check", no_args_is_help=True)
def check_recipe(
    recipe: RecipeName,
    keys: Annotated[list[str] | None, typer.Argument(metavar="[key=value…]", show_default=False)] = None,
) -> None:
    """See that a recipe can learn one batch by heart: most mistakes in a model or a loss show here in seconds."""
    from orchestrator import check
    from orchestrator import study as studies

    learnt = check.overfit(studies.load([f"recipe={recipe}", *(keys or [])], single=True))
    went = f"loss {learnt.first_loss:.4g} to {learnt.last_loss:.4g} in {learnt.steps} steps"
    print(f"{recipe} learns one batch by heart: {went}")


@studies_app.command("ls")
def list_studies(as_json: AsJson = False) -> None:
    """List the study files: those of ./studies, and those that come along."""
    from orchestrator import render, study_catalogue

    rows = study_catalogue.rows()
    if as_json:
        return _print_json(rows)
    lines = [[*row.values()] if row["searched"] is not None else [*{**row, "searched": "?"}.values()] for row in rows]
    return render.show_table(["study file", "recipe", "searched", "file"], lines)


@studies_app.command("show", no_args_is_help=True)
def show_study(name: StudyFileName, as_json: AsJson = False) -> None:
    """Show what a study file fixes and searches, under which conditions, and its constraints."""
    from orchestrator import render, study_catalogue

    shown = study_catalogue.show(name)
    if as_json:
        return _print_json(shown)
    render.show_pairs({key: shown[key] for key in ("study", "recipe", "file")})
    render.show_table(["field", "fixed", "searched", "when"], study_catalogue.field_rows(shown))
    if shown["constraints"]:
        render.show_table(["constraint"], [[text] for text in shown["constraints"]])
    return None


@studies_app.command("validate", no_args_is_help=True)
def validate_studies(
    files: Annotated[list[str], typer.Argument(metavar="NAME|FILE…", show_default=False)],
    recipe: Annotated[str, typer.Option(help="The recipe, where the file's name does not begin with it.")] = "",
) -> None:
    """Hold study files against their recipes, all of them, without running anything."""
    from orchestrator import study_catalogue

    num_bad = 0
    for file in files:
        try:
            row = study_catalogue.validate(file, recipe)
            print(printable("fits      {file}: recipe {recipe}, {searched} field(s) searched".format_map(row)))
        except UsageError as error:
            num_bad += 1
            print(f"orch: {error}", file=sys.stderr)
    if num_bad:
        sys.exit(UsageError.exit_code)


@studies_app.command("cp", no_args_is_help=True)
def copy_study(name: StudyFileName, file: Annotated[Path | None, typer.Argument(show_default=False)] = None) -> None:
    """Copy a study file to ./studies, where it wins over the one that came along, or to a file of yours."""
    from orchestrator import study_catalogue

    print(f"written   {study_catalogue.copy(name, file)}")


@studies_app.command("schema", no_args_is_help=True)
def show_schema(recipe: RecipeName) -> None:
    """Print the JSON Schema of a recipe's study files, for editors."""
    from orchestrator import catalogue, study_catalogue

    _print_json(study_catalogue.schema(catalogue.load(recipe)))


def main() -> None:
    """Run the command line; errors of ours are one line on standard error and an exit code."""
    try:
        app()
    except OrchError as error:
        print(f"orch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def process() -> None:
    """Be the process `orch`: `main`, quick to start and to leave."""
    gc.set_threshold(GC_THRESHOLD)
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)  # Python would take torch and MLflow apart for most of a second


# -- what commands share


def _workers() -> contextlib.AbstractContextManager[ForkServer | None]:
    """The process that workers are forked from: it imports torch beside this one, which has the study to read."""
    from orchestrator.forkserver import worker_server

    return worker_server()


def _run(study: Study, server: ForkServer | None, *, resume: bool = False) -> None:
    from orchestrator import live, render, views
    from orchestrator import sweep as sweeps

    settings = _settings()
    with live.monitor() as monitor:
        outcome = sweeps.run(study, settings, monitor, server, resume=resume)
    with _record() as record:
        summary = views.summarise(record, settings, outcome.study)
    if outcome.was_complete:
        more = "its space has no other configurations" if outcome.used_up else "a larger trials= extends it"
        print(f"study {study.name} is complete: {len(summary.rows)} trials; {more}")
    render.show_leaderboard(summary.rows, limit=NUM_SHOWN)
    for line in summary.lines(outcome):
        print(line)
    if summary.num_broken:
        sys.exit(EXIT_TRIALS_FAILED)


def _with_weights(keys: list[str]) -> list[str]:
    """Put the weights file of a promoted model in place of `init=models:/NAME@ALIAS`: recipes know no registry."""
    if not any(key.startswith("init=models:/") for key in keys):
        return keys
    from orchestrator.models import resolve_weights

    prefix = "init="
    return [
        f"{prefix}'{resolve_weights(_settings(), key.removeprefix(prefix))}'"
        if key.startswith("init=models:/")
        else key
        for key in keys
    ]


def _show_promoted(promoted: Any) -> None:
    from orchestrator import render

    lines = [[gate["name"], gate["figure"], gate["limit"], "passed"] for gate in promoted.to_json()["gates"]]
    if lines:
        render.show_table(["gate", "figure", "limit", ""], lines)
    verb = "is already" if promoted.already else "is now"
    name = f"{promoted.model} version {promoted.version}"
    print(f"{name} {verb} @{promoted.alias}: {promoted.metric} {promoted.score:.4f}")
    print(f"use it:  orch predict models:/{promoted.model}@{promoted.alias} FILE…")


def _settings() -> Settings:
    from orchestrator.settings import Settings

    return Settings.from_environment()


@contextlib.contextmanager
def _record() -> Iterator[Record]:
    from orchestrator.store import Record

    record = Record.open(_settings().record_url)
    try:
        yield record
    finally:
        record.close()


def _one_study(record: Record, name: str) -> tables.Study:
    """The study of that name; without a name, the only one or else the newest."""
    return record.study(name) if name else record.newest_study()


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))

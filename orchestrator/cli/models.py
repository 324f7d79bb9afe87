"""Commands on trained models: evaluate, export, promote, use."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 (typer reads it at run time)
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.shared import AnyStudy, AsJson, app, open_record, print_json, the_settings
from orchestrator.errors import printable

if TYPE_CHECKING:
    from orchestrator.errors import UsageError


@app.command()
def promote(study: AnyStudy = "", as_json: AsJson = False) -> None:
    """Check the best trial against the champion on untouched test images; if it holds, make it @champion."""
    from orchestrator.promote import promote as promote_study

    promoted = promote_study(the_settings(), study or None)
    if as_json:
        return print_json(promoted.to_json())
    return _show_promoted(promoted)


@app.command(no_args_is_help=True)
def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)], as_json: AsJson = False
) -> None:
    """Make @previous the champion again."""
    from orchestrator.promote import rollback as roll_back

    promoted = roll_back(the_settings(), model)
    if as_json:
        return print_json(promoted.to_json())
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
    found = predictions.predict(the_settings(), model, images, half=half, on_bad=on_bad, follow=render.progress)
    if bad:
        print(f"orch: {len(bad)} file(s) left out; the first: {bad[0]}", file=sys.stderr)
    if output is not None:
        predictions.write(found, output)
    if as_json:
        return print_json(found.rows)
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

    with open_record() as record:
        study, number = views.find_study_or_trial(record, target)
    found = evaluation.evaluate(the_settings(), study.name, number, split=split, pictures=pictures)
    if as_json:
        return print_json(found)
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
    with open_record() as record:
        study, number = views.find_study_or_trial(record, target)
    found = exports.export(the_settings(), study.name, number, file, precision)
    return print_json(found) if as_json else render.show_pairs(found)


def _show_promoted(promoted: Any) -> None:
    from orchestrator import render

    lines = [[gate["name"], gate["figure"], gate["limit"], "passed"] for gate in promoted.to_json()["gates"]]
    if lines:
        render.show_table(["gate", "figure", "limit", ""], lines)
    verb = "is already" if promoted.already else "is now"
    name = f"{promoted.model} version {promoted.version}"
    print(f"{name} {verb} @{promoted.alias}: {promoted.metric} {promoted.score:.4f}")
    print(f"use it:  orch predict models:/{promoted.model}@{promoted.alias} FILE…")

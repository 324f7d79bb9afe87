"""Commands on trained models: evaluate, export, promote, use."""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.shared import AsJson, MoreKeys, app, open_record, print_json, the_settings, workers
from orchestrator.errors import UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.promote import Promoted

NUM_CONFIRMED = 3  # leaders that are trained again by `orch promote --confirm`

ModelName = Annotated[str, typer.Argument(metavar="MODEL", show_default=False)]
ModelUri = Annotated[str, typer.Argument(metavar="MODEL", help="models:/NAME@ALIAS", show_default=False)]
BestOrTrial = Annotated[
    str,
    typer.Argument(metavar="[STUDY|TRIAL]", help="A study's best, or a trial as of `orch show`.", show_default=False),
]
Alias = Annotated[str, typer.Option(metavar="NAME", help="Which alias of the model moves.")]


@app.command()
def promote(
    target: BestOrTrial = "",
    limits: MoreKeys = None,
    alias: Alias = "champion",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Go through the gates and move nothing.")] = False,
    confirm: Annotated[
        int,
        typer.Option(
            metavar="SEEDS", help="First train the three best with so many further seeds.", show_default=False
        ),
    ] = 0,
    force: Annotated[
        str, typer.Option(metavar="WHY", help="Promote whatever the gates say; the reason is kept.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check the best trial against the champion on untouched test images; if it holds, make it @champion.

    Limits of the study, or of this time: min_metric, min_class_recall, max_calibration_error, max_latency_ms,
    max_size_mb. A gate that is not passed ends it with exit code 3, and nothing is moved.
    """
    from orchestrator import views
    from orchestrator.budget import GATES
    from orchestrator.promote import check_alias
    from orchestrator.promote import promote as promote_trial

    if target.partition("=")[0] in GATES:  # of the only study
        target, limits = "", [target, *(limits or [])]
    check_alias(alias)
    study, number = None, None
    if target:
        with open_record() as record:
            row, number = views.find_study_or_trial(record, target)
            study = row.name
    if confirm:
        study = _confirm(study, number, confirm)
    promoted = promote_trial(
        the_settings(), study, number, alias=alias, limits=limits or [], dry_run=dry_run, force=force
    )
    if as_json:
        return print_json(promoted.to_json())
    return _show_promoted(promoted)


def _confirm(study: str | None, number: int | None, num_seeds: int) -> str:
    """Train the leaders of a study with further seeds, so that the best of them by their mean is promoted."""
    from orchestrator import coordinator, live
    from orchestrator.promote import choose
    from orchestrator.recorded import from_record
    from orchestrator.study import change_budget, check_unchanged

    if number is not None:
        raise UsageError("--confirm is for a study, of which it chooses the trial; a trial is promoted as it is")
    with workers() as server:
        with open_record() as record:
            recorded = from_record(choose(record, study))
        check_unchanged(recorded)
        changed = change_budget(recorded, [f"confirm={NUM_CONFIRMED}x{num_seeds}"])
        with contextlib.redirect_stdout(sys.stderr), live.monitor() as monitor:
            coordinator.run(changed, the_settings(), monitor, server, resume=True)
    return recorded.name


@app.command(no_args_is_help=True)
def rollback(
    model: ModelName,
    to: Annotated[str, typer.Option(metavar="VERSION", help="Any version that was promoted.", show_default=False)] = "",
    alias: Alias = "champion",
    as_json: AsJson = False,
) -> None:
    """Make @previous the champion again, or another version that was promoted."""
    from orchestrator.promote import rollback as roll_back

    promoted = roll_back(the_settings(), model, to=to or None, alias=alias)
    if as_json:
        return print_json(promoted.to_json())
    return print(f"{promoted.model}@{promoted.alias} is version {promoted.version} again")


@app.command(no_args_is_help=True)
def history(model: ModelName, as_json: AsJson = False) -> None:
    """Show who moved the aliases of a model, when, on what figures and why."""
    from orchestrator import promote as promotions
    from orchestrator import render

    with open_record() as record:
        moves = promotions.history(record, model)
    if as_json:
        return print_json(moves)
    header = ["when", "who", "", "alias", "version", "trial", "score", "gates not passed", "reason"]
    return render.show_table(header, [_move(move) for move in moves])


@app.command(no_args_is_help=True)
def predict(
    model: ModelUri,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE|FOLDER|TABLE…", help="Or patterns: 'photos/**/*.png'", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option(help="A .csv, .json or .parquet file to write.", show_default=False)
    ] = None,
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


@app.command(no_args_is_help=True)
def serve(
    model: ModelUri,
    host: Annotated[str, typer.Option(help="Address; any but this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    watch: Annotated[float, typer.Option(metavar="SECONDS", help="How often to look where the alias points.")] = 10,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Holds the token that requests must bring; or set ORCH_SERVE_TOKEN.", show_default=False),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name of this server in requests.", show_default=False),
    ] = None,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="Largest body of a request.")] = "10MB",
    max_pixels: Annotated[int, typer.Option(help="Most pixels of a request.")] = 25_000_000,
    max_batch: Annotated[int, typer.Option(help="Most pictures of a request, and of a batch.")] = 32,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Longest time of a request.")] = 30,
    queue: Annotated[int, typer.Option(help="Most requests under way; more are told to come again.")] = 128,
    threads: Annotated[int, typer.Option(help="Threads that compute; 0 chooses by the model.")] = 0,
) -> None:
    """Serve a promoted model over HTTP: POST /predict, /health, /ready, /metrics, /docs; Ctrl-C stops it.

    An image file is answered as `orch predict` does, {"inputs": [[…]]} as MLflow's own server does. A version that the
    alias is moved to takes over without a restart, if its bytes are those that were promoted.
    """
    from orchestrator.serving import options
    from orchestrator.serving import serve as serve_model

    chosen = options.make(
        token_file,
        host=host,
        port=port,
        watch=watch,
        allow_hosts=tuple(allow_host or ()),
        max_body=max_body,
        max_pixels=max_pixels,
        max_batch=max_batch,
        timeout=timeout,
        queue=queue,
        threads=threads,
    )
    serve_model(the_settings(), model, chosen, _show_served)


@app.command(no_args_is_help=True)
def demo(
    model: ModelUri,
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 7860,
) -> None:
    """Show a page on this machine to drop a picture on, or to draw a digit, and what a promoted model makes of it."""
    from orchestrator.demo import demo as show_demo

    show_demo(the_settings(), model, port, _show_page)


@app.command()
def evaluate(
    target: BestOrTrial = "",
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
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|MODEL",
            help="A .onnx or .pt2 file to write; with --to, a promoted model: models:/NAME@ALIAS",
            show_default=False,
        ),
    ],
    target: BestOrTrial = "",
    precision: Annotated[str, typer.Option(help="Of FILE: fp32, fp16 or int8.")] = "fp32",
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to write MODEL into.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a trial's model to a file and measure what that costs: orch export small.onnx --precision int8

    Or a promoted model to a folder, for people who have nothing of ours: orch export models:/NAME@champion --to DIR.
    It has the ONNX file, labels, the model card, and a script that needs onnxruntime, NumPy and Pillow alone.
    """
    from orchestrator import render

    found = _export_model(file, target, precision, to) if to else _export_trial(file, target, precision)
    if as_json:
        return print_json(found)
    return render.show_pairs({name: ", ".join(value) if name == "files" else value for name, value in found.items()})


def _export_trial(name: str, target: str, precision: str) -> dict[str, Any]:
    from orchestrator import exports, views

    if name.startswith("models:/"):
        raise UsageError(f"{name} is a promoted model; say which folder it goes to: --to DIR")
    exports.check_target(Path(name), precision)
    with open_record() as record:
        study, number = views.find_study_or_trial(record, target)
    return exports.export(the_settings(), study.name, number, Path(name), precision)


def _export_model(uri: str, target: str, precision: str, folder: Path) -> dict[str, Any]:
    from orchestrator import bundles

    if target or precision != "fp32":
        raise UsageError("--to takes a promoted model as it is: no trial, and no --precision")
    return bundles.export_model(the_settings(), uri, folder)


def _move(move: Mapping[str, Any]) -> list[Any]:
    when = datetime.fromtimestamp(move["when"], tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    version = f"{move['from'] or '-'} → {move['to']}"
    failed = ", ".join(gate["name"] for gate in move["gates"] if not gate["passed"])
    place = f"{move['study']}/{move['trial']}"
    score = f"{move['metric']} {move['score']:.4f}"
    return [when, move["who"], move["kind"], move["alias"], version, place, score, failed, move["reason"] or ""]


def _show_page(title: str, address: str) -> None:
    print(printable(f"{title}: {address}"))
    print("Ctrl-C stops it.", flush=True)


def _show_served(loaded: Any, address: str) -> None:
    print(printable(f"{loaded.name} version {loaded.version}: {address}  (try it: {address}/docs)"))
    print("Ctrl-C stops it.", flush=True)


def _show_promoted(promoted: Promoted) -> None:
    from orchestrator import render

    if promoted.gates:
        render.show_table(["gate", "figure", "limit", "", "less the champion's"], map(_gate, promoted.gates))
    figure = f"{promoted.metric} {promoted.score:.4f}"
    if promoted.version is None:
        return print(f"{promoted.model} would be @{promoted.alias}: {figure}; nothing was moved")
    verb = "is already" if promoted.already else "is now"
    print(f"{promoted.model} version {promoted.version} {verb} @{promoted.alias}: {figure}")
    if promoted.reason:
        print(printable(f"forced:  {promoted.reason}"))
    return print(f"use it:  orch predict models:/{promoted.model}@{promoted.alias} FILE…")


def _gate(gate: Mapping[str, Any]) -> list[Any]:
    told = "{mean:+.4f}, 95% {low:+.4f} to {high:+.4f}".format_map(gate["difference"]) if "difference" in gate else ""
    figures = [f"{gate[name]:.4g}" for name in ("figure", "limit")]
    return [gate["name"], *figures, "passed" if gate["passed"] else "not passed", told]

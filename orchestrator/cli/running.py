"""Commands that train: sweep, train, resume."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.shared import (
    AsJson,
    Keys,
    MoreKeys,
    StudyName,
    app,
    one_study,
    open_record,
    print_json,
    the_settings,
    workers,
)
from orchestrator.errors import EXIT_TRIALS_FAILED, RefusedError, UsageError, printable

if TYPE_CHECKING:
    from orchestrator.forkserver import ForkServer
    from orchestrator.plan import Plan
    from orchestrator.study import Study

NUM_SHOWN = 10

NewVersion = Annotated[
    bool,
    typer.Option(
        "--new-version", help="If the study is searched otherwise than before, keep the trials that still fit."
    ),
]


@app.command(no_args_is_help=True)
def sweep(
    keys: Keys,
    plan: Annotated[bool, typer.Option("--plan", help="Show what it would cost, and ask.")] = False,
    new_version: NewVersion = False,
) -> None:
    """Train, prune and compare many configurations: orch sweep recipe=cnn trials=50

    What: recipe, data, split_seed, seed, study (its name). How: sampler (auto, tpe, gp, cmaes, qmc, nsga2, grid,
    random), pruner (asha, asha-pause, median, hyperband, none, …), default_first, enqueue (FILE), warm_start (STUDY).
    Where: executor (local, inline, ray), address, workers. Until: trials, timeout (as in 2h), max_epochs_total,
    max_failures, target_value, patience. Then: confirm (as in 3x5), export (top:K, best, all, none).
    A trial that fails by an error is tried again: retries. What paused trials may keep on disk: max_disk.

    Every other key is a field of the recipe, fixed (lr=1e-3) or searched (lr=tag(log,interval(1e-4,1e-1)),
    optimizer=sgd,adamw, depth=range(2,6), width=int(interval(16,128))).

    The same command again goes on where it stopped, and trains nothing twice.
    """
    with workers() as server:
        from orchestrator import study as studies

        study = studies.load(_with_weights(keys))
        if plan:
            _ask(study, server, new_version=new_version)
        _run(study, server, new_version=new_version)


@app.command("plan", no_args_is_help=True)
def plan_(keys: Keys, new_version: NewVersion = False, as_json: AsJson = False) -> None:
    """Show what a sweep would do, and how long and how large it would be: orch plan recipe=cnn trials=50

    Takes the keys of `orch sweep`. Some configurations are tried for twenty seconds in all; nothing is recorded.
    """
    with workers() as server:
        from orchestrator import plan
        from orchestrator import study as studies

        planned = plan.make(studies.load(_with_weights(keys)), the_settings(), server, new_version=new_version)
    return print_json(planned.to_json()) if as_json else _show(planned)


@app.command(no_args_is_help=True)
def train(keys: Keys) -> None:
    """Train one configuration, recorded like a sweep: orch train recipe=cnn lr=3e-3"""
    with workers() as server:
        from orchestrator import study as studies

        _run(studies.load(_with_weights(keys), single=True), server)


@app.command(no_args_is_help=True)
def resume(
    study: StudyName,
    keys: MoreKeys = None,
) -> None:
    """Finish a study that was stopped, killed or paused; trials=, workers=, timeout= and the like may change."""
    with workers() as server:
        from orchestrator import control
        from orchestrator import study as studies
        from orchestrator.recorded import from_record

        with open_record() as record:
            if (told := control.go_on(record, study, keys or [])) is not None:
                return print(printable(told))
            recorded = from_record(one_study(record, study))
        studies.check_unchanged(recorded)
        return _run(studies.change_budget(recorded, keys or []), server, resume=True)


@app.command(no_args_is_help=True)
def reproduce(
    target: Annotated[
        str, typer.Argument(metavar="TRIAL|STUDY", help="As of `orch show`, or a study's best.", show_default=False)
    ],
    check: Annotated[int, typer.Option(metavar="N", min=0, help="Only the first N epochs; 0 is all of them.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a trial again from what is on record, and compare its losses: same bits, within tolerance, or other.

    It says what differs: code, packages, data, seed, threads or device. Other losses end it with exit code 3.
    """
    with workers() as server:
        from orchestrator import render, views
        from orchestrator import reproduce as reproduction

        with open_record() as record:
            study, number = views.find_study_or_trial(record, target)
            best = views.best_trial(record, study) if number is None else number
        tell = (lambda _: None) if as_json else (lambda line: print(line, flush=True))
        found = reproduction.reproduce(the_settings(), study.name, best, server, check=check, tell=tell)
    if as_json:
        print_json(found.to_json())
    else:
        render.show_pairs({**found.same, **{name: f"differs: {told}" for name, told in found.differs.items()}})
        print(printable(found.line()))
    if not found.holds:
        sys.exit(RefusedError.exit_code)


def _show(planned: Plan) -> None:
    from orchestrator import plan, render

    where = f"GPU {', '.join(planned.devices)}" if planned.devices else "CPU"
    render.show_pairs(
        {
            "study": planned.study,
            "trials": f"{planned.trials}" + (f", of which {planned.num_ended} have ended" if planned.num_ended else ""),
            "workers": f"{planned.workers} of {planned.threads} thread(s), {where}",
            "sampler": planned.sampler,
            "pruner": planned.pruner,
        }
    )
    render.show_table(["field", "searched"], planned.space.items())
    if planned.constraints:
        render.show_table(["constraint"], [[text] for text in planned.constraints])
    if planned.suggestions:
        drawn = enumerate(planned.suggestions, planned.first_trial)
        render.show_table(["trial", "parameters"], [[number, render.short(params)] for number, params in drawn])
        print(f"those after the first {planned.workers} may change with the results\n")
    lines = [[figure.name, plan.text(figure), figure.basis, figure.how] for figure in planned.figures]
    render.show_table(["figure", "", "", "how"], lines)
    for note in planned.notes:
        print(printable(note))


def _ask(study: Study, server: ForkServer | None, *, new_version: bool) -> None:
    """Show the plan of a study and go on only if somebody says so.

    Raises:
        UsageError: nobody does.
    """
    from orchestrator import plan

    _show(plan.make(study, the_settings(), server, new_version=new_version))
    with contextlib.suppress(typer.Abort):  # nobody is there to answer
        if typer.confirm(f"Start {study.name}?", err=True):
            return
    raise UsageError(f"{study.name} was not started")


def _run(study: Study, server: ForkServer | None, *, resume: bool = False, new_version: bool = False) -> None:
    from orchestrator import coordinator, live, render, views

    settings = the_settings()
    with live.monitor() as monitor:
        outcome = coordinator.run(study, settings, monitor, server, resume=resume, new_version=new_version)
    with open_record() as record:
        summary = views.summarise(record, settings, outcome.study)
    if outcome.was_complete and outcome.limit:
        print(printable(f"study {outcome.study.name} has ended: {outcome.limit}"))
    elif outcome.was_complete:
        more = "its space has no other configurations" if outcome.used_up else "a larger trials= extends it"
        print(f"study {outcome.study.name} is complete: {len(summary.rows)} trials; {more}")
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
        f"{prefix}'{resolve_weights(the_settings(), key.removeprefix(prefix))}'"
        if key.startswith("init=models:/")
        else key
        for key in keys
    ]

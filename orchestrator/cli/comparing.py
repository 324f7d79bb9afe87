"""The command that holds trials, runs and studies beside each other."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli.shared import AsJson, app, open_record, print_json
from orchestrator.errors import UsageError

Things = Annotated[
    list[str] | None,
    typer.Argument(metavar="[STUDY | A B …]", help="A study; or several runs, trials or studies.", show_default=False),
]


@app.command("compare")
def compare_(
    things: Things = None,
    sort: Annotated[
        str, typer.Option(metavar="COLUMN,…", help="Sort by it; -COLUMN is from large to small.", show_default=False)
    ] = "",
    where: Annotated[
        str, typer.Option("--filter", metavar="TEXT", help="Such as 'lr>1e-3 and state=complete'.", show_default=False)
    ] = "",
    columns: Annotated[str, typer.Option(metavar="A,B,…", help="Show these instead.", show_default=False)] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV and nothing else.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rank the trials of a study, or hold several trials, runs (by MLflow's id) or studies beside each other."""
    if as_csv and as_json:
        raise UsageError("--csv and --json are two formats; choose one")
    if len(things or []) > 1:
        if sort or where or columns:
            raise UsageError("--sort, --filter and --columns are of one study's table; several things have their own")
        return _contrast(things or [], as_csv=as_csv, as_json=as_json)
    return _table(*(things or [""]), sort=sort, where=where, columns=columns, as_csv=as_csv, as_json=as_json)


def _table(study: str, *, sort: str, where: str, columns: str, as_csv: bool, as_json: bool) -> None:
    from orchestrator import render, views
    from orchestrator.columns import as_csv as csv_of

    with open_record() as record:
        board = views.board(record, views.whole_study(record, study))
    names = [name.strip() for name in columns.split(",")] if columns else []
    board.check(names)
    if where:
        board.filtered(where)
    if sort:
        board.sort(sort)
    if as_csv:
        shown = names or board.shown()
        return print(csv_of(shown, board.cells(shown)), end="")
    if as_json:
        return print_json(
            [dict(zip(names, cells, strict=True)) for cells in board.cells(names)] if names else board.rows
        )
    if names:
        return render.show_table(names, [[render.short(cell) for cell in cells] for cells in board.cells(names)])
    return render.show_leaderboard(board.rows)


def _contrast(things: list[str], *, as_csv: bool, as_json: bool) -> None:
    from orchestrator import contrasts, render, views
    from orchestrator.columns import as_csv as csv_of

    with open_record() as record:
        found: dict[str, Any] = views.contrast(record, things)
    if as_json:
        return print_json(found)
    if as_csv:
        return print(csv_of(*contrasts.as_table(found)), end="")
    return render.show_contrast(found)

"""The command that frees room in the state folder."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.shared import AsJson, app, print_json, the_settings
from orchestrator.errors import printable

Studies = Annotated[list[str] | None, typer.Argument(metavar="[STUDY…]", show_default=False)]


@app.command()
def gc(
    studies: Studies = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be freed, and free nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Free files that keep= does not keep and nothing refers to, of some studies or all; say how much."""
    from orchestrator import garbage, render

    found = garbage.collect(the_settings(), studies or [], dry_run=dry_run)
    if as_json:
        return print_json(found.to_json())
    for kind, num_bytes in found.num_bytes.items():
        if num_files := found.num_files[kind]:
            print(f"{kind:<36} {num_files:>6} file(s) {render.size(num_bytes):>10}")
    for reason in found.left:
        print(printable(f"left alone: {reason}"))
    total, what = render.size(sum(found.num_bytes.values())), "would be freed" if dry_run else "freed"
    return print(f"{total} {what}")

"""Commands that look after the state folder."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.cli.shared import AsJson, app, print_json, the_settings
from orchestrator.errors import OrchError, printable

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


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at versions, devices, stores, disk and what was left behind, and say what to do; exit code 1 if anything."""
    from orchestrator.doctor import examine

    findings = list(examine(the_settings()))
    if as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        for each in findings:
            print(printable(f"{' ' if each.is_well else '!'} {each.what:<15} {each.found}"))
            if each.advice:
                print(printable(f"{'':<17} to do: {each.advice}"))
        num_ill = sum(not each.is_well for each in findings)
        print(f"{num_ill} thing(s) to do" if num_ill else "all is well")
    if not all(each.is_well for each in findings):
        sys.exit(OrchError.exit_code)

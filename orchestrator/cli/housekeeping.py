"""Commands that look after the state folder."""

from __future__ import annotations

import sys

from orchestrator.cli.shared import AsJson, app, print_json, the_settings
from orchestrator.errors import OrchError, printable


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

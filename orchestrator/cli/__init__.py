"""The command line: parse, call one function, print. Whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import gc
import os
import sys

# In the order in which --help lists their commands.
# isort: off
from orchestrator.cli import running  # noqa: F401
from orchestrator.cli import controlling  # noqa: F401
from orchestrator.cli import records  # noqa: F401
from orchestrator.cli import comparing  # noqa: F401
from orchestrator.cli import models  # noqa: F401
from orchestrator.cli import catalogues  # noqa: F401
from orchestrator.cli import housekeeping  # noqa: F401

# isort: on
from orchestrator.cli.shared import app
from orchestrator.errors import OrchError

# Imports make a million objects that stay; looking through them again and again takes a tenth of the time.
GC_THRESHOLD = 100_000


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

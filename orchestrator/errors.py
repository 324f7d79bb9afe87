"""Errors that a user sees, each one line and one exit code.

OrchError                     1  something failed that is nobody's input
├── UsageError                2  what was typed, or a file it names, is wrong; nothing was written
│   ├── UnknownNameError      2  no such thing; names the nearest one
│   └── NothingRecordedError  2  there is no record yet
├── RefusedError              3  a promotion gate said no
├── UnavailableError          5  a database, a disk, a port or a server is not usable now
│   ├── HeldError             5  another live process runs this study
│   └── FencedError           5  another process took this study over while this one slept
└── StoppedError            130  Ctrl-C (or SIGTERM, 143); saved, and resumable

Exit code 4 is no error: a sweep ended, and some of its trials failed.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails

EXIT_TRIALS_FAILED = 4


def printable(text: str) -> str:
    """The text in one line that does nothing to a terminal: control characters are written out."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class OrchError(Exception):
    """The root of all errors that are told in one line."""

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(OrchError):
    """What was typed, or a file it names, is wrong; nothing was written."""

    exit_code = 2


class UnknownNameError(UsageError):
    """There is no `kind` called `name`; the message offers the nearest of `known`, or all."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        if near:
            hint = f"did you mean {near[0]!r}?"
        elif known:
            hint = f"known: {', '.join(sorted(known))}"
        else:
            hint = "there is none yet"
        super().__init__(f"unknown {kind} {name!r}; {hint}")


class NothingRecordedError(UsageError):
    """A record is asked for where there is none yet."""


class RefusedError(OrchError):
    """A promotion gate or a check said no; the message has its figures."""

    exit_code = 3


class UnavailableError(OrchError):
    """A database, a disk, a port or a server that is needed is not usable now."""

    exit_code = 5


class HeldError(UnavailableError):
    """Another live process holds the lease."""


class FencedError(UnavailableError):
    """The lease was taken over while this process did not renew it; nothing more it writes counts."""


class StoppedError(OrchError):
    """Stopped by a signal; everything finished is saved and the study can be resumed."""

    exit_code = 130


def refused(key: str, found: object, first: ErrorDetails) -> UsageError:
    """One line on a thing that pydantic found wrong; a wrong word is met with the nearest right one."""
    message = first["msg"].removeprefix("Value error, ")
    if isinstance(found, dict):  # a whole part, whose fields do not fit together, and it says so itself
        return UsageError(message)
    if first["type"] == "literal_error":
        return UnknownNameError(key, str(found), re.findall(r"'([^']+)'", first["ctx"]["expected"]))
    return UsageError(f"{key}={found}: {message}")

"""What one terminal asks of a study that another runs: a row in `commands`, which the coordinator reads and answers.

Where no process runs the study, what can be done without one is done here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from orchestrator import names, recorded
from orchestrator.budget import COUNTS, describe
from orchestrator.errors import UnavailableError, UsageError
from orchestrator.leases import Holding, holder_of, study_lease
from orchestrator.study import change_budget
from orchestrator.tables import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.budget import Budget
    from orchestrator.store import Record
    from orchestrator.tables import Study

ANSWER_SECONDS = 30.0
LOOK_SECONDS = 0.1


def stop(record: Record, name: str) -> str:
    """End the process that runs a study, as SIGTERM would; all finished epochs are saved.

    Raises:
        UsageError: none runs it.
        UnavailableError: it does not answer.
    """
    return _ask(record, _running(record, name), "stop")


def pause(record: Record, name: str) -> str:
    """Free the workers of a study until `resume`; its process waits.

    Raises:
        UsageError: none runs it.
        UnavailableError: it does not answer.
    """
    return _ask(record, _running(record, name), "pause")


def go_on(record: Record, name: str, keys: Sequence[str]) -> str | None:
    """Let a study go on whose live process is paused, with another budget if `keys` say so; None if there is none.

    Raises:
        UsageError: a key that a study may not change.
        UnavailableError: its process does not answer.
    """
    row = names.named(record, name)
    holder = holder_of(record, study_lease(row.name))
    if holder is None or not holder.get("paused"):
        return None
    if keys:
        set_budget(record, name, keys)
    return _ask(record, row, "resume")


def set_budget(record: Record, name: str, keys: Sequence[str]) -> str:
    """Change the budget of a study, whether it runs or not.

    Raises:
        UsageError: a key that a study may not change, or a value that is not possible.
        UnavailableError: its process does not answer.
    """
    row = names.named(record, name)
    names.check_open(record, row)
    changed = change_budget(recorded.from_record(row), keys)
    if holder_of(record, study_lease(row.name)) is not None:
        return _ask(record, row, "set", keys=list(keys))
    with Holding(record, study_lease(row.name)) as lease:
        recorded.write(record, lease, changed)
    return f"{told_changed(changed.budget, keys)}; go on with `orch resume {name}`"


def extend(record: Record, name: str, keys: Sequence[str]) -> str:
    """Give a study more to do.

    Raises:
        UsageError: another key than those that count, or a value that is not possible.
        UnavailableError: its process does not answer.
    """
    for key in keys:
        if key.partition("=")[0] not in COUNTS:
            raise UsageError(f"{key}: extend takes {' and '.join(COUNTS)}; for other keys there is `orch set`")
    return set_budget(record, name, keys)


def retry(record: Record, name: str, numbers: Sequence[int] = ()) -> str:
    """Let trials of a study that failed for good be tried once more: those of `numbers`, or all.

    Raises:
        UsageError: one of `numbers` has not failed.
        UnavailableError: its process does not answer.
    """
    row = names.named(record, name)
    names.check_open(record, row)
    failed = [trial.number for trial in record.trials(row.id) if trial.state is State.FAILED]
    for number in numbers:
        if number not in failed:
            told = ", ".join(map(str, failed)) or "none"
            raise UsageError(f"trial {number} of {name} has not failed; failed: {told}")
    if holder_of(record, study_lease(row.name)) is not None:
        return _ask(record, row, "retry", numbers=list(numbers))
    with Holding(record, study_lease(row.name)) as lease:
        retried = record.retry_failed(lease, row.id, numbers)
    return f"{told_retried(retried)}; go on with `orch resume {name}`" if retried else told_retried(retried)


def told_retried(numbers: Sequence[int]) -> str:
    """Which trials wait again, in words."""
    return f"trial(s) {', '.join(map(str, numbers))} wait for another attempt" if numbers else "no trial has failed"


def told_changed(budget: Budget, keys: Sequence[str]) -> str:
    """What a budget is now, in words."""
    return f"from now on {describe(budget, [key.partition('=')[0] for key in keys])}"


def _running(record: Record, name: str) -> Study:
    row = names.named(record, name)
    if holder_of(record, study_lease(row.name)) is None:
        raise UsageError(f"study {name!r} does not run now; `orch resume {name}` goes on with it")
    return row


def _ask(record: Record, row: Study, kind: str, **arguments: Any) -> str:
    """Hand a command to the process that runs a study, and wait for what it says."""
    command = record.add_command(row.id, kind, arguments)
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        if (answer := record.answer(command)) is not None:
            return answer
        if (holder := holder_of(record, study_lease(row.name))) is None:
            break
        time.sleep(LOOK_SECONDS)
    record.withdraw_command(command)
    if holder is None:
        raise UsageError(f"study {row.name!r} ended meanwhile; nothing was changed")
    raise UnavailableError(f"process {holder['pid']} on {holder['host']} does not answer; nothing was changed")

"""Takes the lease `study:s` of a record and does what standard input says: write, lock, clock or release.

`python holder.py URL LEASE_SECONDS`; says on standard output how each thing went.
"""

from __future__ import annotations

import sys
import time

from orchestrator import leases
from orchestrator.errors import OrchError
from orchestrator.store import Record
from orchestrator.tables import Change, ChangeRow


def main() -> None:
    leases.LEASE_SECONDS = float(sys.argv[2])
    leases.RENEW_SECONDS, leases.LOOK_SECONDS = 0.3, 0.05
    record = Record.open(sys.argv[1])
    say("opened")
    try:
        with leases.Holding(record, "study:s") as lease:
            say(f"held {lease.token}")
            for line in sys.stdin:
                if line.strip() == "release":
                    return
                match line.strip():
                    case "clock":
                        say(f"{time.time():.0f}")
                    case "lock":
                        with record.write(lease):
                            say("locked")
                            sys.stdin.readline()
                    case "write":
                        say(write(record, lease))
    except OrchError as error:
        say(f"{type(error).__name__}: {error}")


def write(record: Record, lease: leases.Lease) -> str:
    try:
        with record.write(lease) as session:
            session.add(ChangeRow(study_id=lease.token, kind=Change.STUDY))
    except OrchError as error:
        return f"{type(error).__name__}: {error}"
    return "written"


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()

"""A child of `orchestrator.processes` with a child of its own: tells both their ids, and sends back what it hears.

`python -m tests.support.child LEASE_SECONDS FD`
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from orchestrator import processes


def main() -> None:
    processes.LEASE_SECONDS = float(sys.argv[1])
    channel = processes.Channel.inherited(int(sys.argv[-1]))
    grandchild = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    processes.serve_parent(channel, channel.send)
    print(f"greeting {os.environ.get('GREETING')}", flush=True)
    channel.send({"child": os.getpid(), "grandchild": grandchild.pid})
    threading.Event().wait()


if __name__ == "__main__":
    main()

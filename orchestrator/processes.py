"""Child processes that never outlive their parent, and the JSON lines spoken with them.

A child runs in its own session, so that a Ctrl-C in the terminal reaches only the parent and the child's descendants
can be ended with it. Parent and child share one socket. The child ends itself and its whole process group when that
socket closes (its parent died, however) or nothing was heard on it for one lease (its parent sleeps).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

LEASE_SECONDS = 15.0  # of silence, after which a process is taken to sleep or to be dead
PING_SECONDS = 3.0
KILL_SECONDS = 5.0
RECEIVED_BYTES = 1 << 16


class Channel:
    """JSON lines over a connected stream socket; `send` may be called from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._buffer = b""

    @classmethod
    def inherited(cls, descriptor: int) -> Channel:
        """Return the child's end, from the descriptor that `spawn` passed as the last argument."""
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """The socket's descriptor, for selectors; -1 once closed."""
        return self._socket.fileno()

    def send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one message; a peer that is gone is no error here, its silence is noticed elsewhere."""
        line = json.dumps(message).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            sent = socket.send_fds(self._socket, [line], descriptors) if descriptors else 0
            self._socket.sendall(line[sent:])

    def receive(self) -> list[dict[str, Any]] | None:
        """Wait for data and return the messages that are whole by then; None at the end of the stream."""
        try:
            data = self._socket.recv(RECEIVED_BYTES)
        except OSError:
            return None
        return self._messages(data)

    def receive_with_descriptors(self) -> tuple[list[dict[str, Any]] | None, list[int]]:
        """Like `receive`, with the descriptors that came along; one at a time."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, RECEIVED_BYTES, 1)
        except OSError:
            return None, []
        return self._messages(data), descriptors

    def _messages(self, data: bytes) -> list[dict[str, Any]] | None:
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def wait(self, seconds: float) -> bool:
        """Whether there is something to receive within `seconds`."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            return bool(selector.select(seconds))

    def finish(self, seconds: float) -> None:
        """Send nothing more, and wait for at most `seconds` until the peer closes its end as well."""
        if self.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + seconds
        while self.wait(max(0.0, deadline - time.monotonic())) and self.receive() is not None:
            pass

    def close(self) -> None:
        """Close the socket; the peer sees the end of the stream."""
        self._socket.close()


class Child:
    """A running child: its process, and the channel to it."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel) -> None:
        self.process = process
        self.channel = channel

    def kill(self) -> None:
        """End the child and all its descendants at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(KILL_SECONDS)
        self.channel.close()

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self.process.pid

    def exit_code(self) -> int | None:
        """How it ended, minus the signal's number if by one; None if it runs."""
        return self.process.poll()


def connected() -> tuple[Channel, socket.socket]:
    """A channel, and the other end of it for a child."""
    ours, theirs = socket.socketpair()
    return Channel(ours), theirs


def spawn(module: str, arguments: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Child:
    """Start `python -m module arguments… FD` in a session of its own; its output goes to the end of `log`."""
    ours, theirs = connected()
    log.parent.mkdir(parents=True, exist_ok=True)
    with theirs, log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return Child(process, ours)


def serve_parent(channel: Channel, handle: Callable[[dict[str, Any]], None]) -> None:
    """In a child: pass the parent's messages to `handle` from a thread, and end with the parent."""
    threading.Thread(target=_listen, args=(channel, handle), name="parent", daemon=True).start()


def _listen(channel: Channel, handle: Callable[[dict[str, Any]], None]) -> None:
    for message in _messages_while_alive(channel):
        if "ping" not in message:
            handle(message)
    os.killpg(0, signal.SIGKILL)  # not sys.exit: nothing may hold up the end, and descendants go too


def _messages_while_alive(channel: Channel) -> Iterator[dict[str, Any]]:
    while channel.wait(LEASE_SECONDS):
        messages = channel.receive()
        if messages is None:
            return
        yield from messages


class Pinger:
    """Lets children know from a thread that their parent is awake, also while it waits for a database."""

    def __init__(self) -> None:
        self._channels: list[Channel] = []
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="pinger", daemon=True).start()

    def add(self, channel: Channel) -> None:
        """Ping this channel until it closes."""
        self._channels.append(channel)

    def stop(self) -> None:
        """Ping no more."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(PING_SECONDS):
            for channel in list(self._channels):  # `add` may append meanwhile
                if channel.fileno() < 0:
                    self._channels.remove(channel)
                channel.send({"ping": 1})

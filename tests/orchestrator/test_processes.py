"""Children that never outlive their parent, and the lines spoken with them."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import islice

import psutil
import pytest

from orchestrator import processes
from orchestrator.processes import Pinger
from tests.support.clock import Clock
from tests.support.orch import alive, wait_until
from tests.support.parent import ROOT, hear, start

PARENT = str(ROOT / "tests" / "support" / "parent.py")
LONG = 60  # seconds of a lease that is not waited for


@pytest.fixture
def child(tmp_path):
    started = start(tmp_path / "child.log", LONG)
    started.messages = hear(started)
    started.family = [psutil.Process(pid) for pid in next(started.messages).values()]
    yield started
    started.kill()


def gone(family):
    return not any(map(alive, family))


class Parent:
    """A process with a child and a grandchild."""

    def __init__(self, log, lease_seconds, environment=None):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        self.process = subprocess.Popen(
            [sys.executable, PARENT, str(log), str(lease_seconds)], stdout=subprocess.PIPE, text=True, env=environment
        )
        line = self.process.stdout.readline()
        self.family = [psutil.Process(pid) for pid in ast.literal_eval(line).values()]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        for left in filter(alive, self.family):
            left.kill()


def test_messages_arrive_whole_and_in_order(child):
    sent = [{"number": number, "text": "é" * (number % 7 * 50_000)} for number in range(60)]
    threading.Thread(target=lambda: [child.channel.send(message) for message in sent]).start()
    assert list(islice(child.messages, 60)) == sent


def test_messages_of_threads_are_not_mixed(child):
    def send(thread):
        for number in range(100):
            child.channel.send({"thread": thread, "number": number, "text": "x" * 5_000})

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    heard = list(islice(child.messages, 400))
    for thread in range(4):
        assert [message["number"] for message in heard if message["thread"] == thread] == list(range(100))


def test_pings_are_heard_by_nobody(child):
    child.channel.send({"ping": 1})
    child.channel.send({"text": "ping"})
    assert next(child.messages) == {"text": "ping"}


def test_child_has_a_session_of_its_own_so_that_ctrl_c_passes_it_by(child):
    assert os.getsid(child.process.pid) == child.process.pid != os.getsid(0)
    assert os.getpgid(child.family[1].pid) == child.process.pid


def test_killed_child_takes_its_descendants_along_and_can_be_killed_twice(child):
    child.kill()
    wait_until(lambda: gone(child.family), 5)
    child.kill()
    assert child.process.returncode == -signal.SIGKILL


def test_closed_channel_ends_child_and_descendants(child):
    child.channel.close()
    wait_until(lambda: gone(child.family), 5)
    assert child.channel.fileno() == -1


def test_death_of_the_child_is_the_end_of_its_messages_and_speaking_to_it_no_error(child):
    child.family[0].kill()
    assert list(child.messages) == []
    assert child.channel.receive() is None
    child.channel.send({"anybody": "there"})


def test_output_and_environment_of_each_child_are_its_own_and_the_log_grows(tmp_path):
    log = tmp_path / "logs" / "child.log"
    for greeting in ("one", "two"):
        started = start(log, LONG, GREETING=greeting)
        assert "child" in next(hear(started))
        started.kill()
    assert log.read_text() == "greeting one\ngreeting two\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_parent_takes_child_and_descendants_along_within_five_seconds(tmp_path, number):
    with Parent(tmp_path / "log", LONG) as parent:
        assert len(parent.family) == 2
        assert all(map(alive, parent.family))
        parent.process.send_signal(number)
        wait_until(lambda: gone(parent.family), 5)


@pytest.mark.slow
def test_parent_stopped_for_longer_than_the_lease_loses_child_and_descendants(tmp_path):
    with Parent(tmp_path / "log", 1) as parent:
        time.sleep(2)
        assert all(map(alive, parent.family)), "a parent that is awake keeps its child"
        parent.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: gone(parent.family), 1 + 5)
        parent.process.send_signal(signal.SIGCONT)
        assert parent.process.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("hours", [1, -1])
def test_moved_clock_ends_no_child(tmp_path, hours):
    clock = Clock(tmp_path / "clock")
    environment = {**clock.environment, "PYTHONPATH": f"{ROOT}:{clock.environment['PYTHONPATH']}"}
    with Parent(tmp_path / "log", 1, environment) as parent:
        clock.move(hours * 3600)
        time.sleep(2)
        assert all(map(alive, parent.family))


@pytest.mark.slow
def test_pinger_keeps_all_channels_awake_until_they_close(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PING_SECONDS", 0.1)
    pinger = Pinger()
    children = [start(tmp_path / "log", 1) for _ in range(2)]
    try:
        for one in children:
            pinger.add(one.channel)
        first, second = [[psutil.Process(pid) for pid in next(hear(one)).values()] for one in children]
        children[0].kill()
        time.sleep(2)
        assert gone(first)
        assert all(map(alive, second))
        pinger.stop()
        wait_until(lambda: gone(second), 1 + 5)
    finally:
        for one in children:
            one.kill()


def test_pinger_loses_no_channel_that_is_added_while_it_pings(monkeypatch):
    monkeypatch.setattr(processes, "PING_SECONDS", 0.0)
    pinger = Pinger()
    pairs = [socket.socketpair() for _ in range(300)]
    channels = [processes.Channel(ours) for ours, _ in pairs]
    try:
        for channel in channels:
            pinger.add(channel)
        for _, theirs in pairs:
            theirs.settimeout(20)
            assert theirs.recv(100).startswith(b'{"ping": 1}\n')
    finally:
        pinger.stop()
        for channel, (_, theirs) in zip(channels, pairs, strict=True):
            channel.close()
            theirs.close()

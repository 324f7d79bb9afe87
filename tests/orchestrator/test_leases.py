"""Who may write: leases between real processes, which are killed, stopped, and given wrong clocks."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import update

from orchestrator import leases
from orchestrator.errors import FencedError, HeldError
from orchestrator.leases import Holding
from orchestrator.store import Record
from orchestrator.tables import ChangeRow, LeaseRow
from tests.support.clock import Clock
from tests.support.orch import stop_between_writes

HOLDER = str(Path(__file__).parents[1] / "support" / "holder.py")
LONG = 30.0  # of a lease that must not be waited for
SHORT = 1.0  # of one that must

on_sqlite = pytest.mark.parametrize("record_url", ["sqlite"], indirect=True)


@pytest.fixture
def record(record_url, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", LONG)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.3)
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.05)
    made = Record.open(record_url, create=True)
    yield made
    made.close()


@pytest.fixture
def short(record, monkeypatch):
    """Leases that are soon over."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", SHORT)


@pytest.fixture
def start(record, record_url):
    """Starts processes that take the lease, and ends them."""
    started = []

    def begin(*, environment=None, command=()):
        command = [*command, sys.executable, HOLDER, record_url, str(leases.LEASE_SECONDS)]
        holder = Holder(command, environment or {})
        started.append(holder)
        return holder

    yield begin
    for holder in started:
        holder.end()


class Holder:
    """Another process that takes the lease and writes on request."""

    def __init__(self, command, environment):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        assert self.heard() == "opened"

    def heard(self):
        return self.process.stdout.readline().strip()

    def ask(self, word):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.heard()

    def signal(self, number):
        os.kill(self.process.pid, number)

    def end(self):
        for number in (signal.SIGCONT, signal.SIGKILL):
            self.process.send_signal(number)
        self.process.communicate()


def held(record):
    """Take the lease here and give it back; how long that took, and its token."""
    began = time.monotonic()
    with Holding(record, "study:s") as lease:
        return time.monotonic() - began, lease.token


def give_to(record, **holder):
    """Give the lease to a process like this one, but for what is said, that never renews it."""
    held(record)
    with record.write() as session:
        session.get_one(LeaseRow, "study:s").holder = {**leases._this_process(), **holder}


def test_lease_is_given_back_and_taken_again_with_the_next_token(record):
    assert [held(record)[1] for _ in range(3)] == [1, 2, 3]


def test_leases_of_other_names_are_free(record):
    with Holding(record, "study:a") as one, Holding(record, "study:b") as two:
        assert (one.token, two.token) == (1, 1)


def test_second_process_is_refused_and_told_who_holds_it(record, start):
    holder = start()
    assert holder.heard() == "held 1"
    began = time.monotonic()
    with pytest.raises(HeldError) as refused:
        held(record)
    assert str(refused.value) == f"study:s is held by process {holder.process.pid} on {socket.gethostname()}"
    assert time.monotonic() - began < LONG / 2
    assert holder.ask("write") == "written"


@pytest.mark.slow
@on_sqlite
def test_holder_that_renews_keeps_its_lease_for_many_lease_times(record, start, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 3.0)
    holder = start()
    assert holder.heard() == "held 1"
    deadline = time.monotonic() + 9
    while time.monotonic() < deadline:
        with pytest.raises(HeldError):
            held(record)
    assert holder.ask("write") == "written"


def test_dead_holder_is_taken_over_at_once(record, start):
    holder = start()
    assert holder.heard() == "held 1"
    holder.signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.process.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie still
    seconds, token = held(record)
    assert token == 2
    assert seconds < LONG / 2


def test_holder_of_an_earlier_boot_or_with_a_reused_number_is_taken_over_at_once(record):
    for holder in ({"boot": "another"}, {"started": 1.0}, {"pid": 2**22 + 1}):
        give_to(record, **holder)
        assert held(record)[0] < LONG / 2


def test_holder_on_another_host_is_waited_for_one_lease(record, short):
    give_to(record, host="another", pid=2**22 + 1)
    assert held(record)[0] >= SHORT


@pytest.mark.slow
def test_stopped_holder_is_taken_over_after_the_lease_and_fenced_when_it_wakes(record, start, short):
    holder = start()
    assert holder.heard() == "held 1"
    assert holder.ask("write") == "written"
    stop_between_writes(holder.process, record)
    began = time.monotonic()
    with Holding(record, "study:s") as lease:
        assert time.monotonic() - began >= SHORT
        assert lease.token == 2
        holder.signal(signal.SIGCONT)
        assert holder.ask("write") == (
            "FencedError: study:s was taken over by another process; nothing more is written from here"
        )
        with record.write(lease) as session:
            assert session.query(ChangeRow).count() == 1
        holder.ask("release")
        assert holder.process.wait(30) == 0  # it gave back nothing that is not its own
        with record.read() as session:
            assert session.get_one(LeaseRow, "study:s").holder["pid"] == os.getpid()


def test_process_that_was_fenced_writes_nothing_and_leaves_the_new_lease_alone(record):
    with Holding(record, "study:s") as old:
        with record.write() as session:
            session.execute(update(LeaseRow).values(token=7, holder={"pid": 1}))

        def write():
            with record.write(old) as session:
                session.add(ChangeRow(study_id=1, kind="study"))

        with pytest.raises(FencedError, match="study:s was taken over"):
            write()
    with record.read() as session:
        assert session.query(ChangeRow).count() == 0
        assert session.get_one(LeaseRow, "study:s").holder == {"pid": 1}


def test_one_of_many_that_begin_at_once_holds_the_lease(record):
    begin, refused, outcomes = threading.Barrier(6), threading.Event(), []

    def take():
        begin.wait()
        try:
            with Holding(record, "study:s") as lease:
                outcomes.append(lease.token)
                refused.wait(LONG)
        except Exception as error:
            outcomes.append(type(error))
            if len(outcomes) == 6:
                refused.set()

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(1) == 1
    assert outcomes.count(HeldError) == 5


@pytest.mark.slow
@on_sqlite
def test_database_locked_for_longer_than_the_lease_costs_no_holder_its_lease(record, record_url, start, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 2.0)
    holder = start()
    assert holder.heard() == "held 1"
    locker = sqlite3.connect(record_url.removeprefix("sqlite:///"), isolation_level=None)
    refused = []

    def challenge():
        try:
            held(record)
        except HeldError as error:
            refused.append(error)

    challenger = threading.Thread(target=challenge)
    locker.execute("BEGIN EXCLUSIVE")
    challenger.start()
    time.sleep(4)
    locker.execute("COMMIT")
    locker.close()
    challenger.join()
    assert len(refused) == 1
    assert holder.ask("write") == "written"


# -- wrong clocks


@on_sqlite
@pytest.mark.parametrize("hours", [1, -1])
def test_moved_clock_costs_no_living_holder_its_lease(record, start, tmp_path, hours):
    clock = Clock(tmp_path / "clock")
    holder = start(environment=clock.environment)
    assert holder.heard() == "held 1"
    before = int(holder.ask("clock"))
    challenger = start(environment=clock.environment)
    clock.move(hours * 3600)
    assert challenger.heard().startswith("HeldError: study:s is held by process")
    assert int(holder.ask("clock")) - before == pytest.approx(hours * 3600, abs=60)
    assert holder.ask("write") == "written"


@pytest.mark.slow
@on_sqlite
@pytest.mark.parametrize("hours", [1, -1])
def test_moved_clock_shortens_and_lengthens_no_lease(record, start, tmp_path, hours, short):
    clock = Clock(tmp_path / "clock")
    give_to(record, host="another")
    challenger = start(environment=clock.environment)
    began = time.monotonic()
    time.sleep(SHORT / 3)  # it has looked at the lease by now
    clock.move(hours * 3600)
    assert challenger.heard() == "held 2"
    assert SHORT * 0.8 <= time.monotonic() - began < 60


@on_sqlite
def test_moved_time_of_the_boot_makes_no_living_holder_dead(record, start, tmp_path):
    """Linux tells the time of the boot, and so the start of each process, by the wall clock of now."""
    false = tmp_path / "stat"
    lines = Path("/proc/stat").read_text().splitlines()
    moved = [f"btime {int(line.split()[1]) + 3600}" if line.startswith("btime") else line for line in lines]
    false.write_text("\n".join(moved) + "\n")
    mount = ["unshare", "-m", "sh", "-c", f'mount --bind {false} /proc/stat && exec "$@"', "sh"]
    if subprocess.run([*mount, "true"], capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    holder = start()
    assert holder.heard() == "held 1"
    challenger = start(command=mount)
    assert challenger.heard().startswith("HeldError: study:s is held by process")
    assert holder.ask("write") == "written"

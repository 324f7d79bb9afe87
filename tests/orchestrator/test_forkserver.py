"""Children forked from a process that has imported what they need."""

from __future__ import annotations

import os
import signal
import sys
import threading

import psutil
import pytest

from orchestrator.errors import UnavailableError
from orchestrator.forkserver import ForkServer, worker_server
from tests.support.orch import alive, wait_until

FORKED = "tests.support.forked"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are safe on Linux only")


@pytest.fixture
def server():
    made = ForkServer(f"{FORKED}:prepare")
    yield made
    made.close()


@pytest.fixture
def fork(server, tmp_path):
    made = []

    def start(*arguments, source=server, **environment):
        child = source.fork(FORKED, arguments, log=tmp_path / "logs" / "log", environment=environment)
        made.append(child)
        assert child.channel.wait(30)
        (child.told,) = child.channel.receive()
        return child

    yield start
    for child in made:
        child.kill()


def end(child, **message):
    child.channel.send(message)
    assert child.channel.wait(30)
    assert child.channel.receive() is None
    child.kill()
    return child.exit_code()


def test_child_finds_all_imported_and_has_a_session_an_environment_and_a_log_of_its_own(server, fork, tmp_path):
    child = fork("a", "é", VARIABLE="yes")
    told = child.told
    assert told["arguments"] == ["a", "é"]
    assert told["prepared_in"] == told["parent"] == server._server.pid
    assert told["session"] == told["pid"] == child.pid
    assert (told["variable"], told["threads"]) == ("yes", 1)
    assert (tmp_path / "logs" / "log").read_text() == "a line in the log\n"
    assert fork().told["variable"] is None


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"do": "exit", "code": 0}, 0),
        ({"do": "exit", "code": 3}, 3),
        ({"do": "raise"}, 1),
        ({"do": "segfault"}, -signal.SIGSEGV),
    ],
)
def test_exit_code_is_that_of_the_child(fork, message, code):
    assert end(fork(), **message) == code


def test_what_a_child_raises_stands_in_its_log(fork, tmp_path):
    end(fork(), do="raise")
    assert "RuntimeError: as the test asked" in (tmp_path / "logs" / "log").read_text()


def test_killed_child_is_gone_and_the_server_forks_on(fork):
    child, other = fork(), fork()
    child.kill()
    child.kill()
    assert child.exit_code() == -signal.SIGKILL
    assert not psutil.pid_exists(child.pid)
    assert alive(psutil.Process(other.pid))


def test_dead_server_is_started_again_and_its_children_live_on(server, fork):
    child = fork()
    os.kill(server._server.pid, signal.SIGKILL)
    other = fork()
    assert other.told["parent"] != child.told["parent"]
    assert alive(psutil.Process(child.pid))
    child.kill()
    assert child.exit_code() is None
    wait_until(lambda: not alive(psutil.Process(child.pid)) if psutil.pid_exists(child.pid) else True, 5)


def test_server_that_hangs_is_replaced_and_its_late_answer_is_no_other_ones(server, fork, monkeypatch):
    child, hanging = fork(), server._server.pid
    os.kill(hanging, signal.SIGSTOP)
    monkeypatch.setattr("orchestrator.forkserver.ANSWER_SECONDS", 0.2)
    child.kill()
    assert child.exit_code() is None
    monkeypatch.undo()
    assert fork().told["parent"] == server._server.pid != hanging


def test_server_can_be_forked_from_a_server(server, fork):
    second = ForkServer("json:dumps.__doc__.strip", source=server)
    try:
        told = fork(source=second).told
        assert told["prepared_in"] == server._server.pid
        assert told["parent"] == second._server.pid
    finally:
        second.close()


def test_closed_server_is_gone_and_its_children_live_on(server, fork):
    fork().kill()
    running, process = fork(), psutil.Process(server._server.pid)
    server.close()
    server.close()
    assert not alive(process)
    assert alive(psutil.Process(running.pid))


def test_forks_of_two_threads_do_not_mix(fork):
    told = []
    threads = [threading.Thread(target=lambda n=n: told.append((str(n), fork(str(n)).told))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(child["arguments"] == [number] for number, child in told)
    assert len({child["pid"] for _, child in told}) == 8


def test_server_that_cannot_start_is_named(tmp_path):
    server = ForkServer("no_such_module")
    try:
        with pytest.raises(UnavailableError, match="no_such_module"):
            server.fork(FORKED, log=tmp_path / "log", environment={})
    finally:
        server.close()


@pytest.mark.slow
@pytest.mark.parametrize("names", [(), ("recipes.export:warm_up",)])
def test_servers_of_workers_have_one_thread_when_they_fork(fork, names):
    """A thread that holds a lock would hold it for ever in the child."""
    with worker_server() as workers:
        server = ForkServer(*names, source=workers) if names else workers
        child = fork(source=server)
        assert psutil.Process(child.told["parent"]).num_threads() == 1
        if names:
            server.close()

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.dashboards import loopback_only
from orchestrator.settings import HOME_VARIABLE, MLFLOW_VARIABLE, Settings
from orchestrator.store import Record
from tests.support.orch import Orch, alive, descendants, kill
from tests.support.ports import free_ports, is_open
from tests.support.trained import WEAK, add_study

if TYPE_CHECKING:
    import subprocess

    import psutil

PAGES = ("MLflow", "Optuna", "TensorBoard")


@pytest.fixture(scope="module")
def orch(tmp_path_factory) -> Orch:
    """A state folder with a study that no mirror has seen yet."""
    orch = Orch(tmp_path_factory.mktemp("ui"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(orch.home))
        add_study(Settings.from_environment(), [WEAK, WEAK], export=False)
    return orch


def wait_for_addresses(process: subprocess.Popen[str], port: int) -> None:
    """Read what `orch ui` prints until it says that all three answer."""
    lines = [process.stdout.readline().split() for _ in range(4)]
    assert lines[:3] == [[page, f"http://127.0.0.1:{port + offset}"] for offset, page in enumerate(PAGES)]


def get(port: int, path: str = "/", **headers: str) -> tuple[int, bytes]:
    """Status and body; `Host` is as given, or 127.0.0.1 and the port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("GET", path, skip_host=True)
    for name, value in {"Host": f"127.0.0.1:{port}", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def wait_until_gone(processes: list[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        kill(process)
    assert not left


@pytest.mark.slow
def test_ui_shows_the_study_to_loopback_only_and_ends_whole(orch):
    port = free_ports(3)
    with orch.running("ui", "--port", str(port)) as process:
        wait_for_addresses(process, port)
        for page in range(3):
            for host in ("127.0.0.1", "localhost"):
                assert get(port + page, Host=f"{host}:{port + page}")[0] in {200, 302}
            for host in ("evil.example", f"evil.example:{port + page}", "10.evil.example", "127.0.0.1:1", ""):
                assert get(port + page, Host=host)[0] == 403, f"{PAGES[page]} answers to {host!r}"
        assert get(port + 1, "/api/studies", Origin="http://evil.example")[0] == 403
        assert get(port + 2, "/data/runs", Origin="http://evil.example")[0] == 403

        (study,) = json.loads(get(port + 1, "/api/studies")[1])["study_summaries"]
        assert study["study_name"] == "cnn-digits"
        deadline = time.monotonic() + 30
        while len(runs := json.loads(get(port + 2, "/data/runs")[1])) < 2:  # it reads in the background
            assert time.monotonic() < deadline, runs
        experiments = get(port, "/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=cnn-digits")[1]
        assert json.loads(experiments)["experiment"]["name"] == "cnn-digits"

        below = descendants(process.pid)
        assert len(below) >= 4, "three children, and the server below MLflow's"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        wait_until_gone(below, 1)
        assert not any(is_open(port + page) for page in range(3))


@pytest.mark.slow
def test_no_dashboard_outlives_a_killed_ui(orch):
    port = free_ports(3)
    with orch.running("ui", "--port", str(port)) as process:
        wait_for_addresses(process, port)
        below = descendants(process.pid)
        kill(process)
        wait_until_gone(below, 5)


@pytest.mark.slow
def test_a_tracking_server_keeps_its_own_ui_and_a_dashboard_that_dies_is_named(orch, monkeypatch):
    port = free_ports(3)
    monkeypatch.setenv(HOME_VARIABLE, str(orch.home))
    add_study(Settings.from_environment(), [WEAK], name="not-mirrored-yet", export=False)
    monkeypatch.setitem(orch.environment, MLFLOW_VARIABLE, f"http://me:secret@127.0.0.1:{port}/mlflow")
    with orch.running("ui", "--port", str(port)) as process:
        lines = [process.stdout.readline().split() for _ in range(4)]
        assert lines[0] == ["MLflow", f"http://127.0.0.1:{port}/mlflow"]
        assert [line[0] for line in lines[1:3]] == ["Optuna", "TensorBoard"]
        assert not is_open(port)

        below = descendants(process.pid)
        kill(next(child for child in below if "tensorboard" in child.cmdline()))
        _, errors = process.communicate(timeout=15)
        assert process.returncode == 5
        assert f"TensorBoard ended; see {orch.home / 'logs' / 'ui-tensorboard.log'}" in errors
        wait_until_gone(below, 1)
        assert "not everything is shown: MLflow at" in errors
        assert "secret" not in errors


def test_a_port_in_use_is_named_with_what_to_pass(orch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = orch.here("ui", "--port", str(port - 1), code=2)
    assert f"port {port} is in use; pass --port N" in done.stderr


def test_ports_that_are_none_are_one_line(orch):
    assert "port 70000 cannot be used; pass --port N" in orch.here("ui", "--port", "70000", code=2).stderr


def test_without_a_study_there_is_nothing_to_show(tmp_path):
    orch = Orch(tmp_path)
    assert "no study has been recorded" in orch.here("ui", code=2).stderr
    assert not orch.home.exists()
    Record.open(f"sqlite:///{orch.home / 'orch.db'}", create=True).close()
    assert "no study has been recorded" in orch.here("ui", code=2).stderr


def answer_of(**environ: str) -> str:
    """The status that a wrapped application gives."""
    statuses: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b""]

    list(loopback_only(app, 80)(environ, lambda status, _: statuses.append(status)))
    return statuses[0][:3]


def test_loopback_only_compares_host_and_origin_with_their_port():
    assert answer_of(HTTP_HOST="localhost:80") == "200"
    assert answer_of(HTTP_HOST="localhost:80", HTTP_ORIGIN="http://127.0.0.1:80") == "200"
    assert answer_of() == "403"
    assert answer_of(HTTP_HOST="localhost") == "403"
    assert answer_of(HTTP_HOST="localhost:8080") == "403"
    assert answer_of(HTTP_HOST="localhost:80.evil.example") == "403"
    assert answer_of(HTTP_HOST="localhost:80", HTTP_ORIGIN="null") == "403"

"""`orch ui`: MLflow's UI, optuna-dashboard and TensorBoard, on loopback, answering to loopback's names only.

None of the three asks for a password. A page on the web can make a browser call them under a name of its own that
resolves to 127.0.0.1 (DNS rebinding), but then the Host header holds that name. MLflow checks the header itself;
optuna-dashboard and TensorBoard do not, so they run behind `loopback_only`.

Each runs in a child with a session of its own (`orchestrator.processes`), which ends when this process does, however
that happens: `python -m orchestrator.dashboards NAME PORT FD`.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from orchestrator.errors import UnavailableError, UsageError
from orchestrator.mirrors.mlflow_store import address, opening_store
from orchestrator.processes import Channel, Pinger, serve_parent, spawn
from orchestrator.settings import HOME_VARIABLE, MLFLOW_VARIABLE, RECORD_VARIABLE, Settings
from orchestrator.store import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from orchestrator.processes import Child

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 5000
START_SECONDS = 120.0
POLL_SECONDS = 0.2
TITLES = {"mlflow": "MLflow", "optuna": "Optuna", "tensorboard": "TensorBoard"}


@dataclass(frozen=True, kw_only=True)
class _Page:
    """A dashboard that runs in a child."""

    title: str
    port: int
    log: Path
    child: Child

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"


def ui(settings: Settings, port: int = DEFAULT_PORT) -> None:
    """Serve the three dashboards on `port` and the two ports above it until Ctrl-C or SIGTERM; print their addresses.

    A tracking server that `MLFLOW_TRACKING_URI` names has a UI of its own; its address is printed instead.

    Raises:
        UsageError: nothing was recorded yet, or a port is in use or may not be used.
        UnavailableError: one of them did not start or ended; the others are stopped.
    """
    _check_recorded(settings)
    has_server = settings.tracking_uri.startswith(("http:", "https:"))
    shown = {"MLflow": address(settings.tracking_uri)} if has_server else {}
    ports = {name: port + i for i, name in enumerate(TITLES) if not (has_server and name == "mlflow")}
    _check_ports(ports.values())
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _bring_mirrors_up_to_date(settings)
            with _running(settings, ports) as pages:
                for page in pages:
                    _wait_until_it_answers(page)
                    shown[page.title] = page.address
                _print_addresses(shown)
                _watch(pages)
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_addresses(shown: dict[str, str]) -> None:
    for title, where in shown.items():
        print(f"{title:<12} {where}")
    print("Ctrl-C stops them.", flush=True)


def _check_recorded(settings: Settings) -> None:
    with contextlib.closing(Record.open(settings.record_url)) as record:
        if not record.studies():
            raise UsageError("no study has been recorded yet; start one with `orch sweep`")


def _bring_mirrors_up_to_date(settings: Settings) -> None:
    """Dashboards show the mirrors, which a killed sweep may have left behind the record."""
    from orchestrator import mirror

    with contextlib.closing(Record.open(settings.record_url)) as record:
        lag = sum(sum(mirror.lag(record, study.id).values()) for study in record.studies() if not study.is_archived)
    if lag or not Path(make_url(settings.optuna_url).database or "").exists():
        try:
            mirror.sync(settings)
        except UnavailableError as error:
            print(f"not everything is shown: {error}", file=sys.stderr)


@contextlib.contextmanager
def _running(settings: Settings, ports: dict[str, int]) -> Iterator[list[_Page]]:
    environment = {
        HOME_VARIABLE: str(settings.home),
        RECORD_VARIABLE: settings.record_url,
        MLFLOW_VARIABLE: settings.tracking_uri,
    }
    pages: list[_Page] = []
    pinger = Pinger()
    try:
        for name, port in ports.items():
            log = settings.logs / f"ui-{name}.log"
            child = spawn("orchestrator.dashboards", [name, str(port)], log=log, environment=environment)
            pages.append(_Page(title=TITLES[name], port=port, log=log, child=child))
            pinger.add(child.channel)
        yield pages
    finally:
        pinger.stop()
        for page in pages:
            page.child.kill()


def _wait_until_it_answers(page: _Page) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(page.port):
        _check_alive(page)
        if time.monotonic() > deadline:
            raise UnavailableError(f"{page.title} did not answer within {START_SECONDS:.0f} s; see {page.log}")
        time.sleep(POLL_SECONDS)


def _watch(pages: list[_Page]) -> None:
    while True:
        for page in pages:
            _check_alive(page)
        time.sleep(POLL_SECONDS)


def _check_alive(page: _Page) -> None:
    if page.child.process.poll() is not None:
        raise UnavailableError(f"{page.title} ended; see {page.log}")


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < http.client.BAD_REQUEST
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _check_ports(ports: Iterable[int]) -> None:
    for port in ports:
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or one just closed seems in use
                probe.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            reason = "is in use" if isinstance(error, OSError) and error.errno == errno.EADDRINUSE else "cannot be used"
            raise UsageError(
                f"port {port} {reason}; pass --port N, with N, N+1 and N+2 free and from 1024 to 65535"
            ) from error


def _hosts(port: int) -> list[str]:
    return [f"{LOOPBACK}:{port}", f"localhost:{port}"]


def loopback_only(app: WSGIApplication, port: int) -> WSGIApplication:
    """Wrap `app`: 403 for every request whose Host, or whose Origin if it has one, is not loopback at `port`."""
    hosts = _hosts(port)
    origins = [None, *(f"http://{host}" for host in hosts)]

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("HTTP_HOST") in hosts and environ.get("HTTP_ORIGIN") in origins:
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"open http://{hosts[0]} instead\n".encode()]

    return checked


# -- in the child


def _serve_mlflow(settings: Settings, port: int) -> None:
    with opening_store(settings):
        pass  # the server would make the tables as well, but leave half of them if it is killed meanwhile
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", ",".join(_hosts(port))]
    command += ["--no-serve-artifacts", "--default-artifact-root", str(settings.artifacts)]
    # The store's URL may hold a password, which a command line would show to everyone on this machine.
    environment = {"MLFLOW_BACKEND_STORE_URI": settings.tracking_uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    subprocess.run(command, env={**os.environ, **environment}, check=True)


def _serve_optuna(settings: Settings, port: int) -> None:
    from optuna_dashboard import wsgi  # type: ignore[import-untyped]
    from werkzeug.serving import make_server

    app = loopback_only(wsgi(settings.optuna_url), port)
    make_server(LOOPBACK, port, app, threaded=True).serve_forever()


def _serve_tensorboard(settings: Settings, port: int) -> None:
    from tensorboard.program import TensorBoard, WerkzeugServer  # type: ignore[import-untyped]

    board = TensorBoard(server_class=lambda app, flags: WerkzeugServer(loopback_only(app, port), flags))
    # Its fast loader is one more process with one more open port.
    board.configure(logdir=str(settings.tensorboard), host=LOOPBACK, port=port, load_fast="false")
    board.launch()
    signal.pause()


def _main(name: str, port: int, descriptor: int) -> None:
    serve_parent(Channel.inherited(descriptor), lambda _: None)
    serve = {"mlflow": _serve_mlflow, "optuna": _serve_optuna, "tensorboard": _serve_tensorboard}[name]
    serve(Settings.from_environment(), port)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

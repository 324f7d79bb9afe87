"""`orch serve` as its users meet it: a process, real requests, signals, an alias that moves."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import re
import shutil
import signal
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from orchestrator import models
from orchestrator.predictions import predict
from orchestrator.promote import promote
from orchestrator.settings import HOME_VARIABLE
from recipes.config import DatasetConfig
from recipes.data import load
from tests.orchestrator.test_inference import png
from tests.support.orch import Orch, wait_until
from tests.support.ports import is_open
from tests.support.sweeps import settings_of
from tests.support.trained import STRONG, WEAK, add_study, delete_study

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from orchestrator.settings import Settings

pytestmark = pytest.mark.slow

NAME = "cnn-digits"
CHAMPION = f"models:/{NAME}@champion"
TOKEN = "a-token-of-forty-characters-or-so-000000"
JSON = "application/json"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """A running `orch serve`."""

    port: int
    process: subprocess.Popen[str]

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = JSON, **headers: str) -> Answer:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            sent = {"Content-Type": kind, "Authorization": f"Bearer {TOKEN}", **headers}
            connection.request(method, path, body, {name: value for name, value in sent.items() if value})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def post(self, body: Any, kind: str = JSON, **headers: str) -> Answer:
        data = json.dumps(body).encode() if kind == JSON and not isinstance(body, bytes) else body
        return self.ask("POST", "/predict", data, kind, **headers)

    @property
    def health(self) -> dict[str, Any]:
        return self.ask("GET", "/health").json

    def metric(self, name: str) -> float:
        (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", self.ask("GET", "/metrics").body.decode(), re.MULTILINE)
        return float(found)

    @contextlib.contextmanager
    def half_a_request(self) -> Iterator[socket.socket]:
        """A request whose body has not come yet; it is under way when this begins."""
        body = tensor_body(DIGIT)
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
        head += f"Content-Type: {JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
        before = self.health["requests"]
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(head.encode() + body[:10])
            wait_until(lambda: self.health["requests"] == before + 1)
            yield connection


DIGIT = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)


def tensor_body(tensor: NDArray[Any]) -> bytes:
    return json.dumps({"inputs": {"images": tensor.tolist()}}).encode()


def rest_of(connection: socket.socket) -> Answer:
    """Send what `half_a_request` held back, and read the answer."""
    connection.sendall(tensor_body(DIGIT)[10:])
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return Answer(answer.status, answer.headers, answer.read())


@pytest.fixture(scope="module")
def orch(empty_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Orch:
    """A state folder with a model of two versions, of which the second, and better, is the champion."""
    orch = Orch(tmp_path_factory.mktemp("serve"))
    shutil.copytree(empty_home, orch.home)
    orch.environment["ORCH_SERVE_TOKEN"] = TOKEN
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(orch.home))
        settings = settings_of(orch.home)
        for fields in (WEAK, STRONG):
            delete_study(settings, NAME) if fields is STRONG else None
            add_study(settings, [fields])
            promote(settings)
    return orch


@pytest.fixture(scope="module")
def settings(orch: Orch) -> Settings:
    return settings_of(orch.home)


@contextlib.contextmanager
def serving(orch: Orch, *options: str) -> Iterator[Server]:
    with orch.running("serve", CHAMPION, "--port", "0", *options) as process:
        said = process.stdout.readline()
        assert said, process.communicate()[1]
        yield Server(int(re.search(r"http://127\.0\.0\.1:(\d+)", said)[1]), process)


@pytest.fixture(scope="module")
def server(orch: Orch) -> Iterator[Server]:
    limits = ["--max-body", "50KB", "--max-pixels", "5000", "--max-batch", "4", "--queue", "6"]
    with serving(orch, "--watch", "0.1", *limits) as server:
        yield server


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three digits as PNG files, one of another size."""
    folder = tmp_path_factory.mktemp("pictures")
    images = [Image.fromarray(image[0].numpy()) for image in load(DatasetConfig()).test.images[:3]]
    images[2] = images[2].resize((20, 14))
    paths = [folder / f"{number}.png" for number in range(3)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths


def form_of(*files: bytes) -> tuple[bytes, str]:
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + file + b"\r\n"
        for file in files
    ]
    return b"".join(parts) + b"--x--\r\n", "multipart/form-data; boundary=x"


# -- what is answered


def test_pictures_are_answered_as_orch_predict_does_however_they_come(server, settings, pictures):
    rows = predict(settings, CHAMPION, pictures).rows
    files = [path.read_bytes() for path in pictures]
    coded = {"images": [base64.b64encode(file).decode() for file in files]}
    coded["images"][0] = "data:image/png;base64," + coded["images"][0]
    for answer in (server.post(*form_of(*files)), server.post(coded)):
        assert answer.status == 200, answer.body
        assert (answer.json["model"], answer.json["version"]) == (NAME, "2")
        for row, told in zip(rows, answer.json["predictions"], strict=True):
            assert told["class"] == row["class"]
            assert told["probability"] == pytest.approx(row["probability"], abs=1e-5)
            assert told["probabilities"][row["class"]] == told["probability"]
            assert sum(told["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    for kind in ("image/png", "application/octet-stream"):
        (told,) = server.post(files[0], kind).json["predictions"]
        assert told["class"] == rows[0]["class"]


def test_tensors_are_answered_in_mlflows_form_with_the_graphs_outputs(server, settings):
    expected = models.find(settings, CHAMPION)[1]
    from orchestrator.inference import Model

    outputs = Model(expected).outputs(DIGIT)
    for body in ({"inputs": DIGIT.tolist()}, {"inputs": {"images": DIGIT.tolist()}}):
        found = server.post(body).json
        assert found.keys() == {"predictions", "model", "version"}
        assert found["predictions"].keys() == {"logits", "probabilities"}
        for name, values in outputs.items():
            np.testing.assert_allclose(found["predictions"][name], values, atol=1e-5)


BAD = DIGIT.tolist()
TAKES = r"expected pictures uint8 \(N, H, W, 1\); found "


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"{", 400, "the body is no JSON"),
        (b"[" * 5000, 400, "the body is no JSON"),
        (b"", 400, "the body is no JSON"),
        ([1], 400, r'expected \{"inputs".*found list'),
        ({"inputs": BAD, "x": 1}, 400, "found 'inputs', 'x'"),
        ({"inputs": {"rows": BAD}}, 422, "expected the input 'images'; found 'rows'"),
        ({"inputs": BAD[0]}, 422, TAKES + r"int \(8, 8, 1\)"),
        ({"inputs": [BAD]}, 422, TAKES + r"int \(1, 1, 8, 8, 1\)"),
        ({"inputs": 5}, 422, TAKES + r"int \(\)"),
        ({"inputs": []}, 422, TAKES),
        ({"inputs": [[[[1, 2, 3]]]]}, 422, TAKES + r"int \(1, 1, 1, 3\)"),
        ({"inputs": [[[[0.5]]]]}, 422, TAKES + r"float \(1, 1, 1, 1\)"),
        ({"inputs": [[[["7"]]]]}, 422, TAKES + r"str"),
        ({"inputs": [[[[True]]]]}, 422, TAKES + r"bool"),
        ({"inputs": [[[[None]]]]}, 422, TAKES + r"NoneType"),
        ({"inputs": [[[[256]], [[-1]]]]}, 422, TAKES + "-1 to 256"),
        ({"inputs": [[[[1], [2]], [[3]]]]}, 422, TAKES + "lists of different lengths"),
        ({"inputs": [[[[1]], [5]]]}, 422, TAKES + "lists of different lengths"),
        ({"inputs": [[[[1], "7"]]]}, 422, TAKES + r"int and str \(1, 1, 2, 1\)"),
        ({"inputs": [[[[1], {"7": 7}]]]}, 422, TAKES + r"int and str \(1, 1, 2, 1\)"),
        ({"inputs": BAD * 5}, 413, "at most 4 pictures or rows are taken at once; found 5"),
        ({"inputs": [[[[1]] * 101] * 50]}, 413, r"at most 5,000 pixels are read; found \(1, 50, 101, 1\)"),
        ({"images": []}, 400, "there is no picture"),
        ({"images": ["%%%"]}, 400, "picture 0 of images is no base64"),
        ({"images": [5]}, 400, "picture 0 of images is no base64"),
        ({"images": ["aGVsbG8="]}, 400, "the picture is not a whole PNG or JPEG image; found 5 bytes"),
        ({"images": ["aGVsbG8="] * 5}, 413, "at most 4 pictures"),
        (b" " * 50_001, 413, "a body has at most 50,000 bytes"),
    ],
    ids=lambda value: value[:12].decode() if isinstance(value, bytes) else None,
)
def test_json_that_cannot_be_answered_is_told_what_was_expected_and_found(server, body, status, detail):
    answer = server.post(body)
    assert answer.status == status, answer.body
    assert re.search(detail, answer.json["detail"]), answer.json


def test_files_that_cannot_be_answered_are_told_why(server, pictures):
    whole = pictures[0].read_bytes()
    assert server.post(b"not a picture", "image/png").status == 400
    assert server.post(whole[:-30], "image/png").status == 400
    assert server.post(whole, "text/csv").status == 415
    assert server.post(whole, "").status == 415
    for size in (60_000, 100):
        bomb = server.post(png(size, size), "image/png")
        assert bomb.status == 413
        assert "the picture is too large, at most 5,000 pixels are read" in bomb.json["detail"]
    assert server.post(*form_of()).status == 400
    assert server.post(*form_of(whole, b"text")).json["detail"].startswith("picture 1 is not a whole PNG")
    assert server.post(*form_of(*[whole] * 5)).status == 400
    assert server.post(form_of(whole)[0], "multipart/form-data").status == 400
    large = io.BytesIO()
    Image.new("L", (60, 60)).save(large, "PNG")
    assert server.post(*form_of(large.getvalue())).status == 200
    together = server.post(*form_of(large.getvalue(), large.getvalue()))
    assert together.status == 413
    assert "picture 1 is too large, at most 1,400 pixels" in together.json["detail"]
    chunks = server.ask("POST", "/predict", iter([b" " * 30_000] * 2), JSON)  # of no declared length
    assert chunks.status == 413


def test_more_requests_than_the_queue_holds_are_told_when_to_come_again(server):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(server.half_a_request()) for _ in range(6)]
        full = server.post({"inputs": DIGIT.tolist()})
        assert (full.status, full.headers["Retry-After"]) == (503, "1")
        assert server.ask("GET", "/ready").status == 503
        assert rest_of(held[0]).status == 200
        assert server.post({"inputs": DIGIT.tolist()}).status == 200
        assert server.ask("GET", "/ready").status == 200
        assert [rest_of(connection).status for connection in held[1:]] == [200] * 5


# -- who is answered


def test_without_the_token_nothing_is_told_but_that_it_lives(server):
    body = {"inputs": DIGIT.tolist()}
    for wrong in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer é"):
        answer = server.post(body, Authorization=wrong)
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert server.ask("GET", "/metrics", Authorization=wrong).status == 401
        assert server.ask("GET", "/health", Authorization=wrong).json == {"status": "ok"}
    assert server.ask("GET", "/ready", Authorization="").json == {"status": "ready"}


def test_foreign_host_and_origin_get_403_on_every_page(server):
    own = f"127.0.0.1:{server.port}"
    for page in ("/", "/predict", "/health", "/ready", "/metrics", "/docs", "/docs/swagger-ui.css", "/openapi.json"):
        for host in (
            "evil.example",
            f"evil.example:{server.port}",
            "127.0.0.1.evil.example",
            "127.0.0.1:1",
            "10.0.0.1",
        ):
            assert server.ask("GET", page, Host=host).status == 403, (page, host)
        assert server.ask("GET", page, Origin="http://evil.example").status == 403
        assert server.ask("GET", page, Origin="null").status == 403
        assert server.ask("GET", page, Host=f"localhost:{server.port}", Origin=f"http://{own}").status != 403


def test_pages_for_programs_and_people(server):
    described = server.ask("GET", "/openapi.json", Authorization="").json
    assert described["paths"].keys() == {"/predict", "/health", "/ready", "/metrics"}
    example = described["paths"]["/predict"]["post"]["requestBody"]["content"][JSON]["schema"]["oneOf"][0]["example"]
    assert server.post(example).status == 200
    page = server.ask("GET", "/docs", Authorization="").body.decode()
    for address in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert server.ask("GET", address, Authorization="").status == 200, address
    assert server.ask("GET", "/docs/../../__init__.py").status == 404
    assert server.ask("GET", "/predict").status == 405
    assert server.ask("GET", "/nothing").status == 404


def test_metrics_count_what_was_answered(server):
    of = 'orch_requests_total{code="200",path="/predict"}'
    before, images = server.metric(of), server.metric("orch_batch_size_sum")
    assert server.post({"inputs": DIGIT.tolist() * 3}).status == 200
    assert server.metric(of) == before + 1
    assert server.metric("orch_batch_size_sum") == images + 3
    assert server.metric("process_resident_memory_bytes") > 1e7


# -- versions


def point(settings: Settings, version: str) -> None:
    MlflowClient(settings.tracking_uri).set_registered_model_alias(NAME, "champion", version)


@pytest.fixture
def at_two(settings: Settings, server: Server) -> Iterator[None]:
    """The alias is at version 2 again at the end, and so is the server."""
    yield
    point(settings, "2")
    wait_until(lambda: (server.health["version"], server.health["status"]) == ("2", "ok"))


@pytest.mark.usefixtures("at_two")
def test_no_request_is_lost_while_the_alias_moves(server, settings):
    versions: list[list[str]] = [[], []]
    stop = threading.Event()

    def ask(found: list[str]) -> None:
        while not stop.is_set():
            answer = server.post({"inputs": DIGIT.tolist()})
            found.append(answer.json["version"] if answer.status == 200 else str(answer.status))

    threads = [threading.Thread(target=ask, args=[found]) for found in versions]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(versions))
        switches = server.metric("orch_model_switches_total")
        point(settings, "1")
        wait_until(lambda: all(found[-1] == "1" for found in versions))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for found in versions:
        assert found == sorted(found, reverse=True), "2 until it took over, 1 from then on"
        assert set(found) == {"1", "2"}
    assert server.metric("orch_model_switches_total") == switches + 1
    assert server.health["sha256"] == models.find(settings, f"models:/{NAME}/1")[0].sha256


@pytest.mark.usefixtures("at_two")
def test_a_version_with_a_flipped_byte_is_not_taken_until_it_is_whole(server, settings):
    path = models.find(settings, f"models:/{NAME}/1")[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    try:
        point(settings, "1")
        wait_until(lambda: server.health["status"] == "behind")
        health = server.health
        assert health["version"] == "2"
        assert re.search(r"version 2 answers still: .*model\.onnx has SHA-256 \w{64}, the record", health["problem"])
        assert server.post({"inputs": DIGIT.tolist()}).json["version"] == "2"
        assert server.metric("orch_model_problem") == 1
        assert server.metric("orch_model_refusals_total") >= 1
    finally:
        path.write_bytes(whole)
    wait_until(lambda: server.health["version"] == "1")
    assert server.health["problem"] is None
    assert server.metric("orch_model_problem") == 0


@pytest.mark.usefixtures("at_two")
def test_an_alias_that_is_gone_or_anothers_is_told(server, settings):
    client = MlflowClient(settings.tracking_uri)
    client.delete_registered_model_alias(NAME, "champion")
    wait_until(lambda: server.health["problem"] and "unknown alias" in server.health["problem"])
    client.create_model_version(NAME, str(settings.home))
    client.set_registered_model_alias(NAME, "champion", "3")
    wait_until(lambda: server.health["problem"] and "none that `orch promote` made" in server.health["problem"])
    assert server.post({"inputs": DIGIT.tolist()}).json["version"] == "2"


# -- its beginning and its end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_requests_under_way_are_answered(orch, number):
    with serving(orch) as server:
        with server.half_a_request() as connection:
            server.process.send_signal(number)
            wait_until(lambda: not is_open(server.port))
            assert server.process.poll() is None
            assert rest_of(connection).json["version"] == "2"
        _, errors = server.process.communicate(timeout=60)
        assert (server.process.returncode, errors) == (0, "")


def test_what_cannot_be_served_is_one_line_and_exit_code_2(orch, tmp_path, monkeypatch):
    def refused(*arguments: str) -> str:
        done = orch("serve", CHAMPION, *arguments, code=2)
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port} is in use; pass --port N" in refused("--port", str(port))
    assert "--max-batch 0: Input should be greater than or equal to 1" in refused("--max-batch", "0")
    short = tmp_path / "token"
    short.write_text("short\n")
    assert f"the token of {short} must be 16 or more" in refused("--token-file", str(short))
    monkeypatch.setitem(orch.environment, "ORCH_SERVE_TOKEN", "")
    assert "a token is needed: set ORCH_SERVE_TOKEN, or pass --token-file FILE" in refused("--host", "0.0.0.0")

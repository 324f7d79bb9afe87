"""Batches and times of `orch serve`, with a model that computes when the test says so."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from orchestrator.errors import UsageError
from orchestrator.serving import batching, waking
from orchestrator.serving.app import make_app
from orchestrator.serving.batching import Batcher, ComputeError, FullError
from orchestrator.serving.following import Loaded
from orchestrator.serving.measures import Measures
from orchestrator.serving.options import Options
from orchestrator.serving.waking import Waking

if TYPE_CHECKING:
    from numpy.typing import NDArray

PORT = 80


@dataclass
class Held:
    """Stands for a model: it adds up each picture, when it may."""

    num_channels: int = 1
    columns: tuple[str, ...] = ()
    input_name: str = "images"
    output_name: str = "sums"
    expected: str = "pictures"
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    threads: list[str] = field(default_factory=list)
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def outputs(self, inputs: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        self.shapes.append(inputs.shape)
        self.threads.append(threading.current_thread().name)
        self.go.acquire()
        if inputs.max() == 255:
            raise MemoryError
        if inputs.shape[1] == 5:
            raise UsageError("not of five")
        return {"sums": inputs.sum((1, 2, 3), dtype=np.float32)[:, None]}


class Following:
    """Stands for the one that follows an alias."""

    uri = "models:/held@champion"
    problem = ""

    def __init__(self) -> None:
        self.model = Held()
        self.loaded = Loaded(model=self.model, name="held", version="1", sha256="0" * 64, seconds=1.0)


@pytest.fixture
def following() -> Following:
    return Following()


def picture(value: int, size: int = 2, count: int = 1) -> NDArray[np.uint8]:
    return np.full((count, size, size, 1), value, np.uint8)


async def under_way(held: Held, count: int) -> None:
    """Wait until so many batches were begun."""
    while len(held.shapes) < count:
        await asyncio.sleep(0.001)


def run(following: Following, *inputs: NDArray[np.uint8], max_batch: int = 4) -> list[Any]:
    """Answers to requests that all come while the first is computed; an exception is one."""

    async def asked() -> list[Any]:
        batcher = Batcher(following, Measures(), max_batch=max_batch)
        try:
            first = asyncio.ensure_future(batcher.answer(inputs[0]))
            await under_way(following.model, 1)
            others = [asyncio.ensure_future(batcher.answer(each)) for each in inputs[1:]]
            await asyncio.sleep(0)
            following.model.go.release(len(inputs))
            return await asyncio.gather(first, *others, return_exceptions=True)
        finally:
            batcher.close()

    return asyncio.run(asked())


def sums(answers: list[Any]) -> list[list[float]]:
    return [answer.outputs["sums"][:, 0].tolist() for answer in answers]


def test_what_arrives_while_a_batch_is_computed_is_the_next_one(following):
    found = run(following, picture(1), picture(2), picture(3, count=2), picture(4))
    assert sums(found) == [[4], [8], [12, 12], [16]]
    assert following.model.shapes == [(1, 2, 2, 1), (4, 2, 2, 1)]
    assert {answer.by.version for answer in found} == {"1"}


def test_a_batch_has_one_size_of_pictures_and_no_more_than_it_may(following):
    found = run(
        following, picture(1), picture(2), picture(3, size=3), picture(4, count=3), picture(5), picture(6, size=3)
    )
    assert sums(found) == [[4], [8], [27], [16] * 3, [20], [54]]
    assert following.model.shapes == [(1, 2, 2, 1), (4, 2, 2, 1), (2, 3, 3, 1), (1, 2, 2, 1)]


def test_a_batch_has_no_more_values_than_fit_into_memory(following, monkeypatch):
    monkeypatch.setattr(batching, "MAX_BATCH_VALUES", 8)
    run(following, picture(1), picture(2), picture(3), picture(4))
    assert [shape[0] for shape in following.model.shapes] == [1, 2, 1]


def test_an_error_reaches_the_requests_of_its_batch_and_no_other(following):
    found = run(following, picture(255), picture(1, size=5), picture(2, size=5), picture(3))
    assert [type(each) for each in found[:3]] == [ComputeError, UsageError, UsageError]
    assert sums(found[3:]) == [[12]]


def test_more_bytes_than_may_wait_are_refused(following, monkeypatch):
    monkeypatch.setattr(batching, "MAX_WAITING_BYTES", 8)
    found = run(following, picture(1, size=9), picture(2, size=9), picture(3), picture(4))
    assert [type(each) for each in found[2:]] == [FullError] * 2
    assert sums(found[:2]) == [[81], [162]]


def test_what_is_quick_is_computed_without_another_thread_and_together_all_the_same(following):
    following.loaded = replace(following.loaded, seconds=0.0001)

    async def asked_at_once() -> list[Any]:
        batcher = Batcher(following, Measures(), max_batch=8)
        following.model.go.release(3)
        small = await asyncio.gather(*(batcher.answer(picture(value)) for value in (1, 2, 3)))
        return [*small, await batcher.answer(picture(1, size=250))]

    assert sums(asyncio.run(asked_at_once()))[:3] == [[4], [8], [12]]
    assert following.model.shapes == [(3, 2, 2, 1), (1, 250, 250, 1)]
    assert following.model.threads == [threading.main_thread().name, "compute"]


# -- the application around it


def asked(app: Any, path: str, body: bytes = b"", **headers: str) -> Any:
    """A request to an application, and what it answers: status and JSON."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    given = {"host": f"127.0.0.1:{PORT}", "content-type": "application/json", **headers}
    scope = {
        "type": "http",
        "method": "POST" if body else "GET",
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }

    async def answered() -> tuple[int, Any]:
        await app(scope, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])

    return answered()


def started(following: Following, **options: Any) -> Any:
    """An application, and a request of one picture to it."""
    return make_app(following, Measures(), Options(**options), PORT)


async def lived(app: Any, *requests: Any) -> list[Any]:
    """Answers to requests, one after another, of an application that runs."""
    passed: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    up = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        assert "failed" not in message["type"], message
        up.set()

    passed.put_nowait({"type": "lifespan.startup"})
    life = asyncio.ensure_future(app({"type": "lifespan", "app": app}, passed.get, send))
    await up.wait()
    answers = [await request for request in requests]
    passed.put_nowait({"type": "lifespan.shutdown"})
    await life
    return answers


ONE = json.dumps({"inputs": picture(1).tolist()}).encode()


def test_a_request_whose_time_is_up_gets_504_and_is_not_computed_later(following):
    app = started(following, timeout=0.3)

    async def later() -> Any:
        following.model.go.release(2)
        return await asked(app, "/predict", ONE)

    late = asked(app, "/predict", ONE), asked(app, "/predict", ONE)
    *found, (status, _) = asyncio.run(lived(app, *late, later()))
    assert found == [(504, {"detail": "no answer within 0.3 s"})] * 2
    assert status == 200
    assert [shape[0] for shape in following.model.shapes] == [1, 1], (
        "the second waited for the first, and nobody waits for it now"
    )


def test_the_loop_stays_awake_for_who_asks_alone_and_sleeps_where_several_ask(following, monkeypatch):
    stays = []
    monkeypatch.setattr(Waking, "stay", lambda _: stays.append(1))
    following.model.go.release(3)
    app = started(following)

    async def two() -> Any:
        assert len(stays) == 1, "after the one"
        return await asyncio.gather(asked(app, "/predict", ONE), asked(app, "/predict", ONE))

    asyncio.run(lived(app, asked(app, "/predict", ONE), two()))
    assert len(stays) == 1, "but not after the two"


def test_the_loop_sleeps_after_a_moment(monkeypatch):
    looks = []
    look = Waking._look
    monkeypatch.setattr(Waking, "_look", lambda self: (looks.append(1), look(self)))
    monkeypatch.setattr(waking, "num_cores", lambda: 2)

    async def watched() -> tuple[int, int]:
        kept = Waking()
        kept.stay()
        kept.stay()
        await asyncio.sleep(0.1)
        first = len(looks)
        await asyncio.sleep(0.1)
        return first, len(looks)

    first, last = asyncio.run(watched())
    assert 2 < first == last
    monkeypatch.setattr(waking, "num_cores", lambda: 1)
    looks.clear()
    asyncio.run(watched())
    assert len(looks) == 2, "who asks needs the only core"


def test_a_batch_that_cannot_be_computed_is_a_500_in_one_line(following):
    following.model.go.release()
    worst = json.dumps({"inputs": picture(255).tolist()}).encode()
    app = started(following)
    assert asyncio.run(lived(app, asked(app, "/predict", worst))) == [
        (500, {"detail": "version 1 could not compute an answer: MemoryError"})
    ]


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("10.1.2.3:80", True),
        ("[fd00::1]", True),
        ("models.example", True),
        ("MODELS.example:8443", True),
        ("localhost:80", True),
        ("evil.example", False),
        ("10.evil.example", False),
        ("models.example.evil.example", False),
        ("", False),
    ],
)
def test_a_server_for_others_answers_to_numbers_and_to_names_that_were_allowed(following, host, ours):
    app = started(following, host="0.0.0.0", token="t" * 16, allow_hosts=("models.example",))
    status, _ = asyncio.run(asked(app, "/health", host=host))
    assert status == (200 if ours else 403)

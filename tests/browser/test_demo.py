"""What a user sees of `orch demo`, and of `/docs` of `orch serve`, in a real browser."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from orchestrator.predictions import predict
from orchestrator.promote import promote
from orchestrator.settings import HOME_VARIABLE
from recipes.config import DatasetConfig
from recipes.data import load
from tests.conftest import require
from tests.support import databases
from tests.support.orch import Orch
from tests.support.sweeps import settings_of
from tests.support.trained import STRONG, add_study

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import ConsoleMessage, Page, Request, Response

pytestmark = pytest.mark.slow

NAME = "<img src=x onerror=alert(1)>"
CHAMPION = f"models:/{NAME}@champion"
PATIENCE_MS = 60_000
DROP = """([target, name, data]) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    const files = new DataTransfer();
    files.items.add(new File([bytes], name, {type: "image/png"}));
    target.dispatchEvent(new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
}"""


def needs_gradio() -> None:
    if importlib.util.find_spec("gradio") is None and os.environ.get("CI") != "true":
        pytest.skip("gradio is not installed (the extra `demo`)")


@pytest.fixture(scope="module")
def orch(tmp_path_factory: pytest.TempPathFactory) -> Orch:
    """A state folder with a promoted model whose name is made of HTML."""
    orch = Orch(tmp_path_factory.mktemp("demo"))
    databases.put_into(orch.home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(orch.home))
        add_study(settings_of(orch.home), [STRONG], name=NAME)
        promote(settings_of(orch.home), NAME)
    return orch


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of Debian's chromium on which no dialog opens, nothing fails and nothing but loopback is asked."""
    wrong: list[str] = []

    def answered(answer: Response) -> None:
        if answer.status >= 400:
            wrong.append(f"{answer.status} {answer.url}")

    def asked(request: Request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            wrong.append(f"request {request.url}")

    def said(message: ConsoleMessage) -> None:
        if message.type == "error":
            wrong.append(f"console {message.text}")

    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: wrong.append(f"exception {error}"))
        page.on("response", answered)
        page.on("request", asked)
        page.on("console", said)
        yield page
        browser.close()
    assert wrong == []


@pytest.fixture(scope="module")
def demo(orch: Orch) -> Iterator[str]:
    """The address of a running `orch demo`, which SIGTERM ends well."""
    needs_gradio()
    with orch.running("demo", CHAMPION, "--port", "0") as process:
        said = process.stdout.readline()
        assert said, process.communicate()[1]
        yield re.search(r"http://127\.0\.0\.1:\d+", said)[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_picture_that_is_dropped_on_the_demo_gets_its_class(orch: Orch, demo: str, page: Page, tmp_path: Path):
    test = load(DatasetConfig()).test
    file = tmp_path / "digit.png"
    Image.fromarray(test.images[0, 0].numpy()).save(file)
    (row,) = predict(settings_of(orch.home), CHAMPION, [file]).rows
    assert row["class"] == str(int(test.labels[0])), "the model knows this one"

    page.goto(demo)
    expect(page.locator("h1")).to_have_text(f"{NAME} version 1")
    assert page.locator("img[src=x]").count() == 0
    target = page.locator("[data-testid=image] button, .upload-container button").first
    target.wait_for()
    page.evaluate(DROP, [target.element_handle(), "digit.png", base64.b64encode(file.read_bytes()).decode()])
    label = page.locator("[data-testid=label-output-value]")
    expect(label).to_have_text(row["class"])
    shown = page.locator(f"[data-testid='{row['class']}-confidence-set']")
    expect(shown).to_contain_text(f"{row['probability']:.0%}")
    assert page.locator("[data-testid$=-confidence-set]").count() == 5


def test_a_file_that_is_no_picture_is_told(demo: str, page: Page, tmp_path: Path):
    file = tmp_path / "digit.gif"
    Image.new("L", (8, 8)).save(file)
    page.goto(demo)
    page.locator("input[type=file]").first.set_input_files(file)
    expect(page.get_by_text("is not a whole PNG or JPEG image").first).to_be_visible()


def test_a_one_that_is_drawn_is_a_one(demo: str, page: Page):
    page.goto(demo)
    page.get_by_role("tab", name="Draw").click()
    canvas = page.locator("canvas").first
    canvas.wait_for()
    page.get_by_role("button", name="Brush", exact=True).click()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y - 90)
    page.mouse.down()
    page.mouse.move(x, y + 90, steps=20)
    page.mouse.up()
    expect(page.locator("[data-testid=label-output-value]")).to_have_text("1")


def test_demo_answers_to_its_own_names_only(demo: str):
    port = int(demo.rpartition(":")[2])
    own = f"127.0.0.1:{port}"

    def status(page: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", page, headers={"Host": own, **headers})
        found = connection.getresponse().status
        connection.close()
        return found

    for page in ("/", "/config"):
        assert status(page) == status(page, Host=f"localhost:{port}", Origin=f"http://{own}") == 200
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1"):
            assert status(page, Host=host) == 403
        assert status(page, Origin="http://evil.example") == 403


def test_without_gradio_the_demo_says_what_to_install(orch: Orch):
    code = "import sys; sys.modules['gradio'] = None; from orchestrator.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", CHAMPION, "--port", "0"],
        env=orch.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("orch: orch demo needs Gradio: pip install 'orch[demo]'")
    assert done.stderr.count("\n") == 1


def test_docs_of_a_server_show_its_pages_without_a_network(orch: Orch, page: Page):
    with orch.running("serve", CHAMPION, "--port", "0") as process:
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        page.goto(f"{address}/docs")
        for path in ("/predict", "/health", "/ready", "/metrics"):
            expect(page.get_by_text(path, exact=True).first).to_be_visible()
        page.get_by_text("/health", exact=True).first.click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        expect(page.get_by_text('"status": "ok"').first).to_be_visible()

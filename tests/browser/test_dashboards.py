"""What a user sees of `orch ui`, in a real browser."""

from __future__ import annotations

import signal
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from orchestrator.settings import HOME_VARIABLE, Settings
from orchestrator.store import Record
from tests.conftest import require
from tests.support.orch import Orch
from tests.support.ports import free_ports
from tests.support.trained import STRONG, WEAK, add_study

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Dialog, Page, Request, Response

pytestmark = pytest.mark.slow

STUDY = "cnn-digits"
HOSTILE = "<img src=x onerror=alert(1)>"
DRAWN = "drawn"
PATIENCE_MS = 60_000
# MLflow asks itself who is logged in, which is nobody, and takes the 404 for an answer.
HARMLESS = "/mlflow/users/current"


@pytest.fixture(scope="module")
def orch(tmp_path_factory: pytest.TempPathFactory) -> Orch:
    """A state folder with three studies, one of them with a name made of HTML, one with pictures."""
    orch = Orch(tmp_path_factory.mktemp("browser"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(orch.home))
        settings = Settings.from_environment()
        add_study(settings, [WEAK, {**STRONG, "lr": 5e-3}, STRONG], export=False)
        add_study(settings, [WEAK], name=HOSTILE, export=False)
        add_study(settings, [{**STRONG, "pictures": True}], name=DRAWN)
    return orch


@pytest.fixture(scope="module")
def ports(orch: Orch) -> Iterator[list[int]]:
    """The ports of a running `orch ui`, which SIGTERM ends well."""
    require("chromium")
    first = free_ports(3)
    with orch.running("ui", "--port", str(first)) as process:
        assert "Ctrl-C" in [process.stdout.readline() for _ in range(4)][-1]
        yield [first, first + 1, first + 2]
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of Debian's chromium on which no dialog opens, nothing fails and nothing but loopback is asked."""
    chromium = require("chromium")
    wrong: list[str] = []

    def answered(answer: Response) -> None:
        if answer.status >= 400 and not answer.url.endswith(HARMLESS):
            wrong.append(f"{answer.status} {answer.url}")

    def asked(request: Request) -> None:
        if "//127.0.0.1:" not in request.url and not request.url.startswith(("blob:", "data:")):
            wrong.append(f"request {request.url}")

    def opened(dialog: Dialog) -> None:
        wrong.append(f"dialog {dialog.message}")
        dialog.dismiss()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        page.on("dialog", opened)
        page.on("pageerror", lambda error: wrong.append(f"exception {error}"))
        page.on("response", answered)
        page.on("request", asked)
        yield page
        browser.close()
    assert wrong == []


def experiment_address(orch: Orch, port: int, name: str) -> str:
    client = MlflowClient(f"sqlite:///{orch.home / 'mlflow.db'}")
    return f"http://127.0.0.1:{port}/#/experiments/{client.get_experiment_by_name(name).experiment_id}/runs"


def test_mlflow_lists_the_trials_of_a_study_and_compares_two(orch: Orch, ports: list[int], page: Page, tmp_path: Path):
    page.goto(experiment_address(orch, ports[0], STUDY))
    runs = page.locator(".ag-pinned-left-cols-container .ag-row")
    expect(runs).to_have_count(1, timeout=PATIENCE_MS)  # the study's own run, folded
    runs.first.locator("[col-id*='Run Name'] button").first.click()
    expect(runs).to_have_count(4, timeout=PATIENCE_MS)
    for trial in (0, 2):
        run = runs.filter(has=page.get_by_role("link", name=f"{STUDY} #{trial}", exact=True))
        run.locator(".ag-selection-checkbox input").check()

    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("Comparing 2 Runs").first.wait_for()
    details = page.locator("table").first
    for text in (f"{STUDY} #0", f"{STUDY} #2"):
        expect(details.get_by_text(text, exact=True)).to_be_visible(timeout=PATIENCE_MS)
    rows = {cells[0]: cells[1:] for cells in map(str.split, page.locator("tr").all_inner_texts()) if len(cells) == 3}
    assert rows["lr"] == ["1e-05", "0.01"]
    assert rows["epochs"] == ["1", "2"]
    expect(page.get_by_text("best_val_accuracy").first).to_be_visible(timeout=PATIENCE_MS)

    page.screenshot(path=tmp_path / "compare.png")
    with Image.open(tmp_path / "compare.png") as picture:
        assert picture.size == (1600, 900)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 100, "a blank page has one colour"


def run_address(orch: Orch, port: int, name: str, trial: int | None = None) -> str:
    """The page of a trial's run, or of the study's own."""
    client = MlflowClient(f"sqlite:///{orch.home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(name).experiment_id
    (run,) = [
        run
        for run in client.search_runs([experiment])
        if run.data.tags.get("orch.trial") == (None if trial is None else str(trial))
    ]
    return f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs/{run.info.run_id}"


def test_mlflow_shows_a_runs_tags_data_parent_and_metrics_by_epoch(orch: Orch, ports: list[int], page: Page):
    page.goto(run_address(orch, ports[0], STUDY, 2))
    expect(page.get_by_role("link", name=STUDY, exact=True).first).to_be_visible(timeout=PATIENCE_MS)
    with closing(Record.open(f"sqlite:///{orch.home / 'orch.db'}")) as record:
        study = record.study(STUDY)
        (first, second) = (study.spec["provenance"][f"{each}_fingerprint"][:16] for each in ("data", "split"))
    expect(page.get_by_text(f"digits ({first}-{second})")).to_be_visible()
    for tag in ("orch.recipe", "orch.state", "orch.trial"):
        expect(page.get_by_text(tag, exact=True).first).to_be_visible()
    page.get_by_role("tab", name="Model metrics").click()
    chart = page.locator(".js-plotly-plot", has=page.locator(".scatterlayer")).first
    expect(chart).to_be_visible(timeout=PATIENCE_MS)
    steps = page.locator(".js-plotly-plot").evaluate_all("all => all.map(each => each.data.map(one => one.x))")
    assert any([1, 2] in lines for lines in steps), "an epoch is a step"


def test_mlflow_lists_the_model_of_an_exported_trial_with_its_data(orch: Orch, ports: list[int], page: Page):
    address = experiment_address(orch, ports[0], DRAWN).removesuffix("/runs")
    page.goto(f"{address}/models?workflowType=machine_learning")
    expect(page.get_by_role("heading", name="Models")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_role("link", name=f"{DRAWN} #0", exact=True)).to_be_visible()
    page.get_by_role("link", name="trial-0", exact=True).click()
    expect(page.get_by_text("Datasets used")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_text("Ready", exact=True).first).to_be_visible()
    expect(page.get_by_text("val_accuracy", exact=True).first).to_be_visible()
    expect(page.get_by_text("digits (#").first).to_be_visible()


def test_mlflow_shows_the_report_of_a_study_on_its_own_run(orch: Orch, ports: list[int], page: Page):
    assert "not stored" not in orch.here("report", STUDY).stderr
    page.goto(f"{run_address(orch, ports[0], STUDY)}/artifacts/report.html")
    shown = page.frame_locator("iframe[title*='html' i], iframe[srcdoc], iframe[src^='blob:']").first
    expect(shown.locator("h1")).to_have_text(STUDY, timeout=PATIENCE_MS)
    expect(shown.locator("html[data-drawn]")).to_have_count(1, timeout=PATIENCE_MS)
    expect(shown.locator("#chart-history .scatterlayer .point").first).to_be_visible()


def test_optuna_dashboard_and_tensorboard_show_the_study(ports: list[int], page: Page):
    page.goto(f"http://127.0.0.1:{ports[1]}")
    page.get_by_text(STUDY).first.click()
    expect(page.get_by_text("Hyperparameter Importance").first).to_be_visible(timeout=PATIENCE_MS)
    page.goto(f"http://127.0.0.1:{ports[2]}")
    expect(page.get_by_text("val_accuracy").first).to_be_visible(timeout=PATIENCE_MS)


def test_tensorboard_shows_the_histograms_and_images_of_a_trial_with_pictures(ports: list[int], page: Page):
    page.goto(f"http://127.0.0.1:{ports[2]}/#histograms")
    expect(page.get_by_text(f"{DRAWN}/0000/pictures").first).to_be_visible(timeout=PATIENCE_MS)
    for tag in ("gradients/0.weight", "weights/0.weight"):
        page.get_by_text(tag).first.wait_for(state="attached")
    page.locator("vz-histogram-timeseries path").first.wait_for(state="attached")
    page.goto("about:blank")
    page.goto(f"http://127.0.0.1:{ports[2]}/#images")
    for tag in ("pictures/batch", "pictures/confusion", "pictures/mistakes"):
        loader = page.locator("tf-image-loader", has=page.get_by_text(tag))
        picture = loader.locator("#main-image-container img").first
        picture.wait_for(state="attached")
        page.wait_for_function("image => image.naturalWidth > 300", arg=picture.element_handle())


def test_a_study_name_made_of_html_stays_text(orch: Orch, ports: list[int], page: Page):
    addresses = [
        f"http://127.0.0.1:{ports[0]}/#/experiments",
        experiment_address(orch, ports[0], HOSTILE),
        f"http://127.0.0.1:{ports[1]}",
        f"http://127.0.0.1:{ports[2]}",
    ]
    for address in addresses:
        page.goto(address)
        expect(page.get_by_text(HOSTILE).first).to_be_visible(timeout=PATIENCE_MS)
        assert page.locator("img[src=x]").count() == 0

"""What a user sees of `orch report`, in a real browser that has no network."""

from __future__ import annotations

import io
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageStat
from playwright.sync_api import expect, sync_playwright

from orchestrator.settings import HOME_VARIABLE
from orchestrator.store import Record
from orchestrator.tables import Attempt, Epoch, Reason, State, Study, Trial
from tests.conftest import require
from tests.support import photos
from tests.support.orch import Orch
from tests.support.sweeps import settings_of
from tests.support.trained import WEAK, add_study

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import BrowserContext, Page

pytestmark = pytest.mark.slow

LAPTOP = {"viewport": {"width": 1366, "height": 850}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
PATIENCE_MS = 60_000
IMAGE, LINK, BOLD = "<img src=x onerror=alert(1)>", '<a href="javascript:alert(1)">x</a>', "<b>%{x}&lt;"
CHARTS = ("history", "front-0", "curves", "losses", "importance", "parallel", "slice-0", "confusion", "timeline")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a real sweep of two objectives, of which some trials were pruned."""
    orch = Orch(tmp_path_factory.mktemp("report"))
    keys = ("recipe=cnn", "trials=12", "epochs=4", "width=16,24", "depth=1", "pruner=percentile:60", "export=none")
    orch("sweep", *keys, "objectives=val_accuracy:max,num_parameters:min", "study=small")
    assert "not stored" not in orch.here("report", "small").stderr
    return orch.folder / "small-report.html"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study in which all names are made of HTML: its own, its fields', classes', workers', choices'."""
    folder = tmp_path_factory.mktemp("hostile")
    pictures = photos.write(folder / "photos", 20)
    for old, new in zip(photos.CLASSES, (IMAGE, BOLD), strict=True):
        (pictures / old).rename(pictures / new)
    orch = Orch(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(orch.home))
        fields = {**WEAK, "data": f"folder:{pictures}", "image_size": 16}
        add_study(settings_of(orch.home), [fields], name=IMAGE, export=False)
    with closing(Record.open(settings_of(orch.home).record_url)) as record:
        _poison(record)
    orch.here("report", IMAGE, "--out", "hostile.html")
    return folder / "hostile.html"


def _poison(record: Record) -> None:
    """Give the study's fields, choices, workers and errors names that are HTML, and trials that drew them."""
    row = record.study(IMAGE)
    space = {LINK: {"choices": [LINK, BOLD]}, BOLD: {"low": 0.1, "high": 1.0, "log": False}}
    with record.write() as session:
        study = session.get_one(Study, row.id)
        study.spec = {**study.spec, "space": space}
        first = session.get_one(Trial, record.trials(row.id)[0].id)
        for number in range(1, 12):
            params = {LINK: (LINK, BOLD)[number % 2], BOLD: number / 12}
            values = {"params": params, "config": {**first.config, **params}, "threads": 1, "created_at": 1e9}
            state = State.FAILED if number == 11 else State.COMPLETE
            value = 0.01 if number == 6 else 0.5 + 0.01 * number
            ended: dict[str, Any] = {"value": value, "best_epoch": 1}
            if state is State.FAILED:
                ended = {"reason": Reason.ERROR, "message": LINK}
            trial = Trial(study_id=row.id, number=number, state=state, **values, **ended)
            session.add(trial)
            session.flush()
            times = {"started_at": 1e9 + number, "ended_at": 1e9 + number + 1}
            session.add(Attempt(trial_id=trial.id, number=1, state=state, worker=LINK, device="cpu", **times))
            metrics = {"val_accuracy": value, "val_loss": 1.0}
            session.add(Epoch(trial_id=trial.id, number=1, attempt=1, metrics=metrics, seconds=1.0, recorded_at=1e9))
        first.params = {LINK: LINK, BOLD: 0.9}
        first.config = {**first.config, **first.params}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = require("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, file: Path, scheme: str = "light", **device: Any) -> Iterator[Page]:
    """A page whose charts are all drawn; nothing is asked of a network, fails, opens a dialog or is complained of."""
    wrong: list[str] = []
    context: BrowserContext = browser.new_context(color_scheme=scheme, offline=True, **(device or LAPTOP))
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: wrong.append(f"exception {error}"))
    page.on("console", lambda told: wrong.append(f"console {told.text}") if told.type == "error" else None)
    page.on(
        "request", lambda asked: None if asked.url.startswith(("file:", "data:", "blob:")) else wrong.append(asked.url)
    )
    page.goto(file.as_uri())
    page.wait_for_selector(f"html[data-drawn={scheme}]")
    yield page
    context.close()
    assert wrong == []


def brightness(page: Page, of: str = "body") -> float:
    with Image.open(io.BytesIO(page.locator(of).screenshot())) as picture:
        return ImageStat.Stat(picture.convert("L")).mean[0]


def test_every_chart_draws(browser: Any, swept: Path):
    with opened(browser, swept) as page:
        keys = page.locator(".chart").evaluate_all("all => all.map(each => each.id.replace('chart-', ''))")
        assert set(CHARTS) <= set(keys)
        marks = ".scatterlayer .point, .scatterlayer .js-line, .barlayer .point, .heatmaplayer image, canvas"
        for key in keys:
            chart = page.locator(f"#chart-{key}")
            assert chart.locator(marks).count() > 0, key
            with Image.open(io.BytesIO(chart.screenshot())) as picture:
                assert len(picture.convert("RGB").getcolors(1 << 20)) > 20, f"{key} is blank"
        expect(page.get_by_text("WebGL is not supported")).to_have_count(0)


def test_trials_and_figures_are_those_of_the_sweep(browser: Any, swept: Path):
    with opened(browser, swept) as page:
        assert page.title() == "small · orch report"
        expect(page.locator("#leaderboard tbody tr")).to_have_count(12)
        drawn = page.locator("#chart-history").evaluate("chart => chart.data.map(each => [each.name, each.x.length])")
        counts = dict(drawn)
        assert counts["winner"] == 1
        assert counts["complete"] + counts["pruned"] + 1 == 12
        wrong = page.locator("#winner figure")
        assert wrong.count() > 0
        assert all(wrong.locator("img").evaluate_all("all => all.map(each => each.naturalWidth > 0)"))


def test_phone_is_not_overflowed_and_tables_scroll_within_themselves(browser: Any, swept: Path):
    with opened(browser, swept, **PHONE) as page:
        wide, screen = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide <= screen == 390
        for each in ("#leaderboard .rows", "#parallel .wide"):
            assert page.locator(each).evaluate("it => (it.scrollLeft = 99, it.scrollLeft)") > 0, f"{each} scrolls"
        for chart in page.locator(".wide").all():
            box = chart.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390


def test_dark_scheme_is_dark_charts_too_and_follows_a_change(browser: Any, swept: Path):
    charts = ("#chart-history", "#chart-parallel", "#chart-confusion")
    label = "document.querySelector('#chart-history .xtick text').style.fill"
    with opened(browser, swept, "dark") as page:
        assert brightness(page) < 60
        assert all(brightness(page, chart) < 80 for chart in charts)
        dark = page.evaluate(label)
        page.emulate_media(color_scheme="light")
        page.wait_for_selector("html[data-drawn=light]")
        assert brightness(page) > 200
        assert all(brightness(page, chart) > 170 for chart in charts)
        assert page.evaluate(label) != dark


def test_what_lies_below_a_chart_is_shown_on_demand(browser: Any, hostile: Path):
    low = "document.querySelector('#chart-history').layout.yaxis.range[0]"
    with opened(browser, hostile) as page:
        expect(page.locator("#history .note")).to_contain_text("1 trial(s) lie below what is shown.")
        assert page.evaluate(low) > 0.1
        button = page.locator("button[data-chart=chart-history]")
        button.click()
        expect(button).to_have_count(0)
        assert page.evaluate(low) < 0.1


def test_names_made_of_html_stay_text(browser: Any, hostile: Path):
    with opened(browser, hostile) as page:
        assert page.title() == f"{IMAGE} · orch report"
        expect(page.locator("h1")).to_have_text(IMAGE)
        assert page.locator("img:not([src^='data:'])").count() == 0
        assert page.locator("main a").count() == 0
        assert page.locator(".chart a, .chart tspan[style*=bold]").count() == 0
        seen = page.locator(".chart text").evaluate_all("all => all.map(each => each.textContent)")
        for name, lengths in ((IMAGE, (14,)), (LINK, (14, 28)), (BOLD, (14, 28))):
            for most in lengths:
                short = name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}"
                assert short in seen, "as a tick, a title or a label"
        ticks = page.locator("#chart-parallel .axis text").evaluate_all("all => all.map(each => each.textContent)")
        assert {BOLD, f"{LINK[:7]}…{LINK[-6:]}"} <= set(ticks)
        expect(page.locator("#winner figcaption").first).to_contain_text("taken for")
        expect(page.locator("#failures td").nth(1)).to_have_text(LINK)
        for chart in ("history", "slice-0", "timeline"):
            page.evaluate(f"Plotly.Fx.hover('chart-{chart}', [{{curveNumber: 0, pointNumber: 0}}])")
        expect(page.locator("#chart-slice-0 .hovertext")).to_contain_text(f"{BOLD} = ")
        expect(page.locator("#chart-timeline .hovertext")).to_contain_text("<a href=")
        assert page.locator(".hovertext a").count() == 0

"""The charts as data: what is in them, and that Plotly knows every word of it."""

from __future__ import annotations

import json
import re

import plotly.graph_objects as go
import pytest

from orchestrator.reports import charts, timeline
from orchestrator.reports.findings import Work
from orchestrator.reports.page import page
from orchestrator.reports.parts import spread, text, zoom

HOSTILE = '<a href="javascript:alert(1)">%{x}</a>'


def shown_in(html):
    """Chart -> its data and layout, as the page has them."""
    (data,) = re.findall(r'<script id="charts" type="application/json">(.*?)</script>', html, re.DOTALL)
    return {chart["key"]: chart for chart in json.loads(data)}


def with_colours(value):
    """A figure with a colour in place of each name of one."""
    if isinstance(value, dict):
        return {name: with_colours(each) for name, each in value.items()}
    if isinstance(value, list):
        return [with_colours(each) for each in value]
    return "#123456" if isinstance(value, str) and value.startswith("--") else value


def test_plotly_knows_every_word_of_every_chart(varied, find):
    found = shown_in(page(find(varied.settings)))
    assert {"history", "curves", "losses", "importance", "parallel", "slice-0", "slice-2", "timeline"} <= found.keys()
    for chart in found.values():
        go.Figure(with_colours(chart["data"]), with_colours(chart["layout"]))


def test_colours_are_those_of_the_stylesheet(varied, find):
    html = page(find(varied.settings))
    names = set(re.findall(r'"(--[\w-]+)"', html.partition('<script id="charts"')[2].partition("</script>")[0]))
    light, dark = (set(re.findall(r"(--[\w-]+):", part)) for part in html.split("prefers-color-scheme: dark", 1))
    assert "--accent" in names
    assert names <= light
    assert light == dark & light


def test_history_has_a_point_a_trial_and_the_best_so_far(varied, find):
    found = find(varied.settings)
    drawn = {trace["name"]: trace for trace in charts.history(found).data}
    best = drawn["best so far"]
    assert best["x"] == [0, 1, 2, 3, 4, 5, 6, 7, 10], "each trial of this study is better than those before"
    assert best["y"][0] == 0.503
    assert best["y"][-2:] == [0.573, 0.573]
    assert {name: trace["x"] for name, trace in drawn.items() if name != "best so far"} == {
        "complete": [0, 1, 2, 3, 4, 5, 6],
        "winner": [7],
        "pruned": [8],
        "not ended": [10],
    }


def test_curves_of_a_group_are_one_line_with_gaps(varied, find):
    drawn = {trace["name"]: trace for trace in charts.curves(find(varied.settings)).data}
    assert drawn["winner"]["x"] == [1, 2, 3, None]
    assert drawn["complete"]["x"] == [1, 2, 3, None] * 7
    assert drawn["pruned"]["x"] == [1, None]
    assert drawn["pruned"]["opacity"] < drawn["winner"]["opacity"]


def test_many_curves_are_thinned_and_the_chart_says_so(varied, find, monkeypatch):
    monkeypatch.setattr(charts, "MAX_CURVES", 4)
    chart = charts.curves(find(varied.settings))
    assert "4 of 10 curves are shown" in chart.note
    assert "winner" in {trace["name"] for trace in chart.data}


def test_confusion_of_many_classes_shows_those_with_the_most_mistakes(monkeypatch):
    monkeypatch.setattr(charts, "MAX_CLASSES", 2)
    assert charts._most_confused([[9, 0, 0], [0, 5, 4], [0, 0, 9]]) == [1, 2]
    assert charts._most_confused([[9, 1], [0, 9]]) == [0, 1]


@pytest.mark.parametrize(("low", "high", "expected"), [(2, 5, [2, 3, 4, 5]), (1, 4096, [])])
def test_few_whole_numbers_have_a_place_each(low, high, expected):
    assert charts._choices({"low": low, "high": high, "integer": True, "log": False, "step": 1}) == expected


def test_breaks_in_which_nothing_ran_are_cut_out_of_the_timeline():
    work = [
        Work(worker="a", trial=0, begun_at=1000.0, ended_at=1010.0, outcome="complete"),
        Work(worker="b", trial=1, begun_at=1005.0, ended_at=1020.0, outcome="interrupted"),
        Work(worker="a", trial=1, begun_at=90_000.0, ended_at=90_010.0, outcome="complete"),
    ]
    clock, breaks = timeline._clock(work)
    assert [clock(each.begun_at) for each in work] == [0, 5, 20]
    assert clock(90_010.0) == 30
    assert breaks == [20]


def test_workers_are_in_the_order_of_their_numbers():
    assert sorted(["h/cpu10", "h/cpu2", "g/cpu3"], key=timeline._natural) == ["g/cpu3", "h/cpu2", "h/cpu10"]


def test_spread_keeps_the_ends_what_is_asked_for_and_the_order():
    assert spread(range(5), 9) == [0, 1, 2, 3, 4]
    found = spread(range(1000), 11, lambda item: item == 123)
    assert (found[0], found[-1], len(found)) == (0, 999, 12)
    assert 123 in found
    assert found == sorted(found)


def test_zoom_leaves_out_the_few_that_are_far_below_and_no_others():
    assert zoom([0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97]) is None
    low, high = zoom([0.1, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97])
    assert 0.1 < low < 0.91
    assert high > 0.97
    assert zoom([0.5] * 20) is None


def test_text_is_shown_literally_by_plotly():
    assert text("<b>") == "&lt;b&gt;"
    assert "<" not in text(HOSTILE)
    assert text("a\nb\x1b") == "a\\nb\\x1b"
    assert len(text("x" * 500)) == 28
    assert [text(value) for value in (True, 0.123456, 3)] == ["true", "0.1235", "3"]

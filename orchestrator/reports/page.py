"""Findings -> one HTML file that needs nothing else: its style, its script, Plotly's and all pictures are in it.

Whatever comes from outside is escaped in `markup` or, where Plotly shows it, in `parts`. A policy in the page lets no
script run but those two, by their hashes, and nothing be fetched from anywhere. (`unsafe-eval` is for Plotly's WebGL,
which compiles how it draws the parallel coordinates.)
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING

from orchestrator.reports import charts, sections
from orchestrator.reports.markup import date, note, safe
from orchestrator.reports.parallel import parallel
from orchestrator.reports.timeline import timeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.reports.findings import Findings
    from orchestrator.reports.parts import Chart


def page(found: Findings) -> str:
    """The whole file."""
    made = _Page()
    made.add("leaderboard", "Leaderboard", "Leaderboard", sections.leaderboard(found))
    made.add("history", "History", "Optimisation history", made.chart(charts.history(found)))
    made.add("fronts", "Front", "Pareto front", sections.front_note(found), *map(made.chart, charts.fronts(found)))
    curves = made.chart(charts.curves(found)), made.chart(charts.losses(found))
    made.add("curves", "Curves", "Learning curves", *curves)
    made.add("importance", "Importance", "Hyperparameter importance", made.chart(charts.importance(found)))
    made.add("parallel", "Parallel", "Parallel coordinates", made.chart(parallel(found)))
    slices = "".join(map(made.chart, charts.slices(found)))
    made.add("slices", "Slices", "Slices", sections.slices(found, slices))
    matrix = made.chart(charts.confusion(found.answers)) if found.answers else ""
    made.add("winner", "Winner", "The winner's answers", sections.winner(found, matrix))
    made.add("timeline", "Workers", "Timeline of workers", made.chart(timeline(found)))
    made.add("failures", "Failures", "Trials that failed", sections.failures(found))
    made.add("reproduce", "Reproduce", "How to reproduce", sections.reproduction(found))
    return made.document(found)


class _Page:
    """Sections in their order, and the charts that the script is to draw in them."""

    def __init__(self) -> None:
        self._charts: list[Chart] = []
        self._sections: list[str] = []
        self._links: list[str] = []

    def add(self, key: str, link: str, title: str, *parts: str) -> None:
        """A section of those parts that there are; none without any."""
        if any(parts):
            self._links.append(f'<a href="#{key}">{link}</a>')
            self._sections.append(f'<section id="{key}">\n<h2>{title}</h2>\n{"".join(parts)}\n</section>')

    def chart(self, chart: Chart | None) -> str:
        """The place of a chart with what is said of it; nothing of none."""
        if chart is None:
            return ""
        self._charts.append(chart)
        title = f"<h3>{safe(chart.title)}</h3>" if chart.title else ""
        width = f";min-width:{chart.min_width}px" if chart.min_width else ""
        button = f'<button data-chart="chart-{chart.key}">show all</button>' if chart.is_zoomed else ""
        place = f'id="chart-{chart.key}" style="height:{chart.height}px{width}" role="img"'
        drawn = f'<div class="chart" {place} aria-label="{safe(chart.label)}"></div>'
        return f'<div>{title}{note(chart.note, button)}<div class="wide">{drawn}</div></div>'

    def document(self, found: Findings) -> str:
        """All of it."""
        files, plotly = resources.files(__package__), charts.plotly_javascript()
        style, script = ((files / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
        newline = "\n"
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(plotly, script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{safe(found.title)} · orch report</title>
<style>{style}</style>
</head>
<body>
<header><div>{sections.head(found)}</div></header>
<nav><div>{"".join(self._links)}</div></nav>
<main>
<noscript><p class="warn">The charts are drawn by a script in this file, which does not run here.</p></noscript>
{newline.join(self._sections)}
</main>
<footer>Made by <code>orch report</code> on {date(found.made_at)}. This file needs no network.</footer>
<script id="charts" type="application/json">{_data(self._charts)}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def _policy(*scripts: str) -> str:
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'"
    )


def _data(shown: Sequence[Chart]) -> str:
    told = [{"key": each.key, "data": each.data, "layout": each.layout, "height": each.height} for each in shown]
    return json.dumps(told, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")

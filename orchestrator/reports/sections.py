"""Findings -> those parts of the page that are text, tables and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.recorded import IMPORTED, PROVENANCE
from orchestrator.render import short
from orchestrator.reports import retyped
from orchestrator.reports.charts import MAX_SLICE_POINTS, MAX_SLICES
from orchestrator.reports.markup import block, date, duration, note, picture, safe, table
from orchestrator.reports.parts import left_out, said, with_value
from orchestrator.tables import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from orchestrator.evaluate import Answers
    from orchestrator.reports.findings import Findings

MAX_ROWS = 100


def head(found: Findings) -> str:
    """The study's name, what it is about, what one should know before reading on, and how it went in figures."""
    tiles = (f'<div class="tile"><b>{safe(value)}</b><span>{safe(name)}</span></div>' for value, name in _tiles(found))
    warnings = (f'<p class="warn">{safe(line)}</p>' for line in _warnings(found))
    title = f'<h1>{safe(found.title)}</h1><p class="soft">{safe(" · ".join(_about(found)))}</p>'
    return f'{title}{"".join(warnings)}<div class="tiles">{"".join(tiles)}</div>'


def _about(found: Findings) -> Iterable[str]:
    row, provenance = found.study, found.study.spec.get(PROVENANCE, {})
    if found.is_imported:
        yield "taken in from Optuna's study {study} in {storage}".format_map(row.spec[IMPORTED])
        return
    yield from (f"recipe {row.recipe}", f"data {row.data}", f"begun {date(row.created_at)}")
    if provenance.get("commit"):
        yield f"commit {provenance['commit'][:10]}"


def _warnings(found: Findings) -> Iterable[str]:
    if found.archived_at:
        yield f"Archived on {date(found.archived_at)}."
    if num_open := sum(not trial.state.finished for trial in found.trials):
        yield f"{num_open:,} trial(s) have not ended: this is how the study stood when the page was made."
    if not found.trials:
        yield "No trial has begun."
    elif all(trial.state is State.FAILED for trial in found.trials):
        yield "All trials failed."
    elif found.winner is None:
        yield "No trial is complete, so there is no winner."


def _tiles(found: Findings) -> Iterable[tuple[str, str]]:
    if found.winner is not None:
        row = next(row for row in found.rows if row["trial"] == found.winner.number)
        yield f"{row['value']:.4f}", f"{found.objective} of the winner, trial {found.winner.number}"
        if seeds := row["confirmed"]:
            yield f"{seeds['mean']:.4f}", "mean of {num_seeds} further seeds, {low:.4f} to {high:.4f}".format_map(seeds)
    if front := sum(trial.on_front for trial in found.trials):
        yield f"{front:,}", "on the Pareto front"
    states = [trial.state for trial in found.trials]
    yield f"{len(states):,}", "trials"
    yield from ((f"{states.count(state):,}", state.value) for state in State if state in states)
    yield f"{found.num_epochs:,}", "epochs"
    if found.train_seconds:
        yield duration(found.train_seconds), "of training, all workers together"


def leaderboard(found: Findings) -> str:
    """The trials, the best first."""
    if not found.rows:
        return ""
    rows = found.rows[:MAX_ROWS]
    columns: dict[str, list[Any]] = {"trial": [row["trial"] for row in rows]}
    columns[found.objective] = ["" if row["value"] is None else f"{row['value']:.4f}" for row in rows]
    for each in found.objectives:
        columns.setdefault(each.name, [row["objectives"].get(each.name) for row in rows])
    if any(row["confirmed"] for row in rows):
        columns["further seeds"] = [_seeds(row) for row in rows]
    params = {name: [row["params"][name] for row in rows] for name in rows[0]["params"]}
    columns |= {name if name not in columns else f"{name} (field)": values for name, values in params.items()}
    columns["epochs"] = [row["epochs"] for row in rows]
    columns["seconds"] = [f"{row['seconds']:.1f}" for row in rows]
    columns["state"] = [f"{row['state']} ({row['reason']})" if row["reason"] else row["state"] for row in rows]
    told = f"The first {len(rows)} of {len(found.rows):,} trials." if len(rows) < len(found.rows) else ""
    lines = list(zip(*columns.values(), strict=True))
    return note(told) + table(list(columns), lines, [_look(row, found) for row in rows])


def _seeds(row: Mapping[str, Any]) -> str:
    return "{mean:.4f} ({low:.4f} to {high:.4f})".format_map(row["confirmed"]) if row["confirmed"] else ""


def _look(row: Mapping[str, Any], found: Findings) -> str:
    """Of a row: winners stand out, and what was not trained to its end is faded."""
    if row["front"] or (found.winner is not None and row["trial"] == found.winner.number):
        return "winner"
    return "" if row["state"] == State.COMPLETE else "faded"


def front_note(found: Findings) -> str:
    """What the front is; nothing of one objective."""
    told = "On the front is what no other complete trial beats in something without losing in something else."
    return note(told) if any(trial.on_front for trial in found.trials) else ""


def slices(found: Findings, drawn: str) -> str:
    """The charts beside each other, with what they are."""
    if not drawn:
        return ""
    told = f"{found.objective} by what was drawn of each field. Grey trials were stopped early, the star is the winner."
    is_part = len(found.searched) > MAX_SLICES
    fields = f"The {MAX_SLICES} fields that matter most, of {len(found.searched)}." if is_part else ""
    valued = len(with_value(found))
    points = left_out(min(MAX_SLICE_POINTS, valued), valued, "trials")
    return f'{note(said(told, fields, points))}<div class="small">{drawn}</div>'


def winner(found: Findings, matrix: str) -> str:
    """What the winner says of the validation images: in all, by class, and its worst mistakes."""
    answers = found.answers
    if answers is None:
        return note(found.no_answers)
    figures = answers.figures
    told = f"Trial {answers.trial} on {figures['images']:,} validation examples; the test split is left for promotion."
    metrics = " · ".join(f"{name} {short(value)}" for name, value in figures["metrics"].items())
    classes = table(list(figures["classes"][0]), [list(row.values()) for row in figures["classes"]])
    both = f'<div class="pair">{matrix}{classes}</div>' if matrix else classes
    return f"{note(told)}<p>{safe(metrics)}</p>{both}{_mistakes(answers)}"


def _mistakes(answers: Answers) -> str:
    """Those of the highest loss, with their pictures if they have any; nothing of a task without classes."""
    if not answers.figures["confusion"]:
        return ""
    shown, total = answers.mistakes, answers.num_mistakes
    told = f"{total:,} of {answers.figures['images']:,}" + (
        f"; the {len(shown)} of the highest loss:" if len(shown) < total else ", those of the highest loss first:"
    )
    title = f"<h3>Mistakes</h3>{note(told if total else 'There are none.')}"
    if not answers.pixels:
        rows = [[each.name, each.label, each.taken_for, each.probability, each.loss] for each in shown]
        return title + table(["row", "class", "taken for", "probability", "loss"], rows)
    figures = (
        f"<figure>{picture(pixels)}<figcaption><b>{safe(each.label)}</b> taken for <b>{safe(each.taken_for)}</b><br>"
        f'<span class="soft">{each.probability:.0%} sure · {safe(each.name)}</span></figcaption></figure>'
        for each, pixels in zip(shown, answers.pixels, strict=True)
    )
    return f'{title}<div class="mistakes">{"".join(figures)}</div>'


def failures(found: Findings) -> str:
    """Why trials failed."""
    return table(["trials", "why"], [[count, why] for why, count in found.failures])


def reproduction(found: Findings) -> str:
    """What to type, and what it was made with."""
    row, ran_with, best = found.study, found.ran_with, found.winner
    if found.is_imported:
        parts = [note("It was not begun here, so that there is no command to give.")]
    else:
        files = {retyped.study_file_name(row): retyped.study_file(row), retyped.QUEUE_FILE: retyped.queue_file(row)}
        parts = [block(f"The study, with this as {name}:", text) for name, text in files.items() if text]
        parts.append(f"<pre>{safe(retyped.study_command(row))}</pre>")
    if best and not found.is_imported:
        parts.append(block("The winner, from what is on record:", retyped.reproduce_command(found.title, best)))
        parts.append(block("Its configuration, anywhere:", retyped.train_command(row, best)))
    facts = {
        "typed": ran_with.get("command"),
        "commit": ran_with.get("commit"),
        "not committed": f"{len(ran_with['diff'].splitlines()):,} lines of changes" if ran_with.get("diff") else "",
        **ran_with.get("versions", {}),
        "machine": " · ".join(_machine(ran_with)),
        "winner's device": found.device,
        "winner's threads": best.threads if best and not found.is_imported else "",
        "data": ran_with.get("data_fingerprint"),
        "split": ran_with.get("split_fingerprint"),
        "recipe's code": row.spec.get("code_hash"),
    }
    return "".join(parts) + table(["", ""], [[name, value] for name, value in facts.items() if value])


def _machine(ran_with: Mapping[str, Any]) -> Iterable[str]:
    hardware = ran_with.get("hardware", {})
    if ran_with.get("machine"):
        yield str(ran_with["machine"])
    if hardware:
        yield f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_bytes'] / 1e9:.0f} GB"
        yield from hardware["gpus"]

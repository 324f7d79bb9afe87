"""Tables and lines for a terminal: what they hold, and that names from outside stay text."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from orchestrator import render

HOSTILE = ["<script>alert(1)</script>", "[bold red]x[/bold red]", "[/]", ":smile:", "'; DROP TABLE x; --", "a|b"]


def row(trial, value=0.5, reason=None, **params):
    return {
        "trial": trial,
        "objective": "val_accuracy",
        "value": value,
        "params": params,
        "epochs": 3,
        "seconds": 1.25,
        "state": "failed" if reason else "complete",
        "reason": reason,
        "confirms": None,
        "confirmed": None,
        "objectives": {},
        "front": False,
    }


def table(capsys):
    """The cells of the table that was printed, by line."""
    return [line.split() for line in capsys.readouterr().out.splitlines() if line.strip() and "─" not in line]


def test_leaderboard_has_a_column_for_each_parameter_that_differs(capsys):
    render.show_leaderboard(
        [row(7, 0.98765, lr=0.001234567, optimizer="sgd"), row(2, None, "oom", lr=1e-5, optimizer=None)]
    )
    assert table(capsys) == [
        ["trial", "val_accuracy", "lr", "optimizer", "epochs", "seconds", "state"],
        ["7", "0.9877", "0.001235", "sgd", "3", "1.2", "complete"],
        ["2", "1e-05", "3", "1.2", "failed", "(oom)"],
    ]


def test_several_objectives_have_a_column_each_and_one_for_the_front(capsys):
    both = {"val_accuracy": 0.98765, "num_parameters": 123456.0}
    rows = [{**row(7, 0.98765), "objectives": both, "front": True}, {**row(2, None, "oom"), "objectives": {}}]
    render.show_leaderboard(rows)
    assert table(capsys) == [
        ["trial", "val_accuracy", "num_parameters", "front", "epochs", "seconds", "state"],
        ["7", "0.9877", "1.235e+05", "yes", "3", "1.2", "complete"],
        ["2", "3", "1.2", "failed", "(oom)"],
    ]


def test_long_leaderboard_says_how_many_it_leaves_out(capsys):
    render.show_leaderboard([row(number) for number in range(12)], limit=10)
    out = capsys.readouterr().out
    assert "… and 2 more: orch compare" in out
    assert "\n 9 " in out
    assert "\n 10 " not in out


def test_leaderboard_of_no_trials_is_only_its_head(capsys):
    render.show_leaderboard([])
    assert table(capsys) == [["trial", "value", "epochs", "seconds", "state"]]


def test_table_in_a_pipe_is_never_cut(capsys):
    render.show_table(["path"], [["x" * 500]])
    assert "x" * 500 in capsys.readouterr().out


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_stays_text(text, capsys):
    render.show_table([text], [[text]])
    render.show_pairs({"name": text})
    render.show_leaderboard([row(0, note=text)])
    assert capsys.readouterr().out.count(text) == 4


def test_control_characters_are_written_out_and_move_nothing(capsys):
    text = "\x1b[2J\x1b]0;title\x07\r\x9b31m\u202e"
    render.show_table(["name"], [[text]])
    render.show_pairs({"name": text})
    render.show_leaderboard([row(0, note=text)])
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert out.count("\\x1b[2J\\x1b]0;title\\x07\\r\\x9b31m\\u202e") == 3


def test_pairs_are_aligned_and_a_traceback_keeps_its_lines(capsys):
    render.show_pairs({"state": "failed", "traceback": "Traceback:\n  File \x1b[31m", "none": None, "n": {"a": 0.5}})
    assert capsys.readouterr().out == (
        "state      failed\ntraceback  Traceback:\n  File \\x1b[31m\nnone       \nn          a=0.5\n"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.1235"), (1e-7, "1e-07"), (3, "3"), (True, "True"), (None, ""), ({"a": 0.5, "b": None}, "a=0.5, b=")],
)
def test_value_is_written_as_a_person_would(value, text):
    assert render.short(value) == text


def test_leaderboard_wider_than_the_terminal_puts_parameters_into_one_column():
    code = (
        "from orchestrator import render\n"
        "params = {f'parameter_{n}': n / 7 for n in range(12)}\n"
        "row = {'trial': 1, 'objective': 'val_accuracy', 'value': .5, 'epochs': 3, 'seconds': 1.0}\n"
        "row |= {'state': 'complete', 'reason': None, 'confirms': None, 'confirmed': None}\n"
        "row |= {'objectives': {}, 'front': False}\n"
        "render.show_leaderboard([{**row, 'params': params}])\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "90", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environment, check=True)
    os.close(theirs)
    out = re.sub(r"\x1b\[[0-9;]*m", "", os.read(ours, 1 << 16).decode())
    os.close(ours)
    assert out.split()[:6] == ["trial", "val_accuracy", "epochs", "seconds", "state", "parameters"]
    assert "parameter_11=1.571" in out
    assert max(map(len, out.splitlines())) <= 90

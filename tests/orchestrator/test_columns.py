"""Columns of a leaderboard: filtered, sorted, chosen, written as CSV."""

from __future__ import annotations

import csv
import io

import pytest
from sqlalchemy import event

from orchestrator import compare, views
from orchestrator.columns import Board, as_csv
from orchestrator.errors import UsageError
from orchestrator.settings import Settings
from orchestrator.tables import Epoch, State, Trial
from tests.support.sweeps import Sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A study whose trials have ended in every way, in a record that nothing mirrors."""
    home = tmp_path_factory.mktemp("columns")
    made = Sweep(Settings(home=home, record_url=f"sqlite:///{home / 'orch.db'}", tracking_uri=""))
    for number in range(4):
        made.run(lr=0.1 / (number + 1))
    made.run(State.PRUNED, num_epochs=2, optimizer="adamw")
    made.run(State.FAILED, num_epochs=1)
    made.train(made.start(lr=0.5), 1, 2)
    made.start()
    yield made
    made.close()


@pytest.fixture
def board(sweep):
    return views.board(sweep.record, sweep.study)


def numbers(board):
    return [row["trial"] for row in board.rows]


def test_board_has_the_rows_of_all_epochs_from_few_of_them(sweep, board):
    record, study = sweep.record, sweep.study
    trials, epochs = record.trials(study.id), record.epochs(study.id)
    assert board.rows == compare.leaderboard(trials, epochs, {}, study.spec["space"])
    assert {number: len(of) for number, of in record.telling_epochs(study.id).items()} == {
        **dict.fromkeys(range(5), 1),
        5: 1,
        6: 2,
    }


def test_board_takes_four_statements_and_does_not_read_all_epochs(sweep, monkeypatch):
    seen = []
    monkeypatch.delattr(type(sweep.record), "epochs")
    event.listen(sweep.record.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    views.board(sweep.record, sweep.study)
    assert sum(statement.startswith("SELECT") for statement in seen) == 4


def test_filter_and_sort_go_by_fields_metrics_and_states(board):
    board.filtered("lr>0.03 and state=complete")
    board.sort("lr")
    assert numbers(board) == [2, 1, 0]
    board.filtered("val_loss < 0.22 and train_loss > 0 and config.epochs = 3 and epochs = 3")
    assert numbers(board) == [2, 1]


def test_sort_descends_and_has_what_is_lacking_last_either_way(board):
    board.sort("-value")
    assert numbers(board)[:5] == [4, 3, 2, 1, 0]
    board.sort("value")
    assert numbers(board)[:5] == [0, 1, 2, 3, 4]
    board.sort("state,-trial")
    assert numbers(board) == [3, 2, 1, 0, 5, 4, 7, 6]


def test_model_size_that_only_the_first_epoch_tells_is_a_column(tmp_path):
    made = Sweep(Settings(home=tmp_path, record_url=f"sqlite:///{tmp_path / 'orch.db'}", tracking_uri=""))
    trial = made.start()
    made.train(trial, 1, num_parameters=1234.0)
    made.train(trial, 2, 3)
    made.end(trial)
    board = views.board(made.record, made.study)
    made.close()
    assert board.cells(["trial", "num_parameters", "metrics.val_loss"]) == [[0, 1234.0, 0.25]]


@pytest.mark.parametrize("call", [lambda board: board.sort("-lrr"), lambda board: board.cells(["lrr"])])
def test_unknown_column_is_met_with_the_nearest(board, call):
    with pytest.raises(UsageError, match=r"unknown column 'lrr'; did you mean 'lr'"):
        call(board)


def test_field_named_like_a_column_has_its_own_with_a_prefix():
    trials = [Trial(number=n, state=State.COMPLETE, value=0.5, params={}, config={"epochs": 5 + n}) for n in range(2)]
    epochs = {n: [Epoch(number=1, metrics={"val_accuracy": 0.5, "lr": 0.1}, seconds=1)] for n in range(2)}
    board = Board(compare.leaderboard(trials, epochs, {}), trials, {0: {"lr": 0.1}, 1: {"lr": 0.1}})
    assert board.cells(["epochs", "config.epochs", "lr"]) == [[1, 5, 0.1], [1, 6, 0.1]]
    assert board.shown()[:3] == ["trial", "val_accuracy", "config.epochs"]


def test_field_that_a_trial_did_not_draw_is_lacking():
    trials = [Trial(number=0, state=State.COMPLETE, value=0.5, params={"momentum": 0.8}, config={"momentum": 0.8})]
    trials.append(Trial(number=1, state=State.COMPLETE, value=0.5, params={}, config={"momentum": 0.9}))
    space = {"momentum": {"low": 0.5, "high": 0.9, "when": {"optimizer": ["sgd"]}}}
    board = Board(compare.leaderboard(trials, {}, {}, space), trials, {})
    board.filtered("momentum = none")
    assert numbers(board) == [1]


def test_csv_keeps_commas_quotes_and_line_ends_in_their_cells():
    text = as_csv(["a,b", "c"], [['say "x"', None], ["two\nlines", 0.1]])
    assert list(csv.reader(io.StringIO(text))) == [["a,b", "c"], ['say "x"', ""], ["two\\nlines", "0.1"]]

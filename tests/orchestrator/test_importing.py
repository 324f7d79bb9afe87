"""Studies of Optuna's taken into the record: what comes over, what it is good for, and what is refused."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace

import optuna
import pytest

from orchestrator.errors import UsageError
from orchestrator.importing import import_study
from orchestrator.mirror import sync
from orchestrator.store import Record
from orchestrator.tables import Reason, State
from tests.support.orch import Orch
from tests.support.sweeps import in_mlflow, in_optuna, in_tensorboard, settings_of

NUM_TRIALS = 8


def objective(trial):
    """What somebody's script did: two trials of each kind of end, by their numbers."""
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    units = trial.suggest_int("hidden", 4, 16, step=2)
    if trial.number == 1:
        raise RuntimeError("as the test asked")
    if trial.suggest_categorical("optimizer", ["sgd", "adamw"]) == "sgd":
        trial.suggest_float("momentum", 0.5, 0.9)
    for step in range(3):
        trial.report(0.5 + units / 100 + step / 1000, step)
        if trial.number in {2, 5} and step == 1:
            raise optuna.TrialPruned
    return 0.5 + units / 100 + rate


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A storage with a real study, of which one trial still runs and one waits."""
    url = f"sqlite:///{tmp_path_factory.mktemp('optuna') / 'old.db'}"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=url, study_name="old", direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1)
    )
    study.enqueue_trial({"optimizer": "sgd"})
    study.optimize(objective, n_trials=6, catch=RuntimeError)
    running = study.ask()
    running.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    running.report(0.25, 0)
    study.enqueue_trial({"hidden": 8})
    optuna.create_study(storage=url, study_name="loss", direction="minimize")
    optuna.create_study(storage=url, study_name="both", directions=["maximize", "minimize"])
    return url


@pytest.fixture
def settings(tmp_path):
    return settings_of(tmp_path / "mlruns")


def load(source, name="old"):
    return optuna.load_study(study_name=name, storage=source).trials


def test_every_trial_comes_over_with_its_number_values_and_epochs(source, settings, record_url):
    settings = replace(settings, record_url=record_url)
    found = import_study(settings, source, "old", renamed=["learning_rate=lr"])
    assert (found.study, found.num_trials) == ("old", NUM_TRIALS)
    assert found.states == {"complete": 3, "fail": 1, "pruned": 2, "running": 1, "waiting": 1}
    assert set(found.fields) == {"lr", "hidden", "optimizer", "momentum"}
    with closing(Record.open(settings.record_url)) as record:
        row = record.study("old")
        trials, epochs = record.trials(row.id), record.epochs(row.id)
    theirs = load(source)
    assert [trial.number for trial in trials] == [trial.number for trial in theirs] == list(range(NUM_TRIALS))
    for trial, their in zip(trials, theirs, strict=True):
        expected = {("lr" if name == "learning_rate" else name): value for name, value in their.params.items()}
        assert trial.params == trial.config == expected
        values = {epoch.number: epoch.metrics["val_accuracy"] for epoch in epochs.get(trial.number, [])}
        assert values == {step + 1: value for step, value in their.intermediate_values.items()}
        if their.datetime_start:
            assert trial.started_at == their.datetime_start.timestamp()
    states = [(trial.state, trial.reason) for trial in trials]
    complete, pruned = (State.COMPLETE, None), (State.PRUNED, None)
    failed, lost = (State.FAILED, Reason.ERROR), (State.FAILED, Reason.LOST)
    assert states == [complete, failed, pruned, complete, complete, pruned, lost, lost]
    assert [trial.value for trial in trials if trial.state is State.COMPLETE] == [theirs[n].value for n in (0, 3, 4)]
    assert trials[2].value == theirs[2].intermediate_values[1], "its best epoch"
    assert "it ran when it was taken in" in trials[6].message
    assert row.spec["space"]["hidden"] == {"low": 4, "high": 16, "log": False, "step": 2, "integer": True}
    assert row.spec["space"]["optimizer"] == {"choices": ["sgd", "adamw"]}


def test_storage_is_not_written(source, settings):
    with closing(sqlite3.connect(source.removeprefix("sqlite:///"))) as connection:
        before = list(connection.iterdump())
        import_study(settings, source, "old")
        assert list(connection.iterdump()) == before


def test_value_that_is_no_number_and_one_that_was_never_reported(settings, tmp_path):
    url = f"sqlite:///{tmp_path / 'o.db'}"
    study = optuna.create_study(storage=url, study_name="o", direction="maximize")
    for value in (0.75, float("inf")):
        study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), value)
    trial = study.ask()
    trial.report(float("nan"), 10)
    trial.report(0.5, 20)
    study.tell(trial, 0.6)
    import_study(settings, str(tmp_path / "o.db"), "o")
    with closing(Record.open(settings.record_url)) as record:
        row = record.study("o")
        trials, epochs = record.trials(row.id), record.epochs(row.id)
    assert [(trial.state, trial.reason, trial.value) for trial in trials] == [
        (State.COMPLETE, None, 0.75),
        (State.FAILED, Reason.DIVERGED, None),
        (State.COMPLETE, None, 0.6),
    ]
    assert {n: [(e.number, e.metrics) for e in found] for n, found in epochs.items()} == {
        0: [(1, {"val_accuracy": 0.75})],
        2: [(20, {"val_accuracy": 0.5})],
    }


@pytest.mark.slow
def test_mirrors_show_what_was_imported(source, settings):
    import_study(settings, source, "old")
    sync(settings)
    theirs = {trial.number: list(trial.intermediate_values.items()) for trial in load(source)}
    steps = {number: [(step + 1, value) for step, value in values] for number, values in theirs.items()}
    started = {number: values for number, values in steps.items() if number != 7}
    assert in_mlflow(settings, "val_accuracy", "old") == started
    assert in_optuna(settings, "old") == steps
    assert {n: v for n, v in in_tensorboard(settings, "val_accuracy", "old").items() if v} == {
        number: [(step, pytest.approx(value)) for step, value in values] for number, values in started.items() if values
    }


def test_bad_input_is_refused_and_nothing_is_written(source, settings, tmp_path):
    (tmp_path / "other.db").write_bytes(b"no database" * 100)
    with closing(sqlite3.connect(tmp_path / "mine.db")) as connection:
        connection.execute("CREATE TABLE studies (x)")
        connection.commit()
    cases = [
        ((str(tmp_path / "none.db"), "old"), {}, "there is no file"),
        (("sqlite://", "old"), {}, "there is no file"),
        ((str(tmp_path / "other.db"), "old"), {}, "file is not a database"),
        ((str(tmp_path / "mine.db"), "old"), {}, "is no storage of Optuna's: it has no table 'trials'"),
        (("postgresql://u:s3cret@h:port/d", "old"), {}, "URL is malformed"),
        (("nonsense://u:s3cret@h/d", "old"), {}, "no database driver 'nonsense'"),
        ((source, "odl"), {}, "did you mean 'old'?"),
        ((source, "loss"), {}, "has the objectives minimize; one that is maximised can be taken in"),
        ((source, "both"), {}, "has the objectives maximize, minimize"),
        ((source, "old"), {"target": "a/b"}, "study name 'a/b'"),
        ((source, "old"), {"target": "old@2"}, "'old@2' is how a later version"),
        ((source, "old"), {"renamed": ["lr"]}, "--rename lr: expected PARAMETER=FIELD"),
        ((source, "old"), {"renamed": ["rate=lr"]}, "unknown parameter 'rate'"),
        ((source, "old"), {"renamed": ["learning_rate=hidden"]}, "two parameters would be field 'hidden'"),
    ]
    for arguments, more, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            import_study(settings, *arguments, **more)
        assert "\n" not in str(caught.value)
        assert "s3cret" not in str(caught.value)
    assert not settings.home.exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".db") == ["mine.db", "other.db"]


# -- on the command line


@pytest.fixture
def orch(tmp_path):
    return Orch(tmp_path)


@pytest.mark.slow
def test_imported_study_is_looked_at_and_known_to_a_sweep_but_not_gone_on_with(orch, source):
    shown = orch.here("import", "old", "--storage", source, "--rename", "learning_rate=lr").stdout
    assert "study old has 8 trial(s): 3 complete, 1 fail, 2 pruned, 1 running, 1 waiting" in shown
    rows = orch.json("compare", "old")
    theirs = sorted((t.value for t in load(source) if t.state.name == "COMPLETE"), reverse=True)
    assert [row["value"] for row in rows[:3]] == theirs
    status = orch.json("status", "old")
    assert (status["total"], status["states"]["failed"], status["epochs_trained"]) == (8, 3, 3 * 3 + 2 * 2 + 1)
    assert "old" in orch.here("ls").stdout
    assert "there is a study 'old' already" in orch.here("import", "old", "--storage", source, code=2).stderr
    for command in (
        ["resume", "old"],
        ["extend", "old", "trials=+1"],
        ["promote", "old"],
        ["evaluate", "old"],
        [*orch.counting()[:2], "study=old", "hidden=4,5"],
    ):
        done = orch.here(*command, code=2)
        assert "study 'old' was imported: it can be looked at" in done.stderr
        assert done.stderr.count("\n") == 1

    keys = {"lr": "tag(log,interval(1e-4,1e-1))", "hidden": "range(4,17)", "optimizer": "sgd,adamw", "trials": 2}
    out = orch.here(*orch.counting("warm_start=old", epochs=1, **{**keys, "sampler": "tpe"})).stdout
    assert "the sampler knows 5 trial(s) of old; 3 do not fit" in out
    with orch.record() as record:
        study = record.study("s").spec
    known = [(each["params"]["hidden"], each["value"]) for each in study["known"] if each["state"] == "complete"]
    assert known == [(t.params["hidden"], t.value) for t in load(source) if t.state.name == "COMPLETE"]

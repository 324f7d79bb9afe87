"""New versions of a study: which trials are kept, that nothing is trained twice, that the former stays as it was."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from orchestrator import control, names, recorded, tables, versions
from orchestrator.errors import HeldError, UnknownNameError, UsageError
from orchestrator.leases import Holding, study_lease
from orchestrator.models import resolve_weights
from orchestrator.promote import promote
from orchestrator.search import Search
from orchestrator.settings import HOME_VARIABLE
from orchestrator.store import Record
from orchestrator.study import Version, load
from orchestrator.tables import Reason, State
from recipes.files import sha256_of
from tests.support.orch import COUNTING, Orch
from tests.support.sweeps import in_mlflow, runs_of, settings_of
from tests.support.trained import STRONG, WEAK, add_study

SPACE = ("hidden=range(4,16)", "lr=tag(log,interval(1e-6,1e-1))")


def study_of(*keys, name="s"):
    return load([f"recipe={COUNTING}", f"study={name}", *keys])


@pytest.fixture
def settings(tmp_path):
    return settings_of(tmp_path / "mlruns")


@pytest.fixture
def record(settings):
    with closing(Record.open(settings.record_url, create=True)) as found:
        yield found


def add_trial(record, settings, lease, row, params, state=State.COMPLETE, *, num_epochs=2, confirms=None, **ended):
    """A trial with epochs, an export and a file, as if it had been trained."""
    study = recorded.from_record(row)
    config = study.config(params) | ({"seed": study.seed + 1} if confirms is not None else {})
    trial = record.add_trial(lease, row.id, params=params, config=config, threads=1, confirms=confirms)
    record.start_attempt(lease, trial, "host/worker-0")
    for number in range(1, num_epochs + 1):
        metrics = {"val_accuracy": 0.5 + trial.number / 100, "val_loss": 1.0}
        epoch = tables.Epoch(
            trial_id=trial.id, number=number, attempt=1, metrics=metrics, seconds=0.1, recorded_at=time.time()
        )
        record.add_epochs(lease, trial, [epoch])
    folder = settings.attempt_folder(row.name, trial.number, 1)
    folder.mkdir(parents=True)
    (folder / "best.safetensors").write_text(f"weights of {params}")
    manifest = {"best.safetensors": sha256_of(folder / "best.safetensors")}
    record.end_attempt(lease, trial, 1, state, manifest=manifest, value=0.5, best_epoch=1, **ended)
    (folder / "model.onnx").write_text(f"network of {params}")
    export = tables.Export(
        trial_id=trial.id,
        file=str((folder / "model.onnx").relative_to(settings.home)),
        sha256=sha256_of(folder / "model.onnx"),
        size_bytes=1,
        max_difference=0.0,
        error=None,
        recorded_at=time.time(),
    )
    record.add_export(lease, trial, export)


@pytest.fixture
def begun(record, settings):
    """Study `s` with five complete trials of hidden 4, 6, 8, 10 and 12, each with its own rate."""
    with Holding(record, study_lease("s")) as lease:
        row = recorded.write(record, lease, study_of(*SPACE))
        for place in range(5):
            add_trial(record, settings, lease, row, {"hidden": 4 + 2 * place, "lr": 10.0 ** (place - 5)})
    return row


def everything(record, name):
    """All that a record holds of a study, without the ids of rows."""
    row = record.study(name)
    exports, epochs = record.exports(row.id), record.epochs(row.id)
    return [
        (
            trial.number,
            trial.state,
            trial.params,
            trial.config,
            trial.value,
            [(epoch.number, epoch.metrics, epoch.recorded_at) for epoch in epochs.get(trial.number, [])],
            [(attempt.number, attempt.state, attempt.manifest) for attempt in record.attempts(trial.id)],
            exports[trial.number].file if trial.number in exports else None,
        )
        for trial in record.trials(row.id)
    ]


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        (("hidden=range(4,9)", SPACE[1]), [0, 1, 2]),
        (("hidden=4,10,12", SPACE[1]), [0, 3, 4]),
        (("hidden=range(4,16,4)", SPACE[1]), [0, 2, 4]),
        (("hidden=6", SPACE[1]), [1]),
        ((SPACE[0], "lr=tag(log,interval(2e-4,1))"), [2, 3, 4]),
        ((*SPACE, "weight_decay=interval(0,1)"), [0, 1, 2, 3, 4]),
        ((*SPACE, "weight_decay=interval(0.5,1)"), []),
        ((*SPACE, "weight_decay=0.5"), []),
        ((*SPACE, "seed=1"), []),
        ((*SPACE, "split_seed=1"), []),
        ((*SPACE, "trials=7", "device=cpu"), None),
    ],
)
def test_trials_are_kept_where_their_configuration_is_one_of_the_new_version(record, settings, begun, keys, kept):
    before, notes = everything(record, "s"), []
    study = versions.begin(record, settings, study_of(*keys), notes.append)
    assert everything(record, "s") == before
    if kept is None:  # it is the same study
        assert study.name == "s"
        assert [row.name for row in record.studies()] == ["s"]
        return
    assert (study.name, study.version) == ("s@2", Version(of="s", former="s", kept=tuple(kept)))
    assert recorded.from_record(record.study("s@2")) == study
    assert notes[0].startswith("new version: s@2 differs from s (")
    assert notes[-1] == f"{len(kept)} trial(s) of s are kept, {5 - len(kept)} do not fit"
    found = everything(record, "s@2")
    assert [trial[0] for trial in found] == list(range(len(kept)))
    assert [(*trial[3:7], trial[1]) for trial in found] == [(*before[n][3:7], before[n][1]) for n in kept]
    assert [trial[2] for trial in found] == [{name: before[n][3][name] for name in study.space} for n in kept]
    for trial, number in zip(found, kept, strict=True):
        assert trial[7] == f"trials/s@2/{trial[0]:04d}/1/model.onnx"
        assert (settings.home / trial[7]).read_text() == f"network of {before[number][2]}"


def test_constraint_and_failure_leave_trials_behind_and_seeds_go_with_their_leader(record, settings, begun, tmp_path):
    with Holding(record, study_lease("s")) as lease:
        for leader in (0, 3):
            params = {"hidden": 4 + 2 * leader, "lr": 10.0 ** (leader - 5)}
            add_trial(record, settings, lease, begun, params, confirms=leader)
        failed = {"state": State.FAILED, "message": "no"}
        for reason in (Reason.ERROR, Reason.LOST, Reason.OOM):
            params = {"hidden": 5, "lr": 1e-3 + len(reason) / 1e4}
            add_trial(record, settings, lease, begun, params, reason=reason, **failed)
    study = study_of(*SPACE)
    study = study.model_copy(update={"constraints": ("hidden < 9",)})
    began = versions.begin(record, settings, study, lambda _: None)
    assert began.version.kept == (0, 1, 2, 5, 9), "the seed of 3 stays with it, what failed by itself stays behind"
    trials = record.trials(record.study("s@2").id)
    assert [trial.confirms for trial in trials] == [None, None, None, 0, None]
    assert [trial.reason for trial in trials][-1] is Reason.OOM


def test_new_version_whose_writing_fails_leaves_the_record_as_it_was(record, settings, begun, monkeypatch):
    before, copied, count = everything(record, "s"), versions._copied, [0]

    def dies(row, **changes):
        count[0] += isinstance(row, tables.Epoch)
        if count[0] == 3:  # of the second trial
            raise RuntimeError
        return copied(row, **changes)

    monkeypatch.setattr(versions, "_copied", dies)
    with pytest.raises(RuntimeError):
        versions.begin(record, settings, study_of("hidden=range(4,9)", SPACE[1]), lambda _: None)
    assert [row.name for row in record.studies()] == ["s"]
    with record.read() as session:
        assert session.query(tables.Trial).count() == 5
    monkeypatch.undo()
    assert settings.trial_folder("s@2", 2).exists(), "files come first"
    versions.begin(record, settings, study_of("hidden=6", SPACE[1]), lambda _: None)
    assert len(everything(record, "s@2")) == 1
    assert not settings.trial_folder("s@2", 2).exists(), "what the first try left is gone"
    assert everything(record, "s") == before


@pytest.mark.parametrize(("checkpoints", "kept"), [("", (0, 1, 2, 3, 4, 5)), ("s3://bucket", (0, 1, 2, 3, 4))])
def test_paused_trial_is_kept_if_its_checkpoint_is_here(record, settings, begun, checkpoints, kept):
    with Holding(record, study_lease("s")) as lease:
        add_trial(record, settings, lease, begun, {"hidden": 5, "lr": 1e-3}, State.PAUSED)
        budget = {**begun.spec["budget"], "checkpoints": checkpoints}
        record.update_study(lease, begun.id, {**begun.spec, "budget": budget})
    assert versions.begin(record, settings, study_of("hidden=range(4,14)", SPACE[1]), print).version.kept == kept


def test_study_that_runs_gets_no_new_version(record, settings, begun, monkeypatch):
    monkeypatch.setattr("orchestrator.leases.is_gone", lambda holder: holder is None)
    with Holding(record, study_lease("s")), pytest.raises(HeldError):
        versions.begin(record, settings, study_of("hidden=6", SPACE[1]), lambda _: None)
    assert [row.name for row in record.studies()] == ["s"]


def test_a_name_means_the_newest_version_and_a_number_that_one(record, settings, begun):
    with Holding(record, study_lease("s@3")) as lease:
        recorded.write(record, lease, study_of(*SPACE, name="s@3"))  # as anyone may have called one before
    tell = [].append
    assert versions.meant(record, study_of(*SPACE)).name == "s"
    assert versions.begin(record, settings, study_of("hidden=range(4,9)", SPACE[1]), tell).name == "s@2"
    again = versions.meant(record, study_of("hidden=range(4,7)", SPACE[1]))
    assert again.name == "s@2"
    third = versions.begin(record, settings, again, tell)
    assert (third.name, third.version) == ("s@4", Version(of="s", former="s@2", kept=(0, 1)))
    meant = {reference: names.named(record, reference).name for reference in ("s", "s@1", "s@2", "s@3", "s@4", "s@3@1")}
    assert meant == {"s": "s@4", "s@1": "s", "s@2": "s@2", "s@3": "s@3", "s@4": "s@4", "s@3@1": "s@3"}
    titles = {row.name: names.title(record, row) for row in record.studies()}
    assert titles == {"s": "s@1", "s@2": "s@2", "s@3": "s@3", "s@4": "s@4"}
    assert [row.name for row in record.studies() if names.is_newest(record, row)] == ["s@3", "s@4"]
    first, number = names.origin(record, record.study("s@4"), 1)
    assert (first.name, number) == ("s@2", 1)
    with pytest.raises(UnknownNameError, match="unknown study 's@7'"):
        versions.meant(record, study_of(*SPACE, name="s@7"))
    for changes in (
        lambda: names.check_open(record, record.study("s")),
        lambda: control.extend(record, "s@1", ["trials=+1"]),
        lambda: control.retry(record, "s@1"),
    ):
        with pytest.raises(UsageError, match="s@1 stays as it is, since s@4 is a later version"):
            changes()

    with Holding(record, study_lease("s")) as lease:
        record.delete_study(lease, begun.id)
    assert names.named(record, "s").name == "s@4"
    assert names.origin(record, record.study("s@2"), 0) is None


def test_every_kind_of_record_keeps_trials_and_knows_the_newest(record_url, settings):
    with closing(Record.open(record_url, create=True)) as record:
        with Holding(record, study_lease("s")) as lease:
            row = recorded.write(record, lease, study_of(*SPACE))
            add_trial(record, settings, lease, row, {"hidden": 6, "lr": 0.01})
        before = everything(record, "s")
        assert versions.begin(record, settings, study_of("hidden=6", SPACE[1]), lambda _: None).name == "s@2"
        assert names.named(record, "s").name == "s@2"
        assert everything(record, "s") == before
        assert [trial[4:7] for trial in everything(record, "s@2")] == [trial[4:7] for trial in before]


def test_queue_of_a_new_version_begins_after_what_is_kept(record, settings, begun, tmp_path):
    (tmp_path / "first.yaml").write_text("[{hidden: 7, lr: 0.01}, {hidden: 8}]")
    keys = ("hidden=range(4,9)", SPACE[1], f"enqueue={tmp_path / 'first.yaml'}", "sampler=random")
    study = versions.begin(record, settings, study_of(*keys), lambda _: None)
    row = record.study(study.name)
    search = Search.of(study)
    search.restore(record.trials(row.id), record.epochs(row.id))
    assert search.ask(3) == {"hidden": 7, "lr": 0.01}
    assert search.ask(4)["hidden"] == 8


@pytest.mark.slow
def test_best_of_a_later_version_is_promoted_against_the_champion_of_the_former(settings, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(settings.home))
    add_study(settings, [WEAK], name="digits")
    assert promote(settings, "digits").version == "1"
    add_study(settings, [STRONG], name="digits@2")
    with closing(Record.open(settings.record_url)) as record, Holding(record, study_lease("digits@2")) as lease:
        row = record.study("digits@2")
        version = Version(of="digits", former="digits", kept=()).model_dump(mode="json")
        record.update_study(lease, row.id, {**row.spec, "version": version})
    promoted = promote(settings)
    assert (promoted.model, promoted.version, promoted.previous) == ("digits", "2", "1")
    assert {"seen_test_images", "champion_seen_test_images"} <= {gate["name"] for gate in promoted.gates}
    weights = resolve_weights(settings, "models:/digits@champion")
    assert weights.parent == settings.attempt_folder("digits@2", 0, 1)


# -- whole sweeps


@pytest.fixture
def orch(tmp_path):
    return Orch(tmp_path)


@pytest.mark.slow
def test_new_version_of_a_sweep_trains_only_what_is_new(orch):
    orch(*orch.counting(trials=6, epochs=2, export="best", workers=2))
    settings = settings_of(orch.home)
    with orch.record() as record:
        first, first_runs = everything(record, "s"), in_mlflow(settings)
    kept = [trial[0] for trial in first if trial[2]["hidden"] < 10]
    assert 0 < len(kept) < 6
    changed = orch.counting(trials=6, epochs=2, export="best", workers=2, hidden="range(4,10)")
    refused = orch.here(*changed, code=2)
    assert "space.hidden.high: 15 -> 9" in refused.stderr
    assert "--new-version" in refused.stderr
    assert orch.begun().total() == 12

    out = orch(*changed, "--new-version").stdout
    assert "s@2 differs from s (space.hidden.high: 15 -> 9)" in out
    assert f"{len(kept)} trial(s) of s are kept, {6 - len(kept)} do not fit" in out
    assert orch.begun().total() == 12 + 2 * (6 - len(kept)), "what is kept is not trained again"
    with orch.record() as record:
        found, row = everything(record, "s@2"), record.study("s@2")
        assert {trial[1] for trial in found} == {State.COMPLETE}
        assert {trial[2]["hidden"] for trial in found} == set(range(4, 10)), "each configuration once"
        assert [trial[4:7] for trial in found[: len(kept)]] == [first[number][4:7] for number in kept]
        for number, attempts in [(trial[0], trial[6]) for trial in found]:
            for name, sha256 in attempts[-1][2].items():
                assert sha256_of(settings.attempt_folder("s@2", number, 1) / name) == sha256
        (export,) = record.exports(row.id).values()
        assert sha256_of(settings.home / export.file) == export.sha256
        assert everything(record, "s") == first
    assert in_mlflow(settings) == first_runs
    steps = {number: [step for step, _ in values] for number, values in in_mlflow(settings, name="s@2").items()}
    assert steps == {number: [1, 2] for number in range(6)}
    _, runs = runs_of(settings, "s@2")
    assert [runs[number].data.tags.get("orch.kept_from") for number in range(len(kept))] == [f"s/{n}" for n in kept]
    assert runs[-1].data.tags["orch.version_of"] == "s"

    shown = orch.json("show", "s/0")
    assert (shown["study"], shown["kept_from"]) == ("s@2", f"s@1/{kept[0]}")
    assert orch.here("logs", "s/0").stdout == orch.here("logs", shown["kept_from"]).stdout != ""
    assert [row["study"] for row in orch.json("ls")] == ["s@1", "s@2"]
    assert "study s@2 is complete: 6 trials" in orch.here(*changed).stdout
    assert "s@1 stays as it is, since s@2 is a later version of it" in orch.here("resume", "s@1", code=2).stderr
    assert "s@2 is deleted" in orch.here("delete", "s", "--yes").stdout
    assert [row["study"] for row in orch.json("ls")] == ["s"]


@pytest.mark.slow
def test_paused_trial_of_the_former_version_goes_on_from_its_checkpoint(orch):
    chosen = {"hidden": 8, "pruner": "asha-pause", "epochs": 3, "workers": 1, "sampler": "random"}
    orch.here(*orch.counting("lr=1e-5,1e-3,1e-2", trials=3, max_epochs_total=3, **chosen))
    orch.here(*orch.counting("lr=1e-5,1e-2", trials=2, **chosen), "--new-version")
    with orch.record() as record:
        former, found = everything(record, "s"), everything(record, "s@2")
    assert [len(trial[5]) for trial in former] == [1, 1, 1]
    assert {trial[1] for trial in former} <= {State.PAUSED, State.WAITING}
    states = {trial[3]["lr"]: (trial[1], [epoch[0] for epoch in trial[5]]) for trial in found}
    assert states == {1e-5: (State.PRUNED, [1]), 1e-2: (State.COMPLETE, [1, 2, 3])}
    assert orch.begun().total() == 3 + 2


@pytest.mark.slow
def test_plan_of_a_new_version_counts_what_is_kept_and_records_nothing(orch):
    orch.here(*orch.counting(trials=4, epochs=1, workers=1))
    changed = [key for key in orch.counting(trials=6, epochs=1, workers=1, hidden="range(4,12)") if key != "sweep"]
    with orch.record() as record:
        before = everything(record, "s")
    num_fit = sum(trial[2]["hidden"] < 12 for trial in before)
    shown = orch.json("plan", *changed, "--new-version")
    assert (shown["study"], shown["num_ended"], shown["first_trial"]) == ("s@2", num_fit, num_fit)
    assert shown["notes"][1] == f"{num_fit} trial(s) of s are kept, {4 - num_fit} do not fit"
    assert [row["study"] for row in orch.json("ls")] == ["s"]

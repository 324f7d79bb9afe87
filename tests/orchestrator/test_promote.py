from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from sqlalchemy import select

from orchestrator import examination
from orchestrator import promote as promote_module
from orchestrator.card import Subject, plain
from orchestrator.control import set_budget
from orchestrator.errors import HeldError, RefusedError, UnavailableError, UnknownNameError, UsageError
from orchestrator.leases import Holding, holder_of
from orchestrator.models import resolve_model
from orchestrator.promote import history, promote, rollback
from orchestrator.store import Record
from orchestrator.tables import Export, Promotion, Sample, Study
from recipes import data
from recipes.config import DatasetConfig
from tests.support.cards import assert_intervals, intervals_of
from tests.support.orch import Orch, wait_until
from tests.support.trained import STRONG, WEAK, add_study, copy_home, delete_study, make_home

if TYPE_CHECKING:
    from orchestrator.settings import Settings

pytestmark = pytest.mark.slow

NAME = "cnn-digits"
NOT_WORSE = (
    r"^not promoted: test_correct is \d+, at least \d+ is asked "
    r"\(difference -0\.\d+, 95% interval -0\.\d+ to -0\.\d+\); mcnemar_p is [\d.e-]+, at least 0\.05 is asked$"
)


@pytest.fixture(scope="session")
def template(empty_home, tmp_path_factory):
    """A state folder with a study of two trials, of which the second is the better."""
    return make_home(tmp_path_factory.mktemp("template") / "mlruns", empty_home, [WEAK, STRONG])


@pytest.fixture
def settings(template, tmp_path, monkeypatch):
    return copy_home(template, tmp_path, monkeypatch)


def replace_study(settings: Settings, *trials: dict, **how) -> None:
    """The study of the same name again, with other trials."""
    delete_study(settings, NAME)
    add_study(settings, trials, name=NAME, **how)


def ledger_of(settings: Settings) -> list[tuple[str, str | None, str]]:
    """Kind, from and to of all entries, in order."""
    with closing(Record.open(settings.record_url)) as record, record.read() as session:
        rows = session.scalars(select(Promotion).order_by(Promotion.id))
        return [(row.kind, row.from_version, row.to_version) for row in rows]


def study_of(settings: Settings) -> Study:
    with closing(Record.open(settings.record_url)) as record:
        return record.study(NAME)


def aliases_of(settings: Settings) -> dict[str, str]:
    found = MlflowClient(settings.tracking_uri).get_registered_model(NAME).aliases
    return {alias: str(version) for alias, version in found.items()}


def versions_of(settings: Settings) -> int:
    return len(MlflowClient(settings.tracking_uri).search_model_versions(f"name='{NAME}'"))


def attempt_of(settings: Settings, trial: int = 1) -> Path:
    return settings.attempt_folder(NAME, trial, 1)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# -- what is promoted


def test_test_images_that_were_seen_at_another_size_are_found():
    dataset = data.load(DatasetConfig(image_size=16))
    entries = []
    for seed in (0, 1):
        seen = DatasetConfig(split_seed=seed)
        marks = dict(zip(("data_fingerprint", "split_fingerprint"), data.fingerprints(seen), strict=True))
        entries.append({**seen.model_dump(), **marks})
    assert examination._num_seen(dataset, 16, entries[:1]) == 0
    assert 250 < examination._num_seen(dataset, 16, entries[1:]) < 320


def test_promotion_without_the_data_is_refused(tmp_path):
    config = DatasetConfig(data=f"folder:{tmp_path / 'gone'}")
    with pytest.raises(RefusedError, match=r"^not promoted: folder .*/gone does not exist$"):
        examination._load(config)


def test_promote_makes_the_best_trial_a_version_that_mlflow_can_read(settings):
    promoted = promote(settings)
    assert promoted.to_json().keys() == {
        "model",
        "version",
        "alias",
        "previous",
        "test_accuracy",
        "gates",
        "already",
        "reason",
    }
    assert (promoted.model, promoted.version, promoted.previous, promoted.already) == (NAME, "1", None, False)
    assert promoted.score > 0.9
    assert {gate["name"] for gate in promoted.gates} == {"damaged_files", "onnx_difference", "seen_test_images"}
    assert all(gate.keys() == {"name", "figure", "limit", "passed"} and gate["passed"] for gate in promoted.gates)
    assert aliases_of(settings) == {"champion": "1"}
    assert ledger_of(settings) == [("promoting", None, "1"), ("promote", None, "1")]

    client = MlflowClient(settings.tracking_uri)
    version = client.get_model_version_by_alias(NAME, "champion")
    run = client.get_run(version.run_id)
    assert run.data.tags["orch.trial"] == "1"
    (output,) = run.outputs.model_outputs
    assert version.source == f"models:/{output.model_id}"
    logged = client.get_logged_model(output.model_id)
    assert logged.source_run_id == version.run_id
    assert logged.status == "READY"

    mlflow.set_tracking_uri(settings.tracking_uri)
    description = mlflow.models.get_model_info(f"models:/{NAME}@champion")
    (images,) = description.signature.inputs.inputs
    assert (images.name, images.type, images.shape) == ("images", np.dtype("uint8"), (-1, -1, -1, 1))
    assert sha256(attempt_of(settings) / "model.onnx") == sha256(resolve_model(settings, f"models:/{NAME}@champion"))


def test_card_tells_what_it_is_and_its_four_lines_load_the_model(settings):
    promote(settings)
    version = MlflowClient(settings.tracking_uri).get_model_version_by_alias(NAME, "champion")
    mlflow.set_tracking_uri(settings.tracking_uri)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion"))
    card = (folder / "MODEL_CARD.md").read_text()
    assert version.description == card
    for title in (
        "Data",
        "On the test images",
        "Gates",
        "Each class",
        "What training cost",
        "Where it is from",
        "Limits",
    ):
        assert f"\n## {title}\n" in card
    identity = study_of(settings).identity
    for told in (version.run_id, identity["data"], identity["split"], sha256(folder / "model.onnx"), "359 test"):
        assert told in card
    assert intervals_of(card)["accuracy"][1] == pytest.approx(promote(settings).score, abs=1e-4)
    assert_intervals(card, "calibration_error")
    classes = card[card.index("## Each class") : card.index("## What")]
    assert all(f"| {name} | " in classes for name in map(str, range(10)))

    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(code.splitlines()) == 4
    example = mlflow.models.Model.load(folder).load_input_example(str(folder))
    names = dict(example)
    exec(code, names)
    assert names["answers"].shape == (1, 10)
    assert names["answers"].sum() == pytest.approx(1, abs=1e-5)


def test_card_tells_the_energy_where_gpus_tell_their_power(settings):
    with closing(Record.open(settings.record_url)) as record:
        study = record.study(NAME)
        trial, seconds = record.trials(study.id)[1], sum(epoch.seconds for epoch in record.epochs(study.id)[1])
        attempt = record.attempts(trial.id)[-1]
        assert Subject.of(record, study, trial, attempt).joules is None
        with record.write() as session:
            for at, watts in ((1.0, 100.0), (2.0, 300.0)):
                metrics = {"system/gpu_0_power_usage_watts": watts, "system/gpu_1_power_usage_watts": 50.0}
                session.add(Sample(trial_id=trial.id, recorded_at=at, metrics={**metrics, "system/cpu": 1.0}))
        assert Subject.of(record, study, trial, attempt).joules == pytest.approx(250 * seconds)
    promote(settings)
    card = MlflowClient(settings.tracking_uri).get_model_version(NAME, "1").description
    assert f"Energy: {250 * seconds / 1000:.1f} kJ, by the GPUs' own readings." in card


def test_names_in_a_card_stay_text():
    name = plain("<img src=x onerror=alert(1)>|[a](javascript:b)\n# c `d`")
    assert not set("<>\n") & set(name)
    assert name.count("\\") == 6


def test_promote_again_changes_nothing_and_says_so(settings):
    before = dict(os.environ)
    first = promote(settings)
    left = {name: value for name, value in os.environ.items() if before.get(name) != value}
    assert not [name for name in left if "REQUEST" in name], "a mirror in this process must not try again"
    second = promote(settings, NAME)
    assert second.already
    assert {**second.to_json(), "already": False} == first.to_json()
    assert versions_of(settings) == 1
    assert len(ledger_of(settings)) == 2


@pytest.mark.slow
def test_a_better_model_takes_over_and_rollback_swaps(settings):
    replace_study(settings, WEAK)
    assert promote(settings).score < 0.5
    replace_study(settings, STRONG)
    better = promote(settings)
    figures = {gate["name"]: gate for gate in better.gates}
    assert (better.version, better.previous) == ("2", "1")
    assert figures["test_correct"]["figure"] > figures["test_correct"]["limit"]
    assert figures["mcnemar_p"]["figure"] > 0.5
    assert aliases_of(settings) == {"champion": "2", "previous": "1"}

    back = rollback(settings, NAME)
    assert (back.version, back.previous) == ("1", "2")
    assert back.score < 0.5
    assert aliases_of(settings) == {"champion": "1", "previous": "2"}
    assert rollback(settings, NAME).version == "2"
    assert [entry for entry in ledger_of(settings) if entry[0] in {"promote", "rollback"}] == [
        ("promote", None, "1"),
        ("promote", "1", "2"),
        ("rollback", "2", "1"),
        ("rollback", "1", "2"),
    ]


@pytest.mark.slow
def test_a_trial_without_onnx_is_exported_first(settings):
    replace_study(settings, STRONG, export=False)
    assert promote(settings).version == "1"
    with closing(Record.open(settings.record_url)) as record:
        export = record.exports(record.study(NAME).id)[0]
    assert sha256(settings.home / export.file) == export.sha256
    assert promote(settings).already


def test_a_name_of_html_and_sql_stays_text(settings):
    name = "x'; DROP TABLE studies; -- \"<b>é</b".replace("/", "")
    add_study(settings, [STRONG], name=name)
    assert promote(settings, name).model == name
    assert promote(settings, name).already
    assert resolve_model(settings, f"models:/{name}@champion").is_file()


@pytest.mark.slow
def test_a_named_trial_is_promoted_to_an_alias_of_its_own_with_a_way_back(settings):
    promoted = promote(settings, NAME, 0, alias="shadow")
    assert (promoted.version, promoted.alias, promoted.previous) == ("1", "shadow", None)
    assert promoted.score < 0.5, "it is not the best"
    assert promote(settings, NAME, 1, alias="shadow").version == "2"
    assert promote(settings).version == "2", "the same file is the same version"
    assert aliases_of(settings) == {"shadow": "2", "shadow-previous": "1", "champion": "2"}
    assert rollback(settings, NAME, alias="shadow").version == "1"
    assert aliases_of(settings) == {"shadow": "1", "shadow-previous": "2", "champion": "2"}
    with pytest.raises(UsageError, match="version 2 of model 'cnn-digits' is @champion already"):
        rollback(settings, NAME, to="2")
    assert rollback(settings, NAME, to="1").previous == "2"
    with pytest.raises(UsageError, match="version 9 of model 'cnn-digits' is none that `orch promote` made"):
        rollback(settings, NAME, to="9")
    with closing(Record.open(settings.record_url)) as record:
        moves = history(record, NAME)
    assert [(move["kind"], move["alias"], move["from"], move["to"]) for move in moves] == [
        ("promote", "shadow", None, "1"),
        ("promote", "shadow", "1", "2"),
        ("promote", "champion", None, "2"),
        ("rollback", "shadow", "2", "1"),
        ("rollback", "champion", "2", "1"),
    ]
    assert all(move["who"] and move["figures"]["latency_ms"] > 0 and not move["reason"] for move in moves)


@pytest.mark.parametrize(
    "alias", ["latest", "Latest", "v3", "previous", "shadow-previous", "a b", "", "x/y", "é", "a" * 201]
)
def test_an_alias_that_is_reserved_is_refused(settings, alias):
    with pytest.raises(UsageError, match=r"^alias '"):
        promote(settings, alias=alias)
    assert ledger_of(settings) == []


def test_a_dry_run_says_what_would_be_and_moves_nothing(settings):
    tried = promote(settings, dry_run=True)
    assert (tried.version, tried.alias, len(tried.gates)) == (None, "champion", 3)
    assert ledger_of(settings) == []
    with pytest.raises(UnknownNameError):
        rollback(settings, NAME)
    assert promote(settings).score == tried.score


# -- what is refused


@pytest.mark.parametrize(
    ("limit", "gate"),
    [
        ("min_metric=0.999", "test_metric is 0.9"),
        ("min_class_recall=1", "worst_class_recall is 0."),
        ("max_calibration_error=0.001", "calibration_error is 0.0"),
        ("max_latency_ms=0.0001", "latency_ms is "),
        ("max_size_mb=0.001", "size_mb is 0.0"),
    ],
)
def test_a_limit_that_is_not_kept_refuses_and_one_that_is_kept_is_noted(settings, limit, gate):
    with pytest.raises(RefusedError, match=f"^not promoted: {gate}.* is asked$"):
        promote(settings, limits=[limit])
    assert ledger_of(settings) == []
    key = limit.partition("=")[0]
    kept = "0.5" if key.startswith("min_") else "1"
    names = [gate["name"] for gate in promote(settings, limits=[f"{key}={kept}"], dry_run=True).gates]
    assert len(names) == 4
    assert gate.startswith(names[-1])


def test_limits_of_the_study_count_and_other_keys_are_refused(settings):
    with closing(Record.open(settings.record_url)) as record:
        set_budget(record, NAME, ["min_metric=0.999"])
    with pytest.raises(RefusedError, match=r"test_metric is 0\.\d+, at least 0\.999"):
        promote(settings)
    assert promote(settings, limits=["min_metric=none"], dry_run=True)
    with pytest.raises(UsageError, match="trials=3: promotion takes min_metric, "):
        promote(settings, limits=["trials=3"])
    with pytest.raises(UsageError, match="min_class_recall=2: "):
        promote(settings, limits=["min_class_recall=2"])


@pytest.mark.slow
def test_a_reason_lets_a_worse_model_through_and_is_kept(settings):
    promote(settings)
    replace_study(settings, WEAK)
    forced = promote(settings, force="the old one is too slow")
    assert (forced.version, forced.reason) == ("2", "the old one is too slow")
    with closing(Record.open(settings.record_url)) as record:
        last = history(record, NAME)[-1]
    assert last["reason"] == "the old one is too slow"
    assert [gate["name"] for gate in last["gates"] if not gate["passed"]] == ["test_correct", "mcnemar_p"]
    card = MlflowClient(settings.tracking_uri).get_model_version_by_alias(NAME, "champion").description
    assert "**not passed**" in card
    assert "Promoted all the same: the old one is too slow" in card

    flip_a_byte(resolve_model(settings, f"models:/{NAME}@champion"))
    replace_study(settings, STRONG)
    with pytest.raises(RefusedError, match="the present champion cannot be judged"):
        promote(settings)
    forced = promote(settings, force="the champion is damaged")
    assert "champion_judged" in [gate["name"] for gate in forced.gates if not gate["passed"]]


def test_no_reason_lets_a_damaged_file_through(settings):
    flip_a_byte(attempt_of(settings) / "best.safetensors")
    with pytest.raises(RefusedError, match="has SHA-256"):
        promote(settings, force="I know better")
    assert ledger_of(settings) == []


def test_a_reason_that_was_not_needed_is_not_kept(settings):
    assert promote(settings, force="in case").reason is None


def test_a_worse_model_is_refused_with_the_figures(settings):
    promote(settings)
    replace_study(settings, WEAK)
    with pytest.raises(RefusedError, match=NOT_WORSE):
        promote(settings)
    assert aliases_of(settings) == {"champion": "1"}
    assert versions_of(settings) == 1
    assert len(ledger_of(settings)) == 2


def test_a_champion_that_was_trained_on_test_images_stops_promotion(settings):
    promote(settings)
    replace_study(settings, STRONG, split_seed=1)
    # Of 359 test images of one split, another takes four in five into training and validation.
    with pytest.raises(RefusedError, match=r"champion_seen_test_images is 2[789]\d, at most 0"):
        promote(settings)
    assert aliases_of(settings) == {"champion": "1"}


@pytest.mark.slow
def test_a_model_that_started_from_one_of_another_split_is_refused(settings):
    replace_study(settings, STRONG, split_seed=1)
    elsewhere = shutil.copy(attempt_of(settings, 0) / "best.safetensors", settings.home / "other.safetensors")
    replace_study(settings, STRONG)
    with closing(Record.open(settings.record_url)) as record, record.write() as session:
        trial = session.get_one(type(record.trials(1)[0]), record.trials(record.study(NAME).id)[0].id)
        trial.config = {**trial.config, "init": str(elsewhere)}
    with pytest.raises(RefusedError, match=r"not promoted: seen_test_images is 2[789]\d"):
        promote(settings)


@pytest.mark.parametrize("name", ["best.safetensors", "model.onnx"])
def test_a_flipped_byte_is_named_with_both_hashes(settings, name):
    path = attempt_of(settings) / name
    before = sha256(path)
    flip_a_byte(path)
    with pytest.raises(RefusedError) as refused:
        promote(settings)
    assert all(part in str(refused.value) for part in (str(path), before, sha256(path)))
    assert refused.value.exit_code == 3
    assert ledger_of(settings) == []


def test_a_missing_file_is_named(settings):
    (attempt_of(settings) / "best.safetensors").unlink()
    with pytest.raises(RefusedError, match=r"best\.safetensors is missing"):
        promote(settings)


def test_an_onnx_file_of_other_weights_is_refused(settings):
    """The file is whole, but it is another trial's."""
    other = attempt_of(settings, 0) / "model.onnx"
    shutil.copy(other, attempt_of(settings) / "model.onnx")
    with closing(Record.open(settings.record_url)) as record, record.write() as session:
        trial = record.trials(record.study(NAME).id)[1]
        session.get_one(Export, trial.id).sha256 = sha256(other)
    with pytest.raises(RefusedError, match=r"onnx_difference is [\d.]+, at most 0\.0001 is asked"):
        promote(settings)


@pytest.mark.slow
def test_a_champion_whose_bytes_changed_stops_promotion_and_rollback(settings):
    replace_study(settings, WEAK)
    promote(settings)
    first = resolve_model(settings, f"models:/{NAME}@champion")
    replace_study(settings, STRONG)
    flip_a_byte(first)
    with pytest.raises(RefusedError, match=r"the present champion cannot be judged: .* has SHA-256"):
        promote(settings)
    flip_a_byte(first)
    promote(settings)
    flip_a_byte(first)
    with pytest.raises(UsageError, match="has SHA-256"):
        rollback(settings, NAME)
    assert aliases_of(settings) == {"champion": "2", "previous": "1"}


def test_a_version_of_someone_else_is_neither_judged_nor_replaced(settings, tmp_path):
    promote(settings)
    client = MlflowClient(settings.tracking_uri)
    client.create_model_version(NAME, str(tmp_path))
    client.set_registered_model_alias(NAME, "champion", "2")
    replace_study(settings, STRONG)
    with pytest.raises(RefusedError, match="is version 2, which `orch promote` did not make"):
        promote(settings)
    assert aliases_of(settings) == {"champion": "2"}


# -- names


def test_without_a_name_the_only_study_is_taken_else_all_are_listed(settings):
    add_study(settings, [WEAK], name="other")
    with pytest.raises(UsageError, match="there are 2 studies, name one of them: cnn-digits, other"):
        promote(settings)


def test_unknown_names_and_unfinished_studies_are_one_line(settings):
    with pytest.raises(UnknownNameError, match="did you mean 'cnn-digits'"):
        promote(settings, "cnn-digit")
    with pytest.raises(UnknownNameError, match="unknown model 'cnn-digits'; there is none yet"):
        rollback(settings, NAME)
    promote(settings)
    with pytest.raises(UnknownNameError, match="did you mean 'cnn-digits'"):
        rollback(settings, "cnn-digis")
    with pytest.raises(UsageError, match="has no former version"):
        rollback(settings, NAME)
    add_study(settings, [], name="empty")
    with pytest.raises(UsageError, match="no complete trial yet"):
        promote(settings, "empty")


# -- others at the same time, and kills


@pytest.mark.slow
def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(settings, tmp_path):
    """The first sleeps from when it holds the model until the second has taken that over."""
    orch = Orch(tmp_path)
    with orch.running("promote", NAME) as first:
        wait_until(lambda: holder(settings) == first.pid, what="the first to hold the model")
        orch.stop_between_writes(first)
        won = json.loads(orch("promote", f"{NAME}/0", "--json").stdout)
        os.kill(first.pid, signal.SIGCONT)
        _, errors = first.communicate(timeout=120)
    assert (won["version"], won["already"], first.returncode) == ("1", False, 5)
    assert f"model:{NAME} was taken over by another process" in errors
    assert errors.count("\n") == 1
    assert aliases_of(settings) == {"champion": "1"}
    assert ledger_of(settings) == [("promoting", None, "1"), ("promote", None, "1")]


def holder(settings: Settings) -> int | None:
    """Which process holds the right to move the model's aliases."""
    with closing(Record.open(settings.record_url)) as record:
        found = holder_of(record, f"model:{NAME}")
    return found["pid"] if found else None


@pytest.mark.slow
def test_a_second_promotion_at_once_is_told_who_holds_it(settings):
    with (
        closing(Record.open(settings.record_url)) as record,
        Holding(record, f"model:{NAME}"),
        pytest.raises(HeldError, match=f"process {os.getpid()} .*about to move @champion"),
    ):
        promote(settings)


@pytest.mark.slow
def test_an_alias_that_someone_moved_meanwhile_is_left_alone(settings, monkeypatch):
    replace_study(settings, WEAK)
    promote(settings)
    replace_study(settings, STRONG)
    examine = promote_module._Promotion._examine

    def examine_while_another_moves(*arguments):
        found = examine(*arguments)
        client = MlflowClient(settings.tracking_uri)
        client.create_model_version(NAME, str(settings.home))
        client.set_registered_model_alias(NAME, "champion", "2")
        return found

    monkeypatch.setattr(promote_module._Promotion, "_examine", examine_while_another_moves)
    with pytest.raises(UnavailableError, match="@champion of 'cnn-digits' was moved to version 2 meanwhile"):
        promote(settings)
    assert aliases_of(settings) == {"champion": "2"}


KILLED = """
import os, signal, sys
from orchestrator import promote, registry
from orchestrator.settings import Settings

command, step, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
real = getattr(registry.Registry, step)

def dies_after(*arguments, **keywords):
    global count
    done = real(*arguments, **keywords)
    count -= 1
    if not count:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

setattr(registry.Registry, step, dies_after)
{"promote": promote.promote, "rollback": promote.rollback}[command](Settings.from_environment(), "cnn-digits")
"""


def killed(command: str, *, after: str, count: int = 1) -> None:
    """Run a command that gets SIGKILL right after it called a method of the registry for the `count`th time."""
    done = subprocess.run([sys.executable, "-c", KILLED, command, after, str(count)], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_a_champion_and_the_next_command_does_the_rest(settings):
    replace_study(settings, WEAK)
    promote(settings)
    replace_study(settings, STRONG)

    killed("promote", after="register")
    assert aliases_of(settings) == {"champion": "1"}
    assert len(ledger_of(settings)) == 2

    killed("promote", after="point")
    assert aliases_of(settings) == {"champion": "3"}
    assert ledger_of(settings)[2:] == [("promoting", "1", "3")]
    assert resolve_model(settings, f"models:/{NAME}@champion").is_file()
    assert promote(settings).already
    assert aliases_of(settings) == {"champion": "3", "previous": "1"}
    assert ledger_of(settings)[2:] == [("promoting", "1", "3"), ("promote", "1", "3")]

    killed("rollback", after="point", count=2)
    assert aliases_of(settings) == {"champion": "1", "previous": "3"}
    back = rollback(settings, NAME)
    assert (back.version, back.previous) == ("1", "3"), "what was killed is finished, not undone"
    assert ledger_of(settings)[4:] == [("rolling back", "3", "1"), ("rollback", "3", "1")]
    assert aliases_of(settings) == {"champion": "1", "previous": "3"}


@pytest.mark.slow
def test_a_move_that_was_killed_before_the_alias_is_begun_anew(settings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "orchestrator.registry.Registry.point", lambda *_: (_ for _ in ()).throw(UnavailableError("gone"))
        )
        with pytest.raises(UnavailableError):
            promote(settings)
    assert ledger_of(settings) == [("promoting", None, "1")]
    assert promote(settings).version == "2"
    assert aliases_of(settings) == {"champion": "2"}
    assert ledger_of(settings) == [("promoting", None, "1"), ("promoting", None, "2"), ("promote", None, "2")]

"""What `keep=` and `orch gc` free, what they never touch, and what is said of what is gone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest

from orchestrator import garbage
from orchestrator.attempt_files import AttemptFiles
from orchestrator.budget import Budget
from orchestrator.depot import Depot
from orchestrator.errors import UsageError
from orchestrator.evaluate import evaluate
from orchestrator.leases import Holding, study_lease
from orchestrator.models import accepted_attempt
from orchestrator.recorded import delete
from orchestrator.retention import Retention
from orchestrator.settings import HOME_VARIABLE
from orchestrator.study import load
from orchestrator.tables import Promotion, Reason, State
from tests.orchestrator.test_cli import Here
from tests.support.orch import Orch
from tests.support.sweeps import Sweep, settings_of

WEIGHTS = "best.safetensors"


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Four complete trials, the later the better, and a pruned one; nothing mirrors them."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "mlruns"))
    made = Sweep(settings_of(tmp_path / "mlruns"))
    for _ in range(4):
        made.run()
    made.run(State.PRUNED, num_epochs=1)
    yield made
    made.close()


def retention(sweep, keep, **changed):
    budget = Budget(keep=keep, **{"export": "none", **changed})
    files = AttemptFiles(sweep.settings, sweep.name, None)
    return Retention(budget, sweep.study, sweep.settings, sweep.record, sweep.lease, files)


def apply(sweep, keep, **changed):
    """The numbers of the trials that a policy frees."""
    trials, epochs = sweep.record.trials(sweep.study.id), sweep.record.epochs(sweep.study.id)
    return [trial.number for trial in retention(sweep, keep, **changed).ended(trials, epochs)]


def having(sweep):
    """The trials whose weights are on the disk, and those whose manifest names them."""
    on_disk = [n for n in range(5) if (sweep.settings.attempt_folder("s", n, 1) / WEIGHTS).exists()]
    attempts = sweep.record.attempts_of_study(sweep.study.id)
    named = [number for number, (attempt,) in sorted(attempts.items()) if WEIGHTS in (attempt.manifest or {})]
    assert on_disk == named
    return on_disk


@pytest.mark.parametrize(
    ("keep", "changed", "kept"),
    [
        ("all", {}, [0, 1, 2, 3, 4]),
        ("top:2", {}, [2, 3]),
        ("best", {}, [3]),
        ("none", {}, []),
        ("none", {"export": "top:3"}, [1, 2, 3]),
        ("best", {"confirm": "2x3"}, [2, 3]),
    ],
)
def test_policy_keeps_the_leaders_of_the_whole_sweep(sweep, keep, changed, kept):
    assert apply(sweep, keep, **changed) == [number for number in range(5) if number not in kept]
    assert having(sweep) == kept


def test_what_something_else_needs_is_kept_whatever_the_policy(sweep):
    sweep.export(sweep.record.trial(sweep.study.id, 0))
    with sweep.record.write() as session:
        promoted = {"model": "s", "kind": "promote", "to_version": "1", "study": "s", "trial": 1, "run_id": "r"}
        rest = {"sha256": "0", "test_score": 1.0, "gates": [], "who": "me", "recorded_at": time.time()}
        session.add(Promotion(**promoted, **rest))
    init = str(sweep.settings.attempt_folder("s", 2, 1) / WEIGHTS)
    other = Sweep(sweep.settings, "other")
    other.record.update_study(other.lease, other.study.id, {**other.study.spec, "space": {"init": {"choices": [init]}}})
    other.close()
    assert apply(sweep, "none") == [3, 4]
    sweep.record.add_trial(sweep.lease, sweep.study.id, params={}, config={}, threads=1, confirms=4)
    assert having(sweep) == [0, 1, 2]


def test_confirmed_trial_is_kept(sweep):
    sweep.record.add_trial(sweep.lease, sweep.study.id, params={}, config={}, threads=1, confirms=1)
    assert apply(sweep, "none") == [0, 2, 3, 4]


def test_better_trial_takes_the_place_of_the_one_before(sweep):
    kept = retention(sweep, "best")
    ended = []
    for number in (3, 1, 2, 0):
        trial = sweep.record.trial(sweep.study.id, number)
        ended.append([t.number for t in kept.ended([trial], sweep.record.epochs(sweep.study.id))])
    assert ended == [[], [1], [2], [0]]
    assert having(sweep) == [3, 4], "of the pruned one nobody told"


def test_waiting_paused_and_failed_trials_are_left_alone(sweep):
    trials = [sweep.start() for _ in range(3)]
    sweep.end(trials[1], State.PAUSED)
    sweep.end(trials[2], State.FAILED, reason=Reason.ERROR, message="no")
    assert apply(sweep, "none") == [0, 1, 2, 3, 4]


def test_freed_trial_says_by_what(sweep):
    apply(sweep, "best")
    trial = sweep.record.trial(sweep.study.id, 0)
    with pytest.raises(
        UsageError, match="trial 0 is on record, but its files are not there: weights were freed by keep=best"
    ):
        accepted_attempt(sweep.record, trial)
    assert accepted_attempt(sweep.record, sweep.record.trial(sweep.study.id, 3)).number == 1


@pytest.mark.parametrize("key", ["keep=top:0", "keep=last", "keep=top"])
def test_bad_policy_is_one_line(key):
    with pytest.raises(UsageError, match="expected best, all, none or top:K"):
        load(["recipe=mlp", key])


def test_weights_go_from_a_depot_too(sweep, tmp_path):
    depot = Depot(url=f"file://{tmp_path / 'depot'}", root=str(sweep.settings.study_folder("s")))
    folder = sweep.settings.attempt_folder("s", 0, 1)
    (folder / "manifest.json").write_text("{}")
    depot.send(folder, str(folder), sent={})
    AttemptFiles(sweep.settings, "s", depot).drop_weights(0)
    for left in (folder, tmp_path / "depot/0000/1"):
        assert [path.name for path in left.iterdir()] == ["manifest.json"]


# -- orch gc


@pytest.fixture
def ended(sweep):
    """The same, with what killed processes may have left; nobody runs it."""
    settings = sweep.settings
    for number, name in ((0, "epoch-3.json"), (0, "best-3.safetensors"), (1, f"{WEIGHTS}.tmp")):
        (settings.attempt_folder("s", number, 1) / name).write_bytes(b"x" * 100)
    earlier = settings.attempt_folder("s", 2, 0)
    earlier.mkdir()
    (earlier / "epoch-1.json").write_bytes(b"x" * 50)
    failed = {}
    for reason in (Reason.DIVERGED, Reason.ERROR):
        trial = sweep.start()
        sweep.end(trial, State.FAILED, reason=reason, message="no")
        failed[reason] = settings.attempt_folder("s", trial.number, 1) / "epoch-1.json"
        failed[reason].write_bytes(b"x" * 10)
    spec = {**sweep.study.spec, "budget": {**sweep.study.spec["budget"], "keep": "best", "export": "none"}}
    sweep.record.update_study(sweep.lease, sweep.study.id, spec)
    sweep._holding.__exit__(None, None, None)
    yield sweep, failed
    sweep._holding = Holding(sweep.record, study_lease("s"))
    sweep._holding.__enter__()


def files(home):
    return {str(path.relative_to(home)): path.stat().st_size for path in home.rglob("*") if path.is_file()}


def test_gc_frees_what_nothing_needs_and_says_how_much(ended, monkeypatch):
    sweep, failed = ended
    monkeypatch.setattr("orchestrator.mirror.sync", lambda *_: {})
    before = files(sweep.settings.home / "trials")
    looked = garbage.collect(sweep.settings, dry_run=True)
    assert files(sweep.settings.home / "trials") == before
    found = garbage.collect(sweep.settings)
    assert found == looked
    assert (found.num_files[garbage.WEIGHTS], found.num_bytes[garbage.WEIGHTS]) == (4, 4000)
    assert (found.num_files[garbage.CHECKPOINTS], found.num_bytes[garbage.CHECKPOINTS]) == (3, 210)
    assert (found.num_files[garbage.EARLIER], found.num_bytes[garbage.EARLIER]) == (1, 50)
    assert (found.num_files[garbage.TEMPORARY], found.num_bytes[garbage.TEMPORARY]) == (1, 100)
    left = files(sweep.settings.home / "trials")
    assert sum(before.values()) - sum(left.values()) == sum(found.num_bytes.values())
    assert having(sweep) == [3]
    assert failed[Reason.ERROR].exists(), "it may be retried"
    assert not failed[Reason.DIVERGED].exists()
    assert sum(garbage.collect(sweep.settings).num_files.values()) == 0


def test_gc_touches_nothing_of_a_study_that_runs(sweep):
    (sweep.settings.attempt_folder("s", 0, 1) / "epoch-3.json").write_bytes(b"x")
    before = files(sweep.settings.home / "trials")
    found = garbage.collect(sweep.settings)
    assert files(sweep.settings.home / "trials") == before
    assert found.left == [f"study s is run by process {os.getpid()} on {os.uname().nodename}"]


def test_gc_removes_folders_of_deleted_studies_but_none_that_the_record_never_had(prepared):
    sweeps = {name: Sweep(prepared, name) for name in ("gone", "here")}
    for each in sweeps.values():
        each.run()
        each.close()
    folders = {name: prepared.study_folder(name) for name in ("gone", "here", "anybody's")}
    shutil.copytree(folders["gone"], folders["anybody's"])
    delete(prepared, "gone")
    shutil.copytree(folders["anybody's"], folders["gone"])  # as if it had been killed before
    found = garbage.collect(prepared)
    assert found.num_files[garbage.DELETED] == 1
    assert {name: folder.exists() for name, folder in folders.items()} == {
        "gone": False,
        "here": True,
        "anybody's": True,
    }


def test_gc_removes_caches_that_no_study_names_and_leaves_those_in_use(sweep):
    cache = sweep.settings.home / "cache"
    (cache / "models").mkdir(parents=True)
    names = [
        "digits.npz",
        "digits.lock",
        "digits.sha256.json",
        "digits-rest-0.npz",
        "old-0123456789ab.npz",
        "old-0123456789ab.lock",
    ]
    for name in [*names, "features-ab.safetensors", "models/ab.onnx", "left.tmp", "fresh.tmp"]:
        (cache / name).write_bytes(b"x")
    long_ago = time.time() - garbage.WRITING_SECONDS - 1
    os.utime(cache / "left.tmp", (long_ago, long_ago))
    found = garbage.collect(sweep.settings)
    assert found.num_files[garbage.CACHES] == 4
    assert set(files(cache)) == {"digits.npz", "digits.lock", "digits.sha256.json", "digits-rest-0.npz", "fresh.tmp"}


@pytest.mark.slow
def test_gc_killed_between_the_record_and_the_file_ends_what_was_begun(ended):
    """What the record names is whole at each moment: a process is killed when it is about to remove the first file."""
    sweep, _ = ended
    code = (
        "import os, signal, sys; from pathlib import Path; from orchestrator import garbage;"
        "from tests.support.sweeps import settings_of\n"
        "remove = Path.unlink\n"
        "def strike(path, **more):\n"
        "    remove(path, **more)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Path.unlink = strike\n"
        "garbage.collect(settings_of(Path(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sweep.settings.home)], check=False)
    assert done.returncode == -9
    attempts = sweep.record.attempts_of_study(sweep.study.id)
    for number, (attempt, *_) in attempts.items():
        for name in attempt.manifest or {}:
            assert (sweep.settings.attempt_folder("s", number, 1) / name).exists()
    left = [n for n in range(5) if (sweep.settings.attempt_folder("s", n, 1) / WEIGHTS).exists()]
    assert len(left) == 4, "one of the four that are freed had gone"
    garbage.collect(sweep.settings)
    assert having(sweep) == [3]


# -- the commands


def test_removed_weights_are_refused_in_one_line_and_kept_ones_work(two_trials_home, tmp_path, monkeypatch):
    orch = Here(tmp_path)
    shutil.copytree(two_trials_home, orch.home)
    monkeypatch.setenv(HOME_VARIABLE, str(orch.home))
    monkeypatch.setattr("orchestrator.mirror.sync", lambda *_: {})
    assert "from now on keep=best, export=none" in orch("set", "cnn-digits", "keep=best", "export=none").stdout
    dry = orch("gc", "--dry-run").stdout
    assert "would be freed" in dry
    assert orch("gc").stdout.splitlines()[0].startswith("weights beyond keep=")
    refused = orch("evaluate", "cnn-digits/0", code=2).stderr
    assert refused == "orch: trial 0 is on record, but its files are not there: weights were freed by keep=best\n"
    assert evaluate(settings_of(orch.home), "cnn-digits", 1)["metrics"]
    assert orch.json("gc")["bytes"] == 0
    assert "unknown study 'cnn'" in orch("gc", "cnn", code=2).stderr


@pytest.mark.slow
def test_sweep_keeps_what_its_policy_says_and_mlflow_no_more(tmp_path):
    orch = Orch(tmp_path)
    orch(*orch.counting(trials=4, epochs=2, workers=2, keep="best"))
    best = orch.json("status", "s")["best"]["trial"]
    for kind in ("trials/s", "artifacts"):
        assert len(list((orch.home / kind).rglob(WEIGHTS))) == 1
    (kept,) = (orch.home / "trials/s").rglob(WEIGHTS)
    assert int(kept.parts[-3]) == best
    (copy,) = (orch.home / "artifacts").rglob(WEIGHTS)
    assert copy.samefile(kept), "on one disk it is the same file"
    rows = orch.json("compare", "s")
    assert {row["trial"]: row["message"] for row in rows} == {
        row["trial"]: None if row["trial"] == best else "weights were freed by keep=best" for row in rows
    }
    assert "is complete" in orch.here("resume", "s").stdout
    assert orch.here("extend", "s", "trials=+1").stdout
    orch.here("resume", "s")
    with orch.record() as record:
        assert len(record.trials(record.study("s").id)) == 5

"""What workers write where they share no folder with the coordinator: brought to a URL first, then told."""

from __future__ import annotations

import hashlib
import queue
import shutil
from pathlib import Path

import pytest

from orchestrator import budget, carrier, depot
from orchestrator.errors import UsageError
from orchestrator.executors import EpochEnded, ExportSpec, TrialEnded, TrialFailed, TrialPaused, TrialSpec
from orchestrator.tables import Reason
from recipes.checkpoint import newest
from tests.support import object_store
from tests.support.orch import COUNTING


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "node"))


@pytest.fixture
def store(tmp_path):
    return depot.Depot(url=f"file://{tmp_path}/store/s-1", root=str(tmp_path / "driver" / "s"))


class Port:
    """Takes events down, with what the depot held when each came, and answers with `decisions`."""

    def __init__(self, store, decisions=()):
        self.files = Path(store.url.removeprefix("file://"))  # of no use with another store
        self.events, self.held = [], []
        self._decisions = queue.Queue()
        for decision in decisions:
            self._decisions.put(decision)

    def send(self, event):
        self.events.append(event)
        self.held.append(names(self.files))

    def decision(self):
        return self._decisions.get(timeout=30)


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def spec(store, attempt=1, recorded=0, decision_epochs=(), **config):
    folders = [f"{store.root}/0000/{number}" for number in range(attempt, 0, -1)]
    return TrialSpec(
        study="s",
        trial=0,
        attempt=attempt,
        recipe=COUNTING,
        config=config,
        folder=folders[0],
        earlier_folders=tuple(folders[1:]),
        num_recorded_epochs=recorded,
        decision_epochs=tuple(decision_epochs),
        threads=1,
    )


def run(store, job, decisions=()):
    port = Port(store, decisions)
    carrier.run(job, port, store)
    return port


def test_epoch_is_told_when_its_checkpoint_is_at_the_depot_and_nothing_stays_here(store, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    port = run(store, spec(store, epochs=4, pause_seconds=0.05))
    *epochs, ended = port.events
    assert [event.number for event in epochs] == [1, 2, 3, 4]
    for event, held in zip(epochs, port.held, strict=False):
        assert {f"0000/1/epoch-{event.number:04}.json", f"0000/1/epoch-{event.number:04}.pt"} <= held
    assert isinstance(ended, TrialEnded)
    assert set(ended.manifest) == {"best.safetensors"}
    assert {"0000/1/best.safetensors", "0000/1/manifest.json"} <= port.held[-1]
    assert len([name for name in port.held[-1] if name.endswith(".pt")]) == 2, "older generations go there, too"
    assert came_last(store, "epoch-0004.json")
    assert not list(scratch.iterdir())
    assert not Path(store.root).exists()


def came_last(store, name):
    """Whether a file was written behind the others of its generation."""
    folder = Path(store.url.removeprefix("file://")) / "0000" / "1"
    return (folder / name).stat().st_mtime_ns >= (folder / name).with_suffix(".pt").stat().st_mtime_ns


def test_next_attempt_goes_on_from_the_depot_to_the_bits_of_one_that_never_stopped(store, tmp_path):
    failed = run(store, spec(store, epochs=4, fault="raise", fault_epoch=3)).events[-1]
    assert isinstance(failed, TrialFailed)
    journal = tmp_path / "journal"
    port = run(store, spec(store, attempt=2, recorded=1, epochs=4, journal=str(journal)))
    assert [event.number for event in port.events[:-1]] == [2, 3, 4], "the second was trained, and not recorded"
    assert journal.read_text().split() == ["0000", "3", "0000", "4"]

    other = depot.Depot(url=f"{store.url}-other", root=store.root)
    whole = run(other, spec(other, epochs=4)).events
    assert learned(port.events) == learned(whole)[1:]
    assert port.events[-1].manifest["best.safetensors"]
    found = [newest_weights(each, attempt) for each, attempt in ((store, 2), (other, 1))]
    assert found[0] == found[1]


def learned(events):
    names = ("train_loss", "val_loss", "val_accuracy")
    return [[event.metrics[name] for name in names] for event in events if isinstance(event, EpochEnded)]


def newest_weights(store, attempt):
    data = (Path(store.url.removeprefix("file://")) / f"0000/{attempt}/best.safetensors").read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_checkpoint_that_was_damaged_or_cut_short_at_the_depot_is_not_gone_on_from(store):
    run(store, spec(store, epochs=4, fault="raise", fault_epoch=4))
    files = Path(store.url.removeprefix("file://")) / "0000" / "1"
    data = bytearray((files / "epoch-0003.pt").read_bytes())
    data[100] ^= 1
    (files / "epoch-0003.pt").write_bytes(data)
    port = run(store, spec(store, attempt=2, recorded=3, epochs=4))
    assert [event.number for event in port.events[:-1]] == [3, 4], "from the second, which is whole"
    for path in (Path(store.url.removeprefix("file://")) / "0000").glob("*/epoch-*.json"):
        path.write_bytes(path.read_bytes()[:50])
    port = run(store, spec(store, attempt=3, recorded=4, epochs=4))
    assert [event.number for event in port.events[:-1]] == [1, 2, 3, 4]


def test_attempt_that_left_no_whole_checkpoint_is_passed_over(store, tmp_path):
    run(store, spec(store, epochs=4, fault="raise", fault_epoch=3))
    lost = Path(store.url.removeprefix("file://")) / "0000" / "2"
    lost.mkdir()
    (lost / "epoch-0003.pt").write_bytes(b"cut short")
    journal = tmp_path / "journal"
    run(store, spec(store, attempt=3, recorded=2, epochs=4, journal=str(journal)))
    assert journal.read_text().split() == ["0000", "3", "0000", "4"]


def test_paused_trial_leaves_its_checkpoint_and_is_carried_on_where_it_is_paused_again(store):
    paused = run(store, spec(store, epochs=4, decision_epochs=[2]), ["pause"])
    assert isinstance(paused.events[-1], TrialPaused)
    assert "0000/1/epoch-0002.json" in paused.held[-1]
    assert "0000/1/epoch-0001.json" not in paused.held[-1]
    again = run(store, spec(store, attempt=2, recorded=2, epochs=4, decision_epochs=[2]), ["pause"])
    assert [type(event) for event in again.events] == [EpochEnded, TrialPaused]
    store.remove(f"{store.root}/0000/1")
    rest = run(store, spec(store, attempt=3, recorded=2, epochs=4)).events
    assert [event.number for event in rest[:-1]] == [3, 4]


class BreakingPort(Port):
    """After the first event, a file is where the depot was."""

    def send(self, event):
        super().send(event)
        if self.files.is_dir():
            shutil.rmtree(self.files)
            self.files.write_text("no folder")


@pytest.mark.parametrize("decision_epochs", [(), (1, 2, 3)])
def test_depot_that_fails_ends_the_attempt_and_tells_no_epoch(store, tmp_path, decision_epochs):
    journal = tmp_path / "journal"
    port = BreakingPort(store, ["go"] * 3)
    keys = {"epochs": 20, "pause_seconds": 0.1, "journal": str(journal)}
    carrier.run(spec(store, decision_epochs=decision_epochs, **keys), port, store)
    *epochs, failed = port.events
    assert [event.number for event in epochs] == [1]
    assert failed.reason is Reason.ERROR
    assert "s-1" in failed.message
    assert len(journal.read_text().splitlines()) <= 4, "it does not train on for nobody"


def test_depot_that_cannot_be_read_is_the_failure_of_the_attempt(store):
    away = depot.Depot(url=f"{store.url}/file", root=store.root)
    Path(store.url.removeprefix("file://")).mkdir(parents=True)
    Path(away.url.removeprefix("file://")).write_text("no folder")
    port = run(away, spec(away, epochs=2))
    assert isinstance(port.events[-1], TrialFailed)


def test_export_is_made_of_the_weights_of_the_manifest_only(store):
    run(store, spec(store, epochs=1))
    job = ExportSpec(study="s", trial=0, attempt=1, recipe=COUNTING, config={}, folder=f"{store.root}/0000/1")
    best = Path(store.url.removeprefix("file://")) / "0000" / "1" / "best.safetensors"
    data = bytearray(best.read_bytes())
    data[-1] ^= 1
    best.write_bytes(data)
    (exported,) = run(store, job).events
    assert "best.safetensors has SHA-256" in exported.error


def test_files_that_count_are_fetched_by_their_hash(store, tmp_path):
    ended = run(store, spec(store, epochs=1)).events[-1]
    folder = f"{store.root}/0000/1"
    store.fetch_files(folder, Path(folder), ended.manifest)
    best = Path(folder) / "best.safetensors"
    assert hashlib.sha256(best.read_bytes()).hexdigest() == ended.manifest["best.safetensors"]
    with pytest.raises(depot.DepotError, match="its worker sent"):
        store.fetch_files(folder, tmp_path / "other", {"best.safetensors": "0" * 64})
    assert not (tmp_path / "other" / "best.safetensors").exists()
    with pytest.raises(OSError, match="none"):
        store.fetch_files(folder, tmp_path / "other", {"none": "0" * 64})


def test_what_only_going_on_needs_is_removed_and_what_is_gone_already_is_no_error(store):
    run(store, spec(store, epochs=2))
    folder, files = f"{store.root}/0000/1", Path(store.url.removeprefix("file://"))
    store.remove_generations(folder)
    assert names(files) == {"0000/1/best.safetensors", "0000/1/manifest.json"}
    store.remove(folder)
    store.remove(folder)
    store.remove_generations(folder)
    store.remove()
    assert not files.exists()


def test_earlier_study_of_that_name_left_nothing_that_counts(store, tmp_path):
    former, new = (depot.of_study(f"file://{tmp_path}/store", "s", began, Path(store.root)) for began in (1.5, 2.5))
    run(former, spec(former, epochs=4))
    assert newest(Path(former.url.removeprefix("file://")) / "0000" / "1") is not None
    port = run(new, spec(new, attempt=2, epochs=2))
    assert [event.number for event in port.events[:-1]] == [1, 2]
    assert depot.of_study("", "s", 1.5, Path(store.root)) is None


# -- an object store: moto's, which speaks S3


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with object_store.running(tmp_path) as (address, server):
        for name, value in {**object_store.CREDENTIALS, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        yield "s3://bucket/folder", server


@pytest.mark.slow
def test_attempts_go_on_over_an_object_store_until_it_is_away(bucket, tmp_path):
    url, server = bucket
    store = depot.of_study(url, "s", 1.5, tmp_path / "driver" / "s")
    failed = run(store, spec(store, epochs=4, fault="raise", fault_epoch=3)).events[-1]
    assert failed.message == "RuntimeError: as the test asked"
    *epochs, ended = run(store, spec(store, attempt=2, recorded=1, epochs=4)).events
    assert [event.number for event in epochs] == [2, 3, 4]
    folder = f"{store.root}/0000/2"
    store.fetch_files(folder, Path(folder), ended.manifest)
    assert names(Path(folder)) == {"best.safetensors"}
    store.remove_generations(folder)
    store.remove(f"{store.root}/0000/1")
    assert store.fetch(folder, tmp_path / "left")
    assert names(tmp_path / "left") == {"best.safetensors", "manifest.json"}
    assert not store.fetch(f"{store.root}/0000/1", tmp_path / "left")

    server.kill()
    server.wait()
    (away,) = run(store, spec(store, attempt=3, recorded=4, epochs=4)).events
    assert isinstance(away, TrialFailed)
    assert away.reason is Reason.ERROR


# -- keys


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("/shared/folder", "expected a URL"),
        ("file://folder", "expected a URL"),
        ("s3://", "expected a URL"),
        ("s4://bucket/x", "Protocol not known: s4"),
        ("oss://bucket/x", "Install"),
    ],
)
def test_url_that_cannot_be_is_refused_before_anything_is_written(url, complaint):
    with pytest.raises(UsageError, match=complaint):
        budget.take_budget({"executor": "executor=ray", "checkpoints": f"checkpoints={url}"})


def test_checkpoints_elsewhere_go_with_ray_and_not_with_a_bound_on_this_disk(tmp_path):
    url = f"file://{tmp_path}"
    taken = budget.take_budget({"executor": "executor=ray", "checkpoints": f"checkpoints={url}"})
    assert taken.where[-1] == taken.checkpoints == url
    assert budget.take_budget({"checkpoints": "checkpoints=none"}, start=taken).checkpoints == ""
    with pytest.raises(UsageError, match="it goes with executor=ray"):
        budget.take_budget({"checkpoints": f"checkpoints={url}"})
    with pytest.raises(UsageError, match="max_disk"):
        budget.take_budget({"max_disk": "max_disk=1GB"}, start=taken)

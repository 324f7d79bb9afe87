from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from recipes import checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def state(number: int) -> dict[str, Any]:
    weights = {"conv.weight": torch.full((4, 3, 3, 3), float(number)).to(memory_format=torch.channels_last)}
    return {"model": weights, "optimizer": {"state": {0: {"step": torch.tensor(number)}}}, "random": (3, (1, 2), None)}


def history(number: int, best: int) -> list[dict[str, Any]]:
    return [
        {"number": n, "metrics": {"val_accuracy": n / 10}, "seconds": 0.1, "is_best": n <= best}
        for n in range(1, number + 1)
    ]


def write(folder: Path, numbers: range, *, best: int, generation: checkpoint.Generation | None = None) -> None:
    """Epochs of which those up to `best` are each the best so far."""
    with checkpoint.Writer(folder, generation) as writer:
        for number in numbers:
            metadata = {"epoch": str(number)} if number <= best else None
            writer.save(state(number), history(number, best), best_metadata=metadata).result()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    # A new file: the old one's bytes may have other names.
    path.unlink()
    path.write_bytes(content)


def test_two_generations_and_the_best_that_they_name_are_kept(tmp_path):
    write(tmp_path, range(1, 7), best=3)
    assert names(tmp_path) == [
        "best-0003.safetensors",
        "best.safetensors",
        "epoch-0005.json",
        "epoch-0005.pt",
        "epoch-0006.json",
        "epoch-0006.pt",
    ]
    assert (tmp_path / "best.safetensors").read_bytes() == (tmp_path / "best-0003.safetensors").read_bytes()


def test_what_is_read_is_what_was_written(tmp_path):
    write(tmp_path, range(1, 4), best=2)
    generation = checkpoint.newest(tmp_path)
    assert generation is not None
    assert generation.record["epoch"] == 3
    assert generation.record["bytes"] == (tmp_path / "epoch-0003.pt").stat().st_size
    assert generation.record["history"] == history(3, 2) == checkpoint.read_history(tmp_path)
    assert generation.record["best"]["metrics"] == {"val_accuracy": 0.2}
    found = generation.state()
    assert found["random"] == (3, (1, 2), None)
    assert torch.equal(found["model"]["conv.weight"], state(3)["model"]["conv.weight"])
    assert found["model"]["conv.weight"].stride() == state(3)["model"]["conv.weight"].stride()


def test_writer_keeps_a_copy_of_what_training_goes_on_to_change(tmp_path):
    changing = state(1)
    with checkpoint.Writer(tmp_path, None) as writer:
        saved = writer.save(changing, history(1, 1), best_metadata={"epoch": "1"})
        changing["model"]["conv.weight"].fill_(9)
        saved.result()
    generation = checkpoint.newest(tmp_path)
    assert generation is not None
    assert generation.state()["model"]["conv.weight"].unique().tolist() == [1]


@pytest.mark.parametrize("broken", ["epoch-0003.pt", "best-0003.safetensors", "epoch-0003.json"])
def test_flipped_byte_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog, broken):
    write(tmp_path, range(1, 4), best=3)
    flip_a_byte(tmp_path / broken)
    generation = checkpoint.newest(tmp_path)
    assert generation is not None
    assert generation.record["epoch"] == 2
    assert generation.state()["model"]["conv.weight"].unique().tolist() == [2]
    assert broken in caplog.text
    if broken.endswith((".pt", ".safetensors")):
        record = json.loads((tmp_path / "epoch-0003.json").read_text())
        expected = record["sha256"] if broken.endswith(".pt") else record["best"]["sha256"]
        assert expected in caplog.text
        assert checkpoint._sha256((tmp_path / broken).read_bytes()) in caplog.text


@pytest.mark.parametrize("missing", ["epoch-0003.pt", "best-0003.safetensors", "epoch-0003.json"])
def test_missing_file_means_the_checkpoint_before(tmp_path, missing):
    write(tmp_path, range(1, 4), best=3)
    (tmp_path / missing).unlink()
    assert [epoch["number"] for epoch in checkpoint.read_history(tmp_path)] == [1, 2]


def test_nothing_whole_is_nothing(tmp_path):
    assert checkpoint.newest(tmp_path / "absent") is None
    assert checkpoint.read_history(tmp_path) == []
    (tmp_path / "epoch-0001.json").write_text("[]")
    (tmp_path / "epoch-0002.json").write_bytes(b"\xff\x00")
    assert checkpoint.read_history(tmp_path) == []


def test_epochs_are_ordered_by_number_beyond_four_digits(tmp_path):
    with checkpoint.Writer(tmp_path, None) as writer:
        for number in (9999, 10000):
            writer.save(state(1), history(number, 1)[-1:], best_metadata={"epoch": "1"}).result()
    generation = checkpoint.newest(tmp_path)
    assert generation is not None
    assert generation.record["epoch"] == 10000


def test_pickled_checkpoint_never_runs(tmp_path):
    write(tmp_path, range(1, 2), best=1)
    generation = checkpoint.newest(tmp_path)
    assert generation is not None

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": Hostile()}, tmp_path / "epoch-0001.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        generation.state()
    assert not (tmp_path / "ran").exists()


def test_later_attempt_has_files_of_its_own(tmp_path):
    old, new = tmp_path / "1", tmp_path / "2"
    write(old, range(1, 4), best=2)
    generation = checkpoint.take_up(new, old)
    shutil.rmtree(old)
    assert generation is not None
    assert names(new) == ["best-0002.safetensors", "epoch-0003.json", "epoch-0003.pt"]
    assert checkpoint.read_history(new) == history(3, 2)
    write(new, range(4, 6), best=2, generation=generation)
    assert names(new)[1:] == [
        "best.safetensors",
        "epoch-0004.json",
        "epoch-0004.pt",
        "epoch-0005.json",
        "epoch-0005.pt",
    ]
    assert (new / "best.safetensors").exists()


def test_taken_up_files_are_copied_where_the_disk_knows_no_links(tmp_path, monkeypatch):
    write(tmp_path / "1", range(1, 3), best=1)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    assert checkpoint.take_up(tmp_path / "2", tmp_path / "1") is not None
    assert checkpoint.read_history(tmp_path / "2") == history(2, 1)
    assert (tmp_path / "2" / "epoch-0002.pt").stat().st_nlink == 1


def test_same_folder_can_be_taken_up(tmp_path):
    write(tmp_path, range(1, 3), best=1)
    (tmp_path / "epoch-0003.pt.tmp").write_bytes(b"half")
    generation = checkpoint.take_up(tmp_path, tmp_path)
    assert generation is not None
    write(tmp_path, range(3, 5), best=1, generation=generation)
    assert len(checkpoint.read_history(tmp_path)) == 4
    assert not list(tmp_path.glob("*.tmp"))


def test_folder_of_another_training_is_refused(tmp_path):
    write(tmp_path / "1", range(1, 3), best=1)
    with pytest.raises(ValueError, match="already holds a training"):
        checkpoint.take_up(tmp_path / "1", None)
    write(tmp_path / "2", range(1, 3), best=1)
    with pytest.raises(ValueError, match="already holds a training"):
        checkpoint.take_up(tmp_path / "1", tmp_path / "2")


def test_history_is_read_without_torch(run_python, tmp_path):
    write(tmp_path, range(1, 4), best=2)
    script = (
        "import sys; from pathlib import Path; from recipes.checkpoint import read_history\n"
        "print(len(read_history(Path(sys.argv[1]))), 'torch' in sys.modules)"
    )
    assert run_python(script, tmp_path) == "3 False\n"


FULL_DISK = """
import errno, sys
from pathlib import Path
from recipes import checkpoint, mlp
from recipes.config import make
from recipes.loop import Attempt
folder = Path(sys.argv[1]) / "attempt"
ballast = Path(sys.argv[1]) / "ballast"
config = make(mlp.Config, {"epochs": 4, "batch_size": 512})
epochs = mlp.train(config, Attempt(folder=folder))
next(epochs).saved.result()
next(epochs).saved.result()
with ballast.open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
error = next(epochs).saved.exception()
assert isinstance(error, OSError) and error.errno == errno.ENOSPC, error
try:
    next(epochs)
except OSError as raised:
    assert raised is error
else:
    raise SystemExit("training went on without checkpoints")
assert not list(folder.glob("*.tmp")), list(folder.iterdir())
generation = checkpoint.newest(folder)
assert generation.record["epoch"] == 2 and generation.state()["step"] == 6
for path in folder.glob("epoch-*.json"):
    assert checkpoint._read_record(path)
ballast.unlink()
print([epoch.number for epoch in mlp.train(config, Attempt(folder=folder, resume_from=folder))])
"""


def _mounts() -> bool:
    command = ["unshare", "-m", "true"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.skipif(not _mounts(), reason="a small disk of the test's own needs the right to mount one")
def test_full_disk_leaves_the_checkpoint_before_and_says_so(tmp_path):
    mount = 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, str(tmp_path), sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[3, 4]\n"


def test_of_a_training_that_stands_still_only_the_newest_whole_generation_is_kept(tmp_path):
    write(tmp_path, range(1, 5), best=2)
    checkpoint.keep_newest(tmp_path)
    assert names(tmp_path) == ["best-0002.safetensors", "best.safetensors", "epoch-0004.json", "epoch-0004.pt"]
    assert [epoch["number"] for epoch in checkpoint.read_history(tmp_path)] == [1, 2, 3, 4]


def test_broken_generation_is_not_the_one_that_is_kept(tmp_path):
    write(tmp_path, range(1, 5), best=2)
    flip_a_byte(tmp_path / "epoch-0004.pt")
    checkpoint.keep_newest(tmp_path)
    assert names(tmp_path) == ["best-0002.safetensors", "best.safetensors", "epoch-0003.json", "epoch-0003.pt"]
    (tmp_path / "epoch-0003.json").unlink()
    checkpoint.keep_newest(tmp_path)
    assert "epoch-0003.pt" in names(tmp_path), "where nothing is whole, nothing is removed"

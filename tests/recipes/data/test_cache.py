"""Prepared data on a machine with several workers: one of them prepares, the others read what it wrote."""

from __future__ import annotations

import subprocess
import sys

PREPARE = """
import sys, time
from pathlib import Path
import numpy as np
from recipes.data.cache import prepared
from recipes.data.types import Arrays, Labels, Source

def read():
    with open(sys.argv[2], "a") as journal:
        journal.write("read\\n")
    time.sleep(1.0)
    labels = Labels(labels=np.arange(4, dtype=np.int64), class_names=("a", "b", "c", "d"))
    return Arrays(images=np.full((4, 1, 2, 2), 7, np.uint8), about=labels)

Path(sys.argv[3]).touch()
while len(list(Path(sys.argv[3]).parent.iterdir())) < 3:
    time.sleep(0.01)
found = prepared(Source(key="k", read=read), Path(sys.argv[1]))
print(int(found.images.sum()), *found.about.class_names)
"""


def test_processes_that_want_the_same_data_at_once_fetch_them_once(tmp_path):
    journal, ready = tmp_path / "journal", tmp_path / "ready"
    ready.mkdir()
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "cache" / "x.npz"), str(journal)]
    workers = [
        subprocess.Popen([*command, str(ready / str(number))], stdout=subprocess.PIPE, text=True) for number in range(3)
    ]
    told = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert told == ["112 a b c d\n"] * 3
    assert journal.read_text() == "read\n"

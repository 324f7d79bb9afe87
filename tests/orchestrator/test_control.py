"""What another terminal may ask of a study, whether it runs, waits or has ended."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest

from orchestrator import control
from orchestrator.errors import UnavailableError, UsageError
from orchestrator.leases import holder_of, study_lease
from orchestrator.study import load
from tests.support.orch import Orch, children, wait_until

WORKER = "worker-"


@pytest.fixture
def orch(tmp_path):
    return Orch(tmp_path)


def epochs_of(num_trials, num_epochs):
    return {number: list(range(1, num_epochs + 1)) for number in range(num_trials)}


@pytest.mark.slow
def test_paused_study_frees_its_workers_and_goes_on_with_another_budget(orch):
    arguments = orch.counting(trials=4, epochs=6, pause_seconds=0.3, workers=2, sampler="random")
    with orch.running(*arguments) as sweep:
        wait_until(lambda: orch.begun().total() >= 3, what="epochs")
        with orch.record() as record:
            assert holder_of(record, study_lease("s")).get("paused", False) is False
            assert control.pause(record, "s") == "paused; `orch resume s` lets it go on"
            wait_until(lambda: holder_of(record, study_lease("s")).get("paused"), what="the mark")
        assert not children(sweep.pid, WORKER)
        assert orch.json("status", "s")["process"] == {"host": socket.gethostname(), "pid": sweep.pid, "paused": True}
        on_record = orch.recorded()
        begun = orch.begun()
        assert orch.json("status", "s")["states"]["running"] == 0
        assert orch.here("extend", "s", "trials=+1").stdout == "from now on trials=5\n"
        assert orch.here("resume", "s", "workers=1").stdout == "it goes on\n"
        out, err = sweep.communicate(timeout=120)
        assert sweep.returncode == 0, f"{out}\n{err}"
    assert "5 trials on 1 worker(s)" in out
    assert orch.recorded() == epochs_of(5, 6)
    assert all(orch.begun()[place] == begun[place] for place in begun if place[1] in on_record[place[0]])


@pytest.mark.slow
def test_stopped_study_is_saved_and_resumed(orch):
    arguments = orch.counting(trials=3, epochs=8, pause_seconds=0.3, workers=2, sampler="random")
    with orch.running(*arguments) as sweep:
        wait_until(lambda: orch.begun().total() >= 3, what="epochs")
        assert orch.here("stop", "s").stdout == "stopped; `orch resume s` goes on with it\n"
        _, err = sweep.communicate(timeout=60)
        assert sweep.returncode == 128 + signal.SIGTERM
        assert err == "orch: stopped; all finished epochs are saved. Go on with `orch resume s`\n"
    assert orch.json("status", "s")["process"] is None
    orch.here("resume", "s")
    assert orch.recorded() == epochs_of(3, 8)


@pytest.mark.slow
def test_workers_change_while_a_study_runs(orch):
    arguments = orch.counting(trials=4, epochs=6, pause_seconds=0.3, workers=1, sampler="random")
    with orch.running(*arguments) as sweep:
        wait_until(lambda: orch.begun().total() >= 2, what="epochs")
        assert orch.here("set", "s", "workers=2", "retries=0").stdout == "from now on workers=2, retries=0\n"
        wait_until(lambda: len(children(sweep.pid, WORKER)) == 2, what="two workers")
        out, err = sweep.communicate(timeout=120)
        assert sweep.returncode == 0, f"{out}\n{err}"
    assert orch.recorded() == epochs_of(4, 6)


@pytest.mark.slow
def test_failed_trials_are_tried_again(orch):
    (orch.folder / "fault.py").write_text(
        "import tests.support.counting as counting\n"
        "from pathlib import Path\n"
        "from tests.support.counting import Config, build_model\n"
        "def train(config, attempt=None):\n"
        "    if attempt and not Path('/'.join([*attempt.folder.parts[:-4], 'mended'])).exists():\n"
        "        raise RuntimeError('not yet')\n"
        "    yield from counting.train(config, attempt)\n"
    )
    arguments = ["sweep", "recipe=fault.py", "study=s", "hidden=range(4,16)", "trials=3", "epochs=2", "retries=0"]
    orch.environment["PYTHONPATH"] = str(Path.cwd())
    orch.here(*arguments, "export=none", "pruner=none", "sampler=random", code=4)
    assert orch.json("status", "s")["states"]["failed"] == 3
    (orch.home / "mended").touch()
    refused = orch.here("retry", "s", "7", code=2)
    assert "trial 7 of s has not failed; failed: 0, 1, 2" in refused.stderr
    assert orch.here("retry", "s", "1").stdout == "trial(s) 1 wait for another attempt; go on with `orch resume s`\n"
    orch.here("resume", "s", code=4)
    assert orch.recorded() == {0: [], 1: [1, 2], 2: []}
    assert "trial(s) 0, 2 wait" in orch.here("retry", "s", "--failed").stdout
    orch.here("resume", "s")
    assert orch.recorded() == epochs_of(3, 2)
    assert orch.here("retry", "s", "--failed").stdout == "no trial has failed\n"


@pytest.mark.slow
def test_process_that_does_not_answer_is_named_and_nothing_changes(orch, monkeypatch):
    monkeypatch.setattr(control, "ANSWER_SECONDS", 1.0)
    with orch.running(*orch.counting(trials=2, epochs=30, pause_seconds=0.4, workers=1)) as sweep:
        wait_until(lambda: orch.begun().total() >= 1, what="an epoch")
        with orch.record() as record:
            orch.stop_between_writes(sweep)
            with pytest.raises(UnavailableError, match=rf"process {sweep.pid} on \S+ does not answer; nothing was"):
                control.pause(record, "s")
            assert record.commands(record.study("s").id) == []
            sweep.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_commands_on_a_study_that_does_not_run_do_what_they_can(orch):
    orch.here(*orch.counting(trials=1, epochs=1))
    for command in ("stop", "pause"):
        assert "study 's' does not run now; `orch resume s`" in orch.here(command, "s", code=2).stderr
    assert orch.here("set", "s", "timeout=2h").stdout == "from now on timeout=7200.0s; go on with `orch resume s`\n"
    assert "extend takes trials and max_epochs_total" in orch.here("extend", "s", "workers=3", code=2).stderr
    assert re.search(
        "lr cannot be changed in an existing study; allowed: trials, ", orch.here("set", "s", "lr=1", code=2).stderr
    )
    assert "pass --failed" in orch.here("retry", "s", code=2).stderr
    with orch.record() as record:
        assert control.go_on(record, "s", []) is None


def test_more_trials_than_there_are_is_for_a_study_that_is_there():
    with pytest.raises(UsageError, match="there is nothing to add to yet; `orch extend STUDY trials"):
        load(["recipe=mlp", "trials=+5"])

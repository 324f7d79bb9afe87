"""The log of one trial, out of files that workers write about all of theirs."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.orch import ORCH, Orch, children, kill, wait_until


@pytest.fixture
def orch(tmp_path):
    return Orch(tmp_path)


@pytest.mark.slow
def test_log_of_a_trial_is_told_from_those_of_the_others(orch):
    orch.here(
        *orch.counting("fault='',raise", trials=2, epochs=2, workers=1, retries=1, sampler="grid", hidden=8), code=4
    )
    failed = next(number for number in (0, 1) if orch.json("show", f"s/{number}")["state"] == "failed")
    lines = orch.here("logs", f"s/{failed}").stdout.splitlines()
    assert [line.partition(" begins: ")[2] for line in lines if " begins: " in line] == [
        f"trial {failed} of s, attempt {attempt}" for attempt in (1, 2)
    ]
    assert sum("RuntimeError: as the test asked" in line for line in lines) == 2
    other = orch.here("logs", f"s/{1 - failed}").stdout
    assert f"trial {1 - failed} of s, attempt 1" in other
    assert "RuntimeError" not in other


@pytest.mark.slow
def test_followed_log_goes_on_in_the_next_attempt_and_ends_with_the_trial(orch):
    arguments = orch.counting(trials=1, epochs=4, workers=1, pause_seconds=1.0, sampler="random")
    with orch.running(*arguments) as sweep:
        wait_until(lambda: orch.begun().total() >= 1, what="an epoch")
        command = [ORCH, "logs", "s/0", "-f"]
        with subprocess.Popen(
            command, cwd=orch.folder, env=orch.environment, text=True, stdout=subprocess.PIPE
        ) as logs:
            assert "attempt 1" in logs.stdout.readline()
            kill(children(sweep.pid, "worker-")[0])
            assert "attempt 2" in next(line for line in logs.stdout if " begins: " in line)
            assert logs.poll() is None
            out, err = sweep.communicate(timeout=120)
            assert sweep.returncode == 0, f"{out}\n{err}"
            assert logs.wait(60) == 0


@pytest.mark.slow
def test_trial_that_is_not_there_or_has_no_log_here_is_named(orch):
    orch.here(*orch.counting(trials=1, epochs=1, workers=1))
    assert "unknown trial of s '4'" in orch.here("logs", "s/4", code=2).stderr
    (orch.home / "logs" / "s" / "worker-0.log").unlink()
    assert "worker-0.log is not here; attempt 1 ran as worker-0 on" in orch.here("logs", "s/0", code=2).stderr

"""The short form of tools/torture.py: signals at random moments change nothing of what a run ends with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TORTURE = Path(__file__).parents[2] / "tools" / "torture.py"


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_as_the_undisturbed_one(tmp_path):
    command = [sys.executable, str(TORTURE), f"--workdir={tmp_path / 'all'}", "--processes=1", "--kills=1", "--terms=1",
               "--seed=3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == 0
    assert [sum(run["signals"].values()) for run in found["runs"]] == [2]

"""The short form of tools/torture.py: signals at random moments change nothing of what a run ends with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TORTURE = Path(__file__).parents[2] / "tools" / "torture.py"


@pytest.mark.slow
@pytest.mark.parametrize("processes, kills, terms", [(1, 3, 1), (2, 1, 1)])
def test_a_run_that_is_killed_at_random_moments_ends_as_the_undisturbed_one(tmp_path, processes, kills, terms):
    command = [sys.executable, str(TORTURE), f"--workdir={tmp_path / 'all'}", f"--processes={processes}",
               f"--kills={kills}", f"--terms={terms}", "--seed=3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == 0 and sum(found["runs"][0]["signals"].values()) == kills + terms

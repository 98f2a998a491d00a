"""The short form of tools/torture.py: signals at random moments change nothing of what a run ends with."""

import collections
import importlib.util
import json
import random
import signal
import subprocess
import sys
import time
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


@pytest.mark.slow
def test_batches_in_buckets_are_those_of_one_process_when_four_are_killed_then_two_and_one_ends(tmp_path):
    spec = importlib.util.spec_from_file_location("torture", TORTURE)
    torture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(torture)
    config, run = tmp_path / "config.py", tmp_path / "killed"
    short = ("total_images=160", "total_images=96"), ("max_images=4", "max_images=0"), ("count=2", "count=0")
    config.write_text(torture.config_text(True, *short))
    assert torture.end(torture.start(config, tmp_path / "alone", 1))[0] == [0]
    expected, _ = torture.images(tmp_path / "alone")
    assert sorted(expected) == list(range(1, 25))
    assert set(collections.Counter(seen for batch in expected.values() for seen in batch).values()) == {6}
    for count, step in ((4, 3), (2, 12)):
        processes = torture.start(config, run, count)
        while not any((run / "checkpoints" / str(saved)).exists() for saved in range(step, 22, 3)):
            assert all(process.poll() is None for process in processes), torture.end(processes)
            time.sleep(0.02)
        assert torture.strike(processes, signal.SIGKILL, random.Random(count))
        codes, text = torture.end(processes)
        assert codes != [0] * count, text
    codes, text = torture.end(torture.start(config, run, 1))
    assert codes == [0], text
    assert torture.images(run) == (expected, [])
    assert {line.split()[0] for line in run.with_suffix(".images").read_text().splitlines()} == {"1", "2", "4"}

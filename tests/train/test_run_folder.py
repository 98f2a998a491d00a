"""What a run's folder can go through: a second start, an extension, and things in it that are none of a run's."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from run_state import final, small_config

from lgm.cli import main

pytestmark = pytest.mark.slow

WORDS = ["--config.optimizer.schedule=constant", "--config.optimizer.warmup_images=16", "--config.log.keep=3",
         "--config.log.checkpoint_every_images=16"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(small_config(48))
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "lr[1e-3] back\\slash"
    assert main(["train", f"--config={config}", f"--workdir={workdir}", *WORDS]) == 0
    return workdir


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(finished, tmp_path / finished.name)


def rows(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    drop = ("images_per_second", "step_seconds", "tflops_per_second", "executed_tflops_per_second", "mfu", "goodput")
    clock = lambda key: key in drop or key.startswith("seconds/")
    return [{key: value for key, value in row.items() if not clock(key)} for row in found]


def same(one, other):
    (step, arrays), (other_step, others) = final(one), final(other)
    assert step == other_step
    for a, b in zip(arrays, others, strict=True):
        assert a.tobytes() == b.tobytes()


def test_an_extended_run_is_the_longer_run_and_says_what_it_was(config, run, tmp_path, capsys):
    longer = ["train", f"--config={config}", *WORDS, "--config.total_images=96", f"--workdir={run}"]
    assert main(longer) == 2
    err = capsys.readouterr().err
    assert "config.total_images=48, not 96" in err and "--extend" in err
    kept = rows(run)
    assert main([*longer, "--config.seed=1", "--extend"]) == 2
    assert "config.seed=0, not 1; --extend may change total_images, optimizer.lr" in capsys.readouterr().err
    shorter = ["train", f"--config={config}", *WORDS, "--config.total_images=24"]
    assert main([*shorter, f"--workdir={run}", "--extend"]) == 2
    assert "has been trained on 48" in capsys.readouterr().err
    assert main([*longer, "--extend"]) == 0
    assert main([*longer, "--extend"]) == 0  # as a supervisor starts it again
    assert main(longer) == 0
    assert rows(run)[: len(kept)] == kept
    history = json.loads((run / "config.json").read_text())["extended"]
    assert [(entry["images"], entry["was"]) for entry in history] == [(48, {"total_images": 48})]
    at_once = tmp_path / "at-once"
    assert main([*longer[:-1], f"--workdir={at_once}"]) == 0
    same(run, at_once)
    assert [row for row in rows(run) if "loss" in row] == [row for row in rows(at_once) if "loss" in row]


def test_extend_without_a_run_is_refused_and_makes_nothing(config, tmp_path, capsys):
    assert main(["train", f"--config={config}", f"--workdir={tmp_path / 'run'}", *WORDS, "--extend"]) == 2
    assert "holds no run to go on with" in capsys.readouterr().err and os.listdir(tmp_path) == []


def test_a_damaged_newest_checkpoint_costs_what_was_trained_since_the_one_before(config, finished, run, capfd):
    newest = run / "checkpoints" / "6"
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    capfd.readouterr()
    assert main(["train", f"--config={config}", f"--workdir={run}", *WORDS]) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "cannot be read" in line]
    assert len(said) == 1 and "going on from the one before" in said[0]
    same(run, finished)
    assert rows(run) == rows(finished)


def a_file(path):
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    path.write_text("x")


def a_folder(path):
    path.unlink()
    path.mkdir()


FAULTS = {
    "checkpoints is a file": lambda run: a_file(run / "checkpoints"),
    "config.json is deep": lambda run: (run / "config.json").write_text("[" * 100_000),
    "config.json is a folder": lambda run: a_folder(run / "config.json"),
    "config.json is a list": lambda run: (run / "config.json").write_text("[1]"),
    "config.json is empty": lambda run: (run / "config.json").write_text(""),
    "metrics.jsonl is a folder": lambda run: a_folder(run / "metrics.jsonl"),
    "no checkpoint is whole": lambda run: [a_file(path) for path in (run / "checkpoints").iterdir()],
    "the lock is a folder": lambda run: (run / "lock.json").mkdir(),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_folder_that_is_not_as_a_run_leaves_it_is_refused_in_one_line(name, config, run, capfd):
    FAULTS[name](run)
    capfd.readouterr()
    assert main(["train", f"--config={config}", f"--workdir={run}", *WORDS]) == 2
    err = capfd.readouterr().err
    refusals = [line for line in err.splitlines() if line.startswith("lgm train: ")]
    assert len(refusals) == 1 and "Traceback" not in err and str(run) in refusals[0]
    assert all("cannot be read" in line for line in err.splitlines() if line not in refusals)


def test_of_two_starts_at_once_one_trains_and_the_other_is_refused(config, finished, tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "lgm.cli", "train", f"--config={config}", f"--workdir={workdir}", *WORDS]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=400)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 2], [0, 0])  # the second may have come when the first had ended
    for code, error in zip(codes, errors, strict=True):
        if code == 2:
            assert error.count("\n") == 1 and f"{workdir} is held by process" in error
    same(workdir, finished)
    assert rows(workdir) == rows(finished)


def test_a_run_that_was_killed_is_taken_over_at_once(config, finished, tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "lgm.cli", "train", f"--config={config}", f"--workdir={workdir}", *WORDS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (workdir / "checkpoints" / "2").is_dir() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert (workdir / "lock.json").exists()
    subprocess.run(command, check=True, capture_output=True, timeout=400)
    assert not (workdir / "lock.json").exists()
    same(workdir, finished)
    assert rows(workdir) == rows(finished)
    assert np.isfinite([row["loss"] for row in rows(workdir) if "loss" in row]).all()

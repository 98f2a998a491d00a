"""One of four processes is lost, and three go on: the same images, the same loss, and an account of the time."""

import importlib.util
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from lgm.train import goodput

TORTURE = Path(__file__).parents[2] / "tools" / "torture.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def torture():
    spec = importlib.util.spec_from_file_location("torture", TORTURE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def config(tmp_path_factory, torture):
    """A denoiser's run of 30 steps whose batch of 12 divides over four processes and over three."""
    path, text = tmp_path_factory.mktemp("config") / "small.py", torture.CONFIG
    for old, new in (("batch_size=4, total_images=160", "batch_size=12, total_images=360"), ("lr=3e-3", "lr=1e-4"),
                     ("batch_size=4, max_images=4", "batch_size=12, max_images=0"), ("face-hat", "face-smiling"),
                     ("every_images=8, checkpoint_every_images=12", "every_images=24, checkpoint_every_images=84"),
                     ("steps=2, count=2, every_images=80", "steps=2, count=0"), ("every_images=40", "every_images=120"),
                     ):  # fmt: skip
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory, torture):
    """The folder of a run of one process that nothing happened to."""
    folder = tmp_path_factory.mktemp("alone") / "undisturbed"
    codes, text = torture.end(torture.start(config, folder, 1))
    assert codes == [0], text
    return folder


@pytest.mark.parametrize("victim", [0])  # which leads; any other is lost as in test_elastic.py
def test_three_of_four_go_on_with_the_same_images_and_the_same_loss(config, alone, tmp_path, torture, victim):
    run = tmp_path / "disturbed"
    processes = torture.start(config, run, 4, "--elastic=3")
    while not ((run / "metrics.jsonl").exists() and max(losses(run), default=0) >= 10):
        assert all(process.poll() is None for process in processes), torture.end(processes)
        time.sleep(0.02)
    with open(f"/proc/{processes[victim].pid}/task/{processes[victim].pid}/children") as file:
        worker = int(file.read().split()[0])
    processes[victim].kill()
    os.kill(worker, signal.SIGKILL)
    codes, text = torture.end(processes)
    assert [code for index, code in enumerate(codes) if index != victim] == [0] * 3, text
    assert text.count(f"process {victim} lost: 3 processes go on from the last checkpoint") == 3, text

    (seen, odd), (expected, _) = torture.images(run), torture.images(alone)
    assert not odd and seen == expected and sorted(seen) == list(range(1, 31))
    counts = np.unique(np.concatenate(list(seen.values())), return_counts=True)[1]
    assert counts.max() - counts.min() <= 1
    logged = [line.split()[:3] for line in run.with_suffix(".images").read_text().splitlines()]
    assert {count for count, _, step in logged if step == "30"} == {"3"}
    ours, theirs = losses(run), losses(alone)
    assert ours.keys() == theirs.keys()
    # sums over four shares, and over three, are taken in another order than over one
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-5)
    account = goodput.read(run)
    print(f"goodput {account['goodput']:.0%}", account["seconds"])
    assert account["starts"] == 2 and account["seconds"]["down"] > 0 and account["goodput"] > 0
    assert sum(account["seconds"].values()) == pytest.approx(account["until"] - account["since"], abs=1e-3)

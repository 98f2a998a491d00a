"""One of four processes is lost, and three go on: the same images, the same loss, and an account of the time."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from run_state import small_config

from lgm.train import goodput

TORTURE = Path(__file__).parents[2] / "tools" / "torture.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def torture():
    spec = importlib.util.spec_from_file_location("torture", TORTURE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launched(config, workdir, *words):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, str(TORTURE), "--worker", f"{workdir}.images", "train", f"--config={config}",
               f"--workdir={workdir}", f"--coordinator={address}", "--processes=4", *words]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return [subprocess.Popen([*command, f"--process-id={i}"], stderr=subprocess.STDOUT, stdout=subprocess.PIPE,
                             text=True, env=environment) for i in range(4)]


def ends(processes):
    texts = [process.communicate(timeout=900)[0] for process in processes]
    return [process.returncode for process in processes], texts


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run of 30 steps whose batch of 12 divides over four processes and over three."""
    path = tmp_path_factory.mktemp("config") / "small.py"
    text = small_config(images=360).replace("batch_size=8, total", "batch_size=12, total")
    text = text.replace("lr=1e-3", "lr=1e-4").replace("every_images=16", "every_images=24")
    path.write_text(text.replace("face-hat", "face-smiling"))
    return path


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("alone") / "undisturbed"
    codes, texts = ends(launched(config, folder))
    assert codes == [0] * 4, texts
    return folder


@pytest.mark.parametrize("victim", [0])  # which leads; any other is lost as in test_elastic.py
def test_three_of_four_go_on_with_the_same_images_and_the_same_loss(config, alone, tmp_path, torture, victim):
    run = tmp_path / "disturbed"
    processes = launched(config, run, "--elastic=3")
    while not ((run / "metrics.jsonl").exists() and max(losses(run), default=0) >= 10):
        assert all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.02)
    with open(f"/proc/{processes[victim].pid}/task/{processes[victim].pid}/children") as file:
        worker = int(file.read().split()[0])
    processes[victim].kill()
    os.kill(worker, signal.SIGKILL)
    codes, texts = ends(processes)
    assert [code for index, code in enumerate(codes) if index != victim] == [0] * 3, texts
    assert f"process {victim} lost: 3 processes go on from the last checkpoint" in texts[victim - 1], texts

    (seen, odd), (expected, _) = torture.images(run), torture.images(alone)
    assert not odd and seen == expected and sorted(seen) == list(range(1, 31))
    counts = np.unique(np.concatenate(list(seen.values())), return_counts=True)[1]
    assert counts.max() - counts.min() <= 1
    logged = [line.split()[:3] for line in Path(f"{run}.images").read_text().splitlines()]
    assert {count for count, _, step in logged if step == "30"} == {"3"}
    ours, theirs = losses(run), losses(alone)
    assert ours.keys() == theirs.keys()
    # sums over three shares are taken in another order than over four
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-5)
    account = goodput.read(run)
    print(f"goodput {account['goodput']:.0%}", account["seconds"])
    assert account["starts"] == 2 and account["seconds"]["down"] > 0 and account["goodput"] > 0
    assert sum(account["seconds"].values()) == pytest.approx(account["until"] - account["since"], abs=1e-3)

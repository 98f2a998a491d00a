"""A run whose folder lies in gs:// or s3://, on servers of the protocols: killed, resumed, exported, the local one's
bits."""

import json
import subprocess
import sys
import time

import pytest
from run_state import final, small_config
from stores import store  # noqa: F401

from lgm import files
from lgm.cli import main

pytestmark = pytest.mark.slow

WORDS = ["--config.optimizer.warmup_images=16", "--config.log.checkpoint_every_images=16"]


def rows(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    drop = ("images_per_second", "step_seconds", "tflops_per_second", "executed_tflops_per_second", "mfu", "goodput")
    clock = lambda key: key in drop or key.startswith("seconds/")
    return [{key: value for key, value in row.items() if not clock(key)} for row in found]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(config file, the folder of an undisturbed local run, its export)."""
    place = tmp_path_factory.mktemp("local")
    config, workdir, out = place / "small.py", place / "run", place / "exported"
    config.write_text(small_config(48))
    assert main(["train", f"--config={config}", f"--workdir={workdir}", *WORDS]) == 0
    assert main(["export", f"--workdir={workdir}", f"--out={out}"]) == 0
    return config, workdir, out


def test_a_run_in_a_store_is_the_local_run_bit_for_bit(store, alone, tmp_path, capsys):  # noqa: F811
    config, local, exported = alone
    name, workdir = f"{store}/runs/small", files.place(f"{store}/runs/small")
    command = [sys.executable, "-m", "lgm.cli", "train", f"--config={config}", f"--workdir={name}", *WORDS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    while not (workdir / "checkpoints" / "2" / "commit_success.txt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=400)
    assert again.returncode == 0 and "Traceback" not in again.stderr, again.stderr[-3000:]
    assert list(tmp_path.iterdir()) == []  # nothing is left here
    files.copy(workdir, tmp_path / "copy")
    (step, arrays), (other_step, others) = final(tmp_path / "copy"), final(local)
    assert step == other_step == 6
    assert all(a.tobytes() == b.tobytes() for a, b in zip(arrays, others, strict=True))
    assert rows(workdir) == rows(local)
    assert {"config.json", "metrics.jsonl", "samples", "checkpoints"} <= {path.name for path in files.folders(workdir)}
    assert not (workdir / "lock.json").exists()
    assert main(["status", "--json", name]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["images"] == row["checkpoint"] == 48 and row["run"] == name
    assert 0 <= row["checkpoint_seconds_ago"] < 3600 and row["seconds_left"] == 0
    assert main(["export", f"--workdir={name}", f"--out={store}/exported"]) == 0
    files.copy(files.place(f"{store}/exported"), tmp_path / "exported")
    names = sorted(str(path.relative_to(exported)) for path in files.below(exported))
    assert names == sorted(str(path.relative_to(tmp_path / "exported")) for path in files.below(tmp_path / "exported"))
    assert all((exported / name).read_bytes() == (tmp_path / "exported" / name).read_bytes() for name in names)
    assert main(["export", f"--workdir={name}", f"--out={tmp_path / 'here'}"]) == 0
    assert (tmp_path / "here" / "config.json").read_bytes() == (exported / "config.json").read_bytes()

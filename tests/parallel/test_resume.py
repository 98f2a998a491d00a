"""A run goes on with another mesh: the state comes back bit for bit, and the next step is what it would have been."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lgm import config as schema
from lgm.cli import main

FOLDER = Path(__file__).parent
FIRST = {"mesh": {"data": 8}}
OTHERS = (
    {"mesh": {"data": 1, "fsdp": 4, "tensor": 2}},
    {"mesh": {"data": 1, "stage": 2, "context": 2, "fsdp": 2}, "accumulate": 2, "model": {"remat": "full"}},
    {"mesh": {"data": 2, "fsdp": 4}, "optimizer": {"offload": True}},
    {"mesh": {"data": 1}, "devices": 1},
)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "others"), [("dit", OTHERS[::3]), ("flux", OTHERS[1:3])])
def test_a_state_saved_on_one_mesh_is_restored_on_others_and_goes_on_alike(family, others):
    command = [sys.executable, str(FOLDER / "resume_on_meshes.py"), family, json.dumps([FIRST, others])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parent.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(others)
    for row in rows:
        assert row["bits"] and row["placed"] and row["data"] == {"next": 2}
        assert row["loss"] <= 1e-5 and row["params"][0] <= 1e-5, row


def test_only_what_says_where_a_step_is_computed_may_change(tiny_config):
    ours = schema.load(tiny_config)
    run = lambda *overrides: schema.to_dict(schema.load(tiny_config, overrides))
    placing = [("mesh.fsdp", "4"), ("mesh.rules", "{'mlp': None}"), ("attention", "ring"), ("accumulate", "2"),
               ("model.remat", "full"), ("model.group", "2"), ("optimizer.offload", "True")]  # fmt: skip
    assert schema.other_run(ours, run(*placing)) is None
    assert schema.other_run(ours, run(*placing, ("optimizer.lr", "1.0"))) == ("optimizer.lr", 3e-3, 1.0)
    assert schema.other_run(ours, run(("model.qk_norm", "rms")))[0] == "model.qk_norm"


@pytest.mark.slow
def test_a_run_stopped_on_one_mesh_ends_on_another_as_on_one_device(tiny_config, tiny_run, tmp_path):
    workdir = tmp_path / "run"
    program = """
import os, signal, sys
from lgm.cli import main
from lgm.train import loop

class StopAtSeven(loop._Run):
    def _due(self, step, every_images):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return super()._due(step, every_images)

if sys.argv[1] == "stop":
    loop._Run = StopAtSeven
sys.exit(main(sys.argv[2:]))
"""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}

    def train(how, *options):
        command = [sys.executable, "-c", program, how, "train", f"--config={tiny_config}", f"--workdir={workdir}"]
        return subprocess.run([*command, *options], env=environment, capture_output=True, text=True)

    stopped = train("stop", "--config.mesh.data=1", "--config.mesh.fsdp=8")
    assert stopped.returncode == 75, stopped.stderr
    done = train("go", "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2",
                 "--config.model.remat=full")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert main(["train", f"--config={tiny_config}", f"--workdir={workdir}"]) == 0  # it is finished on any mesh
    rows = lambda folder: [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ours, theirs = rows(workdir), rows(tiny_run)
    assert [row["step"] for row in ours if "loss" in row] == [row["step"] for row in theirs if "loss" in row]
    last = lambda found, key: [row[key] for row in found if key in row][-1]
    for key in ("loss", "heldout_loss"):
        assert last(ours, key) == pytest.approx(last(theirs, key), rel=1e-4)  # twelve steps of Adam from noise

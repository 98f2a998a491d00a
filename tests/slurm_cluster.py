"""A real Slurm cluster on this machine, and what tests ask of it.

tools/slurm_cluster.sh makes it, as root, from Debian's packages: apt-get install slurm-wlm munge
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "slurm_cluster.sh"
SWEEP = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(
        name="tiny", images=(40,), seeds=(0, 1, 2), cooldown=0.4,
        base=dict(
            batch_size=8, data=dict(where=dict(subcategory="face-hat"), heldout_where=dict(subcategory="face-glasses")),
            text=dict(encoder=dict(family="clip_text", vocab_size=4096, width=16, depth=1, heads=1, max_length=16)),
            optimizer=dict(warmup_images=16), ema=dict(half_life_images=10**9, ramp=0.1),
            evaluation=dict(times=1, levels=2, batch_size=16, max_images=8), sampling=dict(count=0, steps=2),
            log=dict(every_images=16, checkpoint_every_images=16),
        ),
        architectures=dict(mmdit=dict(family="mmdit", sizes=(1,), lr=1e-3, shape=dict(
            head_size=16, aspect=16.0, channels=32, patch_size=1, text_dim=16, pooled_dim=16, position_size=8,
            base_size=8))),
        objectives=dict(flow=dict(process=dict(name="rectified_flow"), loss=dict(target="flow"))),
    ))
"""


@contextlib.contextmanager
def running():
    """The folder of a cluster that `SLURM_CONF` names inside."""
    missing = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]
    if missing or os.getuid() != 0:
        why = f"{', '.join(missing)} missing" if missing else "not root"
        pytest.fail(f"no Slurm cluster can be made here ({why}): as root, apt-get install slurm-wlm munge")
    folder = tempfile.mkdtemp(prefix="lgm-slurm-")
    subprocess.run([TOOL, "start", folder], check=True, stdout=subprocess.DEVNULL)  # its daemons keep what they inherit
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
        yield folder
        subprocess.run(["scancel", "--user=root"], check=False)
        subprocess.run([TOOL, "stop", folder], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def shown(job):
    done = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True)
    return re.findall(r"JobState=(\S+)", done.stdout)


def wait_until(true, what, workdir, seconds=900):
    start = time.monotonic()
    while not true():
        if time.monotonic() - start > seconds:
            logs = "\n".join(f"--- {p}\n{p.read_text()[-2000:]}" for p in Path(workdir).glob("launch/**/*.log"))
            pytest.fail(f"no {what} within {seconds} s\n{logs}")
        time.sleep(0.2)


def rows(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def last_step(workdir):
    return max((row["step"] for row in rows(workdir) if "loss" in row), default=0)

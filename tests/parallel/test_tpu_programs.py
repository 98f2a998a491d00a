"""What the TPU compiler makes of a train step: the kernels, collectives and host memory that its config asks for."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.libtpu]
CASES = [
    dict(mesh=dict(data=1, fsdp=8)),
    dict(mesh=dict(data=1, fsdp=8), model=dict(remat="offload"), optimizer=dict(offload=True)),
    dict(mesh=dict(data=1, fsdp=2, context=4), attention="ring"),
]


@functools.cache
def rows() -> list[dict]:
    done = subprocess.run([sys.executable, str(FOLDER / "tpu_programs.py"), json.dumps(CASES)], capture_output=True,
                          text=True, cwd=FOLDER.parent.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_attention_is_splash_and_gradients_are_scattered():
    plain = rows()[0]
    assert plain["kernels"] >= 4  # forward and backward, in the scan and in the last block
    assert plain["scattered"] >= 2
    assert plain["host_argument"] == plain["host_temporary"] == 0


def test_offload_keeps_moments_and_block_inputs_on_the_host():
    plain, offloaded, _ = rows()
    eighth = offloaded["moments"] / 8
    assert eighth <= offloaded["host_argument"] < 1.02 * eighth  # tiles are padded
    assert offloaded["argument"] <= plain["argument"] - eighth * 0.99
    # three scanned blocks, two examples a device, 16 image tokens and 5 of text, bfloat16
    assert offloaded["host_temporary"] == 3 * 2 * (16 + 5) * 256 * 2


def test_a_ring_passes_on_while_it_computes():
    assert rows()[2]["permuted"] >= 2  # asynchronous

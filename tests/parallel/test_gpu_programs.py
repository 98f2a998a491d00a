"""What XLA:GPU makes, without a GPU, of a train step, sampler and measurements with masked text on 8 H100s: all
compile, and 16-bit attention is cuDNN's, forward and backward, without a mask of scores."""

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
FORWARD, BACKWARD = "fmhaSoftmax", "fmhaSoftmaxBackward"
RUN = ("train", "sample", "heldout")


def case(sites, spec=None, programs=RUN, remat=False, **changes):
    """A config's programs, and how often they hold attention: once in the body of a scan over blocks."""
    changes = dict(batch_size=16, sampling=dict(steps=2)) | changes
    return dict(sites=sites, remat=remat, given=dict(spec=spec, programs=programs, changes=changes))


EMOJI = dict(text=dict(encoder=dict(depth=1)))
MMDIT = dict(depth=2, group=1)  # the last block, which has no text after it, is not scanned
# head sizes, image and text tokens of the real one; two blocks
CASES = {
    "emoji mmdit, masked": case(2, "configs/emoji.py:model=mmdit,process=flow", (*RUN, "levels", "decode", "encode"),
                                model=MMDIT, **EMOJI),
}  # fmt: skip


@functools.cache
def rows(count: int) -> dict[str, dict]:
    """What `gpu_programs.py` prints of every case."""
    cases = []
    for one in CASES.values():
        mesh = {"mesh=": dict(data=1, fsdp=count)}
        cases.append(one["given"] | {"count": count, "changes": one["given"]["changes"] | mesh})
    done = subprocess.run([sys.executable, str(FOLDER / "gpu_programs.py"), json.dumps(cases)], capture_output=True,
                          text=True, cwd=FOLDER.parent.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, (json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [8])
def test_programs_compile_with_cudnn_attention(count, name):
    if importlib.util.find_spec("jax_cuda13_plugin") is None or importlib.util.find_spec("nvidia.cudnn") is None:
        pytest.skip("needs the CUDA compiler, which needs no GPU: pip install 'lgm[plan-gpu]'")
    expected, programs = CASES[name], rows(count)[name]["programs"]
    forward, backward = expected["sites"] * (1 + expected["remat"]), expected["sites"]
    for program, found in programs.items():
        if program == "train":
            assert found == {FORWARD: forward, BACKWARD: backward}
        elif program in ("decode", "encode"):  # one head of 512, too wide for the kernel
            assert found == {}
        else:
            assert set(found) == {FORWARD} and found[FORWARD] >= expected["sites"], program

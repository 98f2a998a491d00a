"""What XLA:GPU makes, without a GPU, of train steps, samplers and measurements of every family on 1 and on 8 H100s: all
compile, and 16-bit attention is cuDNN's, forward and backward, masked or not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))
from check_gpu_programs import CASES  # noqa: E402


@pytest.mark.gpu_compiler
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("name", CASES)
def test_programs_compile_with_cudnn_attention(name, count):
    """In a process of its own, so that the CUDA plugin is loaded in no other."""
    command = [sys.executable, "tools/check_gpu_programs.py", f"--gpus={count}", f"--case={name}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]

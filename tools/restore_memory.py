"""Peak memory of restoring a run's weights alone, against the weights themselves.

    python tools/restore_memory.py [--gigabytes=2.4] [--folder=DIR] [--devices=1]

Writes the checkpoint of a train state of an MMDiT with weights of about that size (float32; parameters, both moments,
EMA), restores the EMA in a fresh process, and prints the peak of resident memory less what was resident before, over
the bytes of the weights. On a CPU host and device are one memory, so the figure is of both together; `--devices` splits
the weights over so many. What is expected: under 1.3 (1.10 was seen at 2.0 GB); the whole state is four times that.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def model_of(gigabytes: float):
    """An MMDiT with SD3-medium's width and the depth that gives about `gigabytes` in float32."""
    from lgm.models import build, classes

    return build(classes("mmdit")[0](depth=max(2, round(gigabytes * 1e9 / 4 / 84e6))))


def write(folder: Path, gigabytes: float) -> None:
    """A state whose EMA is noise; the rest, which is not to be read, are zeros."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from lgm.train.checkpoint import Checkpoints
    from lgm.train.state import TrainState

    noise = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    abstract = model_of(gigabytes).abstract()
    ema = {"denoiser": jax.tree.map(lambda leaf: jnp.asarray(np.resize(noise, leaf.shape)), abstract)}
    params = jax.tree.map(jnp.zeros_like, ema)
    checkpoints = Checkpoints(folder)
    # one buffer for all that is zero: the test's own memory is not what is measured, and no more than it needs
    adam = optax.ScaleByAdamState(jnp.int32(1), params, params)
    checkpoints.save(1, TrainState(jnp.int32(1), params, (adam,), ema), {})
    checkpoints.wait()
    checkpoints.close()


def read(folder: Path, gigabytes: float) -> dict:
    """Restore and measure; run in a process of its own."""
    import jax

    from lgm.parallel import make_layout, shardings
    from lgm.train.restoring import restore_weights

    model = model_of(gigabytes)
    layout = make_layout({"data": 1, "fsdp": -1})
    abstract = {"denoiser": model.abstract()}
    places = shardings(layout, abstract, {"denoiser": model.logical_axes()})
    jax.block_until_ready(jax.device_put(1.0))
    before, start = resident("VmRSS"), time.perf_counter()
    weights, _ = jax.block_until_ready(restore_weights(folder, abstract, "ema", places))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    return {"weights_GB": size / 1e9, "peak_GB": (resident("VmHWM") - before) / 1e9,
            "ratio": (resident("VmHWM") - before) / size, "seconds": time.perf_counter() - start,
            "devices": jax.device_count()}  # fmt: skip


def resident(field: str) -> int:
    """Bytes of this process, from the kernel."""
    return 1024 * int(re.search(rf"^{field}:\s+(\d+)", Path("/proc/self/status").read_text(), re.M)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.4)
    parser.add_argument("--folder", help="where to write the checkpoint (default: a temporary folder)")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--step", choices=("write", "read"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.step:
        found = {"write": write, "read": read}[words.step](Path(words.folder), words.gigabytes)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = words.folder or temporary
        flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={words.devices}"
        for step in ("write", "read"):
            command = [sys.executable, __file__, f"--gigabytes={words.gigabytes}", f"--folder={folder}"]
            done = subprocess.run([*command, f"--step={step}"], env=os.environ | {"XLA_FLAGS": flags}, check=True,
                                  stdout=subprocess.PIPE, text=True)  # fmt: skip
        print(done.stdout, end="")


if __name__ == "__main__":
    main()

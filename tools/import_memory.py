"""Peak host memory of importing a sharded checkpoint, beyond the parameters themselves.

    python tools/import_memory.py --gigabytes=10 [--shard-gigabytes=5] [--folder=DIR]

Writes a T5 encoder of about that size with random bfloat16 weights, reads it in a fresh process straight onto the
device, and prints the peak of resident memory less what was resident before and less the parameters, where the device
is the host. What is expected: at most 1.3 times the largest shard, and far less than a large one, because parameters go
over in pieces of a quarter of a gigabyte.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def config_of(gigabytes: float):
    """A T5 encoder with the matrices of XXL and the depth that gives `gigabytes` in bfloat16."""
    from lgm.models.t5 import T5Config

    layer = 4096 * (4 * 4096 + 3 * 10240) * 2
    return T5Config(depth=max(1, round((gigabytes * 1e9 - 32128 * 4096 * 2) / layer)))


def write(folder: Path, gigabytes: float, shard_gigabytes: float) -> None:
    """Random tensors under the names of a T5EncoderModel, layer by layer."""
    import ml_dtypes
    import numpy as np

    from lgm.interop.keymap import names_of
    from lgm.interop.keys_text import t5
    from lgm.interop.tensor_files import save
    from lgm.models import build

    config = config_of(gigabytes)
    names = names_of(t5(config), build(config).abstract())
    attention, width, inner = config.heads * config.head_width, config.width, config.mlp_width
    shapes = {"shared": (config.vocab_size, width), "relative_attention_bias": (config.buckets, config.heads)}
    shapes |= {"layer_norm": (width,), "final_layer_norm": (width,), "o": (width, attention), "wo": (width, inner)}
    shapes |= dict.fromkeys("qkv", (attention, width)) | dict.fromkeys(("wi_0", "wi_1"), (inner, width))
    noise = np.random.default_rng(0).standard_normal(1 << 20).astype(ml_dtypes.bfloat16)

    def tensors():
        for name in sorted(names):
            shape = shapes[name.split(".")[-2]]
            yield name, np.resize(noise, shape)

    save(tensors(), folder, "model", int(shard_gigabytes * 1e9))


def read(folder: Path, gigabytes: float) -> dict:
    """Import and measure; run in a process of its own."""
    import jax
    import jax.numpy as jnp

    from lgm.interop.keys_text import t5
    from lgm.interop.tensor_files import load
    from lgm.models import build

    config = config_of(gigabytes)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    jax.block_until_ready(jax.device_put(jnp.zeros(1), device))
    before, start = resident(), time.perf_counter()
    params = load(t5(config), build(config).abstract(), folder, dtype=jnp.bfloat16, shardings=device)
    seconds = time.perf_counter() - start
    size = sum(p.nbytes for p in jax.tree.leaves(params))
    on_host = jax.devices()[0].platform == "cpu"
    return {"parameters": size, "seconds": seconds, "extra": resident() - before - (size if on_host else 0)}


def resident() -> int:
    """The most memory that this process ever had resident, in bytes (rusage's figure includes the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--shard-gigabytes", type=float, default=5)
    parser.add_argument("--folder", help="where to write, with that much free space; a temporary folder by default")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(Path(options.read), options.gigabytes)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write(Path(folder), options.gigabytes, options.shard_gigabytes)
        largest = max(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        command = [sys.executable, __file__, f"--read={folder}", f"--gigabytes={options.gigabytes}"]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{result['parameters'] / 1e9:.1f} GB of parameters in {result['seconds']:.1f} s")
    share = f"{result['extra'] / largest:.2f} of the largest shard ({largest / 1e9:.2f} GB)"
    print(f"extra host memory at the peak: {result['extra'] / 1e9:.2f} GB, {share}")


if __name__ == "__main__":
    main()

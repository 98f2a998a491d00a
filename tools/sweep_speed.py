"""How many small runs an hour: batched in one program, against one after another.

    python tools/sweep_speed.py [--family=mmdit] [--size=1] [--runs=8] [--images=1024] [--steps=40]

The same runs four ways, whole commands timed from start to exit:

- a process a run, each compiling for itself (an empty compilation cache);
- a process a run, the program found in the cache: what somebody gets who starts them one after another;
- one process and one program, the runs taking turns at it (an empty cache);
- one process and one program that steps all runs at once, by vmap (an empty cache).

Then what is left of the gain in long runs: the time of a step of one run in each of the programs.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """
from ml_collections import ConfigDict

SHAPES = {{
    "mmdit": dict(head_size=16, aspect=16.0, channels=32, patch_size=1, text_dim=32, pooled_dim=32, position_size=8,
                  base_size=8, qk_norm="rms"),
    "unet": dict(base="small", head_size=16, channels=32, text_dim=32, pooled_dim=32),
}}


def get_config():
    return ConfigDict(dict(
        name="speed",
        base=dict(
            batch_size=16,
            data=dict(where=dict(subcategory="face-", split="train"),
                      heldout_where=dict(subcategory="face-", split="heldout")),
            text=dict(encoder=dict(family="clip_text", vocab_size=4096, width=32, depth=1, heads=2, max_length=16,
                                   causal=False)),
            optimizer=dict(warmup_images=64), ema=dict(half_life_images=1_000_000_000, ramp=0.05),
            evaluation=dict(times=1, levels=8, batch_size=152), sampling=dict(count=0),
            log=dict(every_images=256, checkpoint_every_images=0),
        ),
        architectures=dict({family}=dict(family="{family}", sizes=({size},), lr=4e-3, together={runs}, how="{how}",
                                         shape=SHAPES["{family}"])),
        objectives=dict(flow=dict(process=dict(name="rectified_flow"), loss=dict(target="flow"))),
        images=({images},), seeds=tuple(range({runs})), cooldown=0.25,
    ))
"""


def sweep(config: Path, workdir: Path, cache: Path, *words: str) -> tuple[float, float]:
    """(wall, CPU) seconds of one `lgm sweep`."""
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "lgm.cli", "sweep", f"--config={config}", f"--workdir={workdir}", *words]
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def steps(config: Path, workdir: Path, how: str, together: int, count: int) -> tuple[float, float, float]:
    """(wall, CPU) milliseconds of a step of one run, and CPU seconds of compiling, with `together` runs a program."""
    import jax
    import numpy as np

    from lgm.scaling import sweep as plans
    from lgm.scaling import together as batched

    runs = plans.expand(plans.load(str(config)))[:together]
    group = batched.open_group(runs, how, workdir)
    drive = batched.Drive(group, np.zeros(len(runs), bool), lambda *_: None, lambda: False)
    states, began = [group.init(group.seeds(part)) for part in group.parts], time.process_time()
    states = jax.block_until_ready(drive.go(states, 0, group.chunk, 0))
    compiling = time.process_time() - began
    until = group.chunk * max(1 + count // group.chunk, 2)
    wall, cpu = time.monotonic(), time.process_time()
    jax.block_until_ready(drive.go(states, group.chunk, until, 0))
    each = 1e3 / (until - group.chunk) / len(runs)
    return (time.monotonic() - wall) * each, (time.process_time() - cpu) * each, compiling


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="mmdit", choices=("mmdit", "unet"))
    for name, value in (("size", 1), ("runs", 8), ("images", 1024), ("steps", 40)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    fields = {name: getattr(arguments, name) for name in ("family", "size", "runs", "images")}
    print(f"{arguments.family} of size {arguments.size}, {arguments.images} images a run, batch 16, "
          f"{len(os.sched_getaffinity(0))} cores", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        configs = {how: folder / f"{how}.py" for how in ("turns", "vmap")}
        for how, path in configs.items():
            path.write_text(CONFIG.format(**fields, how=how))
        slowest = None
        for name, how, count, words in (
            ("a process a run, compiling", "turns", 1, ["--only=0"]),
            ("a process a run, program cached", "turns", 1, ["--only=1"]),
            ("one program, in turns", "turns", arguments.runs, []),
            ("one program, all at once", "vmap", arguments.runs, []),
        ):
            cache = folder / "cache" / ("alone" if words else how)
            wall, cpu = (value / count for value in sweep(configs[how], folder / f"{how}{len(words)}", cache, *words))
            slowest = slowest or wall
            print(f"{name:32} {wall:6.1f} s a run, {cpu:6.1f} CPU s, {3600 / wall:6.0f} runs an hour, "
                  f"{slowest / wall:5.1f} times", flush=True)
        for how, together in (("turns", 1), ("turns", arguments.runs), ("vmap", arguments.runs)):
            ms, cpu_ms, compiling = steps(configs["turns"], folder / "steps", how, together, arguments.steps)
            print(f"a step of one run, {together} by {how:5}: {ms:6.1f} ms, {cpu_ms:6.1f} CPU ms; "
                  f"{compiling:.0f} CPU s to compile", flush=True)


if __name__ == "__main__":
    main()

"""Time train steps on whatever device there is, and diffusers' of the same shape beside them.

    python tools/bench_train.py                                       six published shapes, on a GPU or a TPU
    python tools/bench_train.py --case=sd3_1024 --peer --json=x.json  with torch.compile's time in the same call
    python tools/bench_train.py --config=configs/quickstart.py        the step of a page, as `lgm train` runs it
    python tools/bench_train.py --small --peer                        does it run? for a CPU

Median seconds a step, images/s, TFLOP/s and MFU by the model's own count (three forward passes), memory by the compiler
and as the device saw it, seconds of compiling. A step is loss, gradient, AdamW and EMA of what is trained. The peer's
has no EMA: it runs under bfloat16 autocast with fused float32 AdamW, its blocks compiled, and recomputes blocks where
the case does. Data and pictures are in neither.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench_cases import CASES, Table, arguments_of, configs_of, figures, opened, shapes_for_peer, timed

from lgm.train.work import training_flops


def measured(config, calls: int, steps: int) -> dict[str, Any]:
    """The figures of a config's step."""
    run = opened(config)
    start = time.perf_counter()
    compiled = run.step.run.lower(run.state, run.frozen, run.batch).compile()
    compile_seconds, state = time.perf_counter() - start, run.state

    def once():
        nonlocal state
        state, metrics = compiled(state, run.frozen, run.batch)
        return metrics

    seconds = timed(once, calls, steps)
    flops = training_flops(run.step.system, run.step.frozen) * config.batch_size
    return figures(seconds, config.batch_size, flops, compile_seconds, compiled.memory_analysis())


def peer(config, mode: str, calls: int, steps: int) -> dict[str, Any]:
    """The figures of diffusers' model, in a process of its own; {"missing": why} where there are none."""
    shapes = shapes_for_peer(config)
    if shapes is None:
        return {"missing": f"diffusers has no {config.family} of this shape"}
    task = json.dumps(shapes | dict(mode=mode, calls=calls, steps=steps))
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("bench_peer.py"))], input=task, text=True,
                          capture_output=True)  # fmt: skip
    if done.returncode:
        return {"missing": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure all that is asked for, and print."""
    arguments = arguments_of(__doc__.split("\n")[0]).parse_args()
    table = Table(arguments.json)
    for name, config in configs_of(arguments).items():
        row = measured(config, arguments.calls, arguments.steps)
        if (case := CASES.get(name)) and case.h100 and not arguments.small:
            row["diffusers_h100_images_per_second"] = case.h100
        table.add(name, row)
        if arguments.peer:
            table.add(f"{name}, diffusers", peer(config, "train", arguments.calls, arguments.steps))


if __name__ == "__main__":
    main()

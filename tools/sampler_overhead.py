"""What a compiled sampler costs over the bare forward passes within it.

    python tools/sampler_overhead.py --model=dit --steps=50 --repeats=9

A sampler of N steps is one compiled program; N bare passes are the same network, compiled alone and called N times on
arrays that are already there. Both run in turn, `repeats` times, and the overhead is the median over the turns of
(sampler / passes - 1), so that what else the machine does falls on both. FLOPs are XLA's count of one step of the
sampler and of one pass: what a solver adds in arithmetic. On a GPU or TPU the bare passes are issued without waiting.

Measured with 5 repeats on one core of a shared 2-core x86 CPU (float32, batch 1, 50 steps of the DiT): Euler -0.5%
(turns from -2.0% to 0.7%), DPM-Solver++ 2M -0.5% (-1.7% to 8.6%), UniPC -0.1% (-2.2% to 1.0%), DDPM 0.3% (-2.8% to
5.1%), by CPU time -0.4%, 0.0%, -0.4% and 0.2%; 1.0251 to 1.0255 GFLOP a step against 1.0250 a pass. What is below 0 is
the machine's noise.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lgm import gaussian, sampling
from lgm.models import Conditioning, build, classes

# a few GFLOP a pass: large enough that a CPU core computes and does not dispatch
MODELS = {
    "dit": ("dit", dict(channels=4, width=384, depth=6, heads=6, patch_size=2, base_size=16, classes=10,
                        learned_sigma=False), (32, 32)),
    "mmdit": ("mmdit", dict(channels=16, width=384, depth=4, heads=6, text_dim=128, pooled_dim=128, position_size=32,
                            base_size=16), (32, 32)),
}  # fmt: skip


def network(name: str, batch: int, dtype: str):
    """(predict(params, x, t), params, x_T) of a model with fresh weights."""
    family, options, (rows, columns) = MODELS[name]
    model = build(classes(family)[0](**options, dtype=dtype))
    key = jax.random.key(0)
    cond = Conditioning(label=jnp.zeros(batch, jnp.int32))
    if name == "mmdit":
        cond = Conditioning(text=jax.random.normal(key, (batch, 16, 128)), text_mask=jnp.ones((batch, 16), bool),
                            pooled=jnp.zeros((batch, 128)))  # fmt: skip
    # fresh networks predict 0: any other weights of the same size do
    params = jax.tree.map(lambda leaf: leaf + 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype), model.init(key))
    x_T = jax.random.normal(key, (batch, rows, columns, options["channels"]))
    return (lambda params, x, t: model.apply(params, x, t, cond)), params, x_T


def flops_of(function, *arguments) -> float:
    """XLA's count of a compiled function."""
    cost = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return float((cost[0] if isinstance(cost, (list, tuple)) else cost)["flops"])


def measure(predict, params, x_T, solver: str, steps: int, repeats: int) -> dict[str, float]:
    """Seconds, their ratio and FLOPs of one solver."""
    process, method = gaussian.rectified_flow(), sampling.solver(solver)
    times = jnp.asarray(sampling.times(process, steps))
    t_B = jnp.full(len(x_T), 0.5)
    forward = jax.jit(predict)

    @jax.jit
    def sampler(params, x_T, key):
        return sampling.sample(method, process, "flow", lambda x, t: predict(params, x, t), x_T, times, key)

    key = jax.random.key(1)
    evaluations = 2 * steps - 1 if solver == "heun" else steps  # Heun's last step, to the data, is Euler's

    def passes():
        out = None
        for _ in range(evaluations):
            out = forward(params, x_T, t_B)
        return out

    def clock(function):
        """(seconds of the clock, seconds of all the process's threads on a processor)."""
        begin, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(function())
        return time.perf_counter() - begin, time.process_time() - busy

    runs = {"passes": passes, "sampler": lambda: sampler(params, x_T, key)}
    for run in runs.values():
        clock(run)  # compiles
    turns = []
    for turn in range(repeats):
        order = list(runs) if turn % 2 else list(runs)[::-1]
        turns.append({name: clock(runs[name]) for name in order})
    of = lambda name, kind: np.array([turn[name][kind] for turn in turns])
    ratio, busy = of("sampler", 0) / of("passes", 0) - 1.0, of("sampler", 1) / of("passes", 1) - 1.0

    t, s = times[0], times[1]
    step = lambda params, x, memory, key: method.step(
        process, lambda x, t: gaussian.endpoints(process, "flow", predict(params, x, jnp.full(len(x), t)), x,
                                                 jnp.full(len(x), t)), x, memory, t, s, key)  # fmt: skip
    per_pass = flops_of(predict, params, x_T, t_B)
    per_step = flops_of(step, params, x_T, method.start(x_T), key) / (2 if solver == "heun" else 1)
    return {
        "passes_s": float(np.median(of("passes", 0))), "sampler_s": float(np.median(of("sampler", 0))),
        "overhead": float(np.median(ratio)), "overhead_low": float(ratio.min()), "overhead_high": float(ratio.max()),
        "cpu_overhead": float(np.median(busy)), "gflop_pass": per_pass / 1e9, "gflop_step": per_step / 1e9,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="dit")
    parser.add_argument("--solvers", default="euler,heun,dpmpp_2m,unipc", help="names, with commas")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", help="a JSON file for the figures")
    arguments = parser.parse_args()
    predict, params, x_T = network(arguments.model, arguments.batch, arguments.dtype)
    device = jax.devices()[0]
    print(f"{arguments.model}, batch {arguments.batch}, {arguments.steps} steps, {arguments.dtype} on "
          f"{device.device_kind}, {os.cpu_count()} cores")
    print(f"{'solver':<16}{'passes s':>10}{'sampler s':>11}{'overhead':>10}{'(least, most)':>19}{'by CPU time':>13}"
          f"{'GFLOP a pass':>14}{'with solver':>13}")
    rows = {}
    for name in arguments.solvers.split(","):
        row = rows[name] = measure(predict, params, x_T, name, arguments.steps, arguments.repeats)
        least, most = row["overhead_low"], row["overhead_high"]
        print(f"{name:<16}{row['passes_s']:>10.3f}{row['sampler_s']:>11.3f}{row['overhead']:>10.1%}"
              f"{f'({least:.1%}, {most:.1%})':>19}{row['cpu_overhead']:>13.1%}"
              f"{row['gflop_pass']:>14.4f}{row['gflop_step']:>13.4f}", flush=True)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps({**vars(arguments), "solvers": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

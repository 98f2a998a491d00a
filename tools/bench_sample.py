"""Time samplers and single forward passes on whatever device there is, and diffusers' of the same shape beside them.

    python tools/bench_sample.py                                  three published shapes at 1024 px, on a GPU or a TPU
    python tools/bench_sample.py --case=sd3_1024 --batch=4 --peer
    python tools/bench_sample.py --small --peer                   does it run? for a CPU

From what text encoders said to latents: neither they nor the decoder are timed. A sampler is the config's solver, steps
and guidance as one program; where it extrapolates, each step passes twice the batch. `pass` is one forward pass of the
network, of a batch; the peer's is that of diffusers' network in the same dtype, its blocks compiled.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
from bench_cases import Table, arguments_of, configs_of, figures, made_up, timed
from bench_train import peer

from lgm import sampling
from lgm.drawing import solve_as_one
from lgm.parallel import shardings
from lgm.planning.program import step_of
from lgm.train.placing import layout_of

PASSES = ("sdxl_1024", "sd3_1024", "flux_4_8_1024")  # that are drawn at 1024 px


def measured(config, calls: int, steps: int) -> dict[str, dict[str, Any]]:
    """Figures of the sampler and of one pass."""
    layout = layout_of(config)
    step = step_of(config, layout)
    system, dtype, size = step.system, jnp.dtype(config.model.dtype), config.batch_size
    places = shardings(layout, step.state.params, system.logical_axes())
    held = lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    start_at = jax.jit(lambda: jax.tree.map(held, system.init(jax.random.key(0))), out_shardings=places)
    params, frozen = start_at(), jax.jit(lambda: made_up(step.frozen))()
    words = made_up({name: step.batch[name] for name in ("tokens", "mask")})

    def cond(params, tokens, mask):
        found = system.condition(system.whole(params, frozen), tokens, mask)
        told = system.conditioning.guidance
        return dataclasses.replace(found, guidance=jnp.full(size, config.sampling.guidance)) if told else found

    def draw(params, tokens, mask, noise, keys):
        told = cond(params, tokens, mask)
        return solve_as_one(system, system.sampler(config.sampling), (system.whole(params, frozen), (told, told)),
                            noise, keys)  # fmt: skip

    def once(params, tokens, mask, x):
        return system.denoise(system.whole(params, frozen), x, jnp.full(size, 0.5), cond(params, tokens, mask))

    noise = jax.random.normal(jax.random.key(2), (size, *system.latent_shape()))
    shape = lambda count, array: jax.ShapeDtypeStruct((count, *array.shape[1:]), array.dtype)
    told = jax.eval_shape(cond, params, words["tokens"], words["mask"])
    forward = system.denoiser.flops(shape(size, noise), jax.ShapeDtypeStruct((size,), jnp.float32), told)
    guided = config.sampling.guidance != 1 and not system.conditioning.guidance
    works = {"pass": forward, "sampler": forward * config.sampling.steps * (2 if guided else 1)}
    keys = sampling.keys(0, jnp.arange(size))
    rows = {}
    for name, function, rest, count in (("pass", once, (noise,), steps), ("sampler", draw, (noise, keys), 1)):
        arguments, start = (params, words["tokens"], words["mask"], *rest), time.perf_counter()
        compiled = jax.jit(function).lower(*arguments).compile()
        compile_seconds = time.perf_counter() - start
        seconds = timed(lambda compiled=compiled, arguments=arguments: compiled(*arguments), calls, count)
        rows[name] = figures(seconds, size, works[name], compile_seconds, compiled.memory_analysis())
    return rows


def main() -> None:
    """Measure all that is asked for, and print."""
    parser = arguments_of(__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=1, help="images a device")
    parser.add_argument("--sampling-steps", type=int, help="of the solver; the config's unless told")
    arguments = parser.parse_args()
    arguments.case, table = arguments.case or list(PASSES), Table(arguments.json)
    for name, config in configs_of(arguments).items():
        drawn = config.sampling
        if arguments.sampling_steps:
            drawn = dataclasses.replace(drawn, steps=arguments.sampling_steps)
        config = dataclasses.replace(config, batch_size=arguments.batch * jax.device_count(), sampling=drawn)
        for which, row in measured(config, arguments.calls, arguments.steps).items():
            table.add(f"{name}, {which}", row)
        if arguments.peer:
            table.add(f"{name}, diffusers' pass", peer(config, "pass", arguments.calls, arguments.steps))


if __name__ == "__main__":
    main()

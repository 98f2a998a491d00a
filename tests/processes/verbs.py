"""One of several real processes, under its supervisor, that runs one verb of `lgm` after another: a start of Python and
JAX for all of them. `verbs.py INDEX COUNT ADDRESS JOBS.json [poison]`; with "poison" the last verb meets a loss that is
not finite for one image. A verb that fails ends the process with its code."""

import json
import os
import sys


def child(jobs: list[list[str]], poison: bool) -> int:
    import time

    from lgm.cli import main
    from lgm.processes import member

    compile_in_the_first_process_alone()
    member.join()
    for number, words in enumerate(jobs, 1):
        if poison and number == len(jobs):
            poisoned()
        began = time.monotonic()
        if code := main(words):
            return member.leave(code)
        print(f"{number}/{len(jobs)} {' '.join(words[:2])}: {time.monotonic() - began:.1f} s", flush=True)
    return member.leave(0)


def compile_in_the_first_process_alone() -> None:
    """Programs of all processes are compiled by the first and read from the compilation cache by the others, for they
    share two cores here. What this cannot show, that processes which compile by themselves make equal programs, the
    tests of `lgm train` by several show, which start without this."""
    import time

    import jax
    from jax._src import cache_key, compiler, distributed

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # JAX tells CPUs of one kind apart by the process that they belong to, so that one never finds another's programs
    places = lambda devices: repr([(device.id, device.process_index) for device in devices.flat])
    cache_key._hash_accelerator_config = lambda hashed, devices: hashed.update(places(devices).encode())
    compile_and_write = compiler._compile_and_write_cache

    def wait(backend, computation, devices, options, callbacks, name, key):
        shared = len({device.process_index for device in devices}) > 1 and not callbacks
        until = time.monotonic() + 300 * (shared and distributed.global_state.process_id != 0)
        while time.monotonic() < until:
            if (program := compiler._cache_read(name, key, options, backend, devices)[0]) is not None:
                return program
            time.sleep(0.05)
        return compile_and_write(backend, computation, devices, options, callbacks, name, key)

    compiler._compile_and_write_cache = wait


def poisoned() -> None:
    """From here on the first image of the set makes the loss that it is in infinite, in one place of the network."""
    import jax.numpy as jnp

    from lgm.train import denoise

    make_loss = denoise.make_loss

    def failing(config, system, teacher=None):
        loss = make_loss(config, system, teacher)

        def with_nan(params, frozen, batch, key):
            value, metrics = loss(params, frozen, batch, key)
            bad = (batch["index"] == 0).any()
            kernel = params["denoiser"]["out"]["kernel"]
            return value + jnp.where(bad, jnp.nan, 0.0) * jnp.sum(kernel), metrics

        return with_nan

    denoise.make_loss = failing


if __name__ == "__main__":
    if "LGM_CHANNEL" in os.environ:
        with open(sys.argv[4]) as file:
            sys.exit(child(json.load(file), sys.argv[5:] == ["poison"]))
    from lgm.processes import Bounds, Place, supervise

    index, count = int(sys.argv[1]), int(sys.argv[2])
    place = Place(index, count, sys.argv[3], "test", job="test", names=tuple(f"n{i}" for i in range(count)))
    sys.exit(supervise(place, Bounds.read({}), [sys.executable, *sys.argv]))

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

    member.join()
    for number, words in enumerate(jobs, 1):
        if poison and number == len(jobs):
            poisoned()
        began = time.monotonic()
        if code := main(words):
            return member.leave(code)
        print(f"{number}/{len(jobs)} {' '.join(words[:2])}: {time.monotonic() - began:.1f} s", flush=True)
    return member.leave(0)


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

"""Keeping a prediction's implied data within the range that data have."""

import functools

import jax.numpy as jnp

from lgm.sampling.steps import Solver


@functools.cache  # one object for one choice, so that a compiled step is found again
def bounded(method: Solver, bound: float, keep_noise: bool = False) -> Solver:
    """`method` on data clipped to [-bound, bound].

    An eps prediction at high noise implies x_hat with its error multiplied by b / a, 15-fold at the last step of SD's
    schedule; without a bound a network that has trained for minutes never comes back from there (2006.11239 clips so).
    The noise that a prediction implies follows the clipped data or, with `keep_noise`, stays, as in diffusers' DDIM.
    """
    if not bound > 0:
        raise ValueError(f"clip={bound} must be above 0")

    def step(process, denoise, x, memory, t, s, key):
        def clipped_ends(x_t, t):
            ends = denoise(x_t, t)
            x_hat = jnp.clip(ends.x, -bound, bound)
            return ends._replace(x=x_hat, eps=ends.eps if keep_noise else (x_t - process.a(t) * x_hat) / process.b(t))

        return method.step(process, clipped_ends, x, memory, t, s, key)

    return method._replace(step=step)

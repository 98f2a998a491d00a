"""Keeping a prediction's implied data within the range that data have."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from lgm import process as gaussian
from lgm.process import Endpoints, Process
from lgm.sampling.steps import Solver


def clipped(predict: Callable, process: Process, target: str, bound: float) -> Callable:
    """`predict(x_t, t_B)` whose implied x_hat is clipped to [-bound, bound], said again in the network's own target.

    An eps prediction at high noise implies x_hat with its error multiplied by b / a, 15-fold at the last step of SD's
    schedule; without a bound a network that has trained for minutes never comes back from there (2006.11239 clips so).
    """

    def bounded(x_t, t_B):
        x_hat, _ = gaussian.endpoints(process, target, predict(x_t, t_B), x_t, t_B)
        x_hat = jnp.clip(x_hat, -bound, bound)
        a, b = (c.reshape(c.shape + (1,) * (x_t.ndim - 1)) for c in (process.a(t_B), process.b(t_B)))
        return gaussian.target(process, target, x_hat, (x_t - a * x_hat) / b, t_B)

    return bounded


def bounded(method: Solver, bound: float, keep_noise: bool = False) -> Solver:
    """`method` on data clipped to [-bound, bound].

    The noise that a prediction implies follows the clipped data or, with `keep_noise`, stays, as in diffusers' DDIM.
    """

    def step(process, denoise, x, memory, t, s, key):
        def clipped_ends(x_t, t):
            x_hat, eps_hat = denoise(x_t, t)
            x_hat = jnp.clip(x_hat, -bound, bound)
            return Endpoints(x_hat, eps_hat if keep_noise else (x_t - process.a(t) * x_hat) / process.b(t))

        return method.step(process, clipped_ends, x, memory, t, s, key)

    return Solver(step, method.start)

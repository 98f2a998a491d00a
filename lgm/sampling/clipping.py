"""Keeping a prediction's implied data within the range that data have."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from lgm import process as gaussian
from lgm.process import Process


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

"""The probability-flow ODE to a stated tolerance: Dormand and Prince's Runge-Kutta pair of orders 5 and 4.

For reference samples and for counting how many evaluations a path needs; fixed grids draw faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lgm import gaussian
from lgm.gaussian import Process

# the tableau of Dormand & Prince 1980; its last row is the step itself, so its slope serves the next one
STAGES = np.array([
    [1 / 5, 0, 0, 0, 0, 0],
    [3 / 40, 9 / 40, 0, 0, 0, 0],
    [44 / 45, -56 / 15, 32 / 9, 0, 0, 0],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
])  # fmt: skip
NODES = np.array([1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0])
ERROR = np.array([71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40])


class Solution(NamedTuple):
    """x at times[1], evaluations of the network, steps made, and whether the end was reached within `most`."""

    x: jax.Array
    evaluations: jax.Array
    steps: jax.Array
    reached: jax.Array


def dormand_prince(process: Process, target: str, predict: Callable, x_T: jax.Array, times=(1.0, 0.001),
                   rtol: float = 1e-4, atol: float = 1e-4, most: int = 1000) -> Solution:
    """The ODE dx_t/dt from times[0] down to times[1], by steps whose estimated error is at most atol + rtol |x|, rms
    over all elements of the batch x_T [B, ...].

    `most` bounds the steps tried. Both ends must lie where the target tells x from eps (eps does not at t = 1 of a
    flow); predictions in float32, or the error estimate is rounding.
    """
    if not (len(times) == 2 and times[0] > times[1] >= 0.0):
        raise ValueError(f"times={tuple(times)} must be two, fall and end at 0 or above")
    if rtol <= 0.0 or atol <= 0.0:
        raise ValueError(f"rtol={rtol} and atol={atol} must be above 0")
    begin, end = (jnp.asarray(t, float) for t in times)
    stages, nodes, error_row = (jnp.asarray(a, float) for a in (STAGES, NODES, ERROR))

    def velocity(t, x):
        t_B = jnp.full(x.shape[:1], t)
        return gaussian.convert(process, target, "flow", predict(x, t_B), x, t_B)

    def attempt(t, x, k1, h):
        slopes = jnp.zeros((7, *x.shape), float).at[0].set(k1)
        for stage in range(6):
            moved = x + h * jnp.tensordot(stages[stage], slopes[:6], 1)
            slopes = slopes.at[stage + 1].set(velocity(t + nodes[stage] * h, moved))
        error = h * jnp.tensordot(error_row, slopes, 1)
        allowed = atol + rtol * jnp.maximum(jnp.abs(x), jnp.abs(moved))
        return moved, slopes[6], jnp.sqrt(jnp.mean(jnp.square(error / allowed)))

    def body(state):
        t, x, k1, h, tried, taken = state
        h = jnp.maximum(h, end - t)  # both negative
        moved, k7, error = attempt(t, x, k1, h)
        good = error <= 1.0
        keep = lambda new, old: jnp.where(good, new, old)
        landed = jnp.where(h == end - t, end, t + h)
        h = h * jnp.clip(0.9 * jnp.maximum(error, 1e-8) ** -0.2, 0.2, 5.0)
        return keep(landed, t), keep(moved, x), keep(k7, k1), h, tried + 1, taken + good

    def unfinished(state):
        return (state[0] != end) & (state[4] < most)

    x, zero = jnp.asarray(x_T, float), jnp.zeros((), jnp.int32)
    state = begin, x, velocity(begin, x), 0.05 * (end - begin), zero, zero
    t, x, _, _, tried, taken = jax.lax.while_loop(unfinished, body, state)
    return Solution(x, 1 + 6 * tried, taken, t == end)

"""Sampling of networks that predict mean velocities between two times: MeanFlow and shortcut models.

The solver "jump", Euler's step with its end told, does the same for a rectified flow under guidance and schedules.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lgm.sampling.steps import check_times


def jump(predict: Callable[[jax.Array, jax.Array, jax.Array], jax.Array], x_T: jax.Array, times) -> jax.Array:
    """x_0 from x_T [B, ...] by x_s = x_t - (t - s) predict(x_t, t_B, s_B) over the falling `times` [steps + 1]; two
    times make one step. Raises ValueError for times that do not fall within [0, 1]."""
    check_times(times)
    times = jnp.asarray(times, float)

    def body(x, ends):
        t, s = ends
        wide = lambda u: jnp.full(x.shape[:1], u)
        return x - (t - s) * predict(x, wide(t), wide(s)).astype(float), None

    return jax.lax.scan(body, jnp.asarray(x_T, float), (times[:-1], times[1:]))[0]

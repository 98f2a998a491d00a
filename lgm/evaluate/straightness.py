"""How straight the paths of a flow are: what decides how few steps will do."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lgm import gaussian, sampling
from lgm.gaussian import Process


def straightness(process: Process, target: str, predict: Callable, x_T: jax.Array, steps: int = 100) -> jax.Array:
    """The mean over noise x_T [B, ...] and over t of |(x_1 - x_0) - dx_t/dt|^2 along the ODE's paths, a sum over
    elements: 0 for straight lines at constant speed (Liu et al. 2023, 2209.03003, eq. 6).

    `predict(x_t, t_B)`; paths by Heun's steps over an even grid from t = 1.
    """
    times = jnp.asarray(sampling.times(process, steps))
    x_0, states = sampling.trace(sampling.solver("heun"), process, target, predict, x_T, times)
    starts = jnp.concatenate([jnp.asarray(x_T, float)[None], states[:-1]])

    def velocity(ends):
        t, x_t = ends
        t_B = jnp.full(len(x_t), t)
        return gaussian.convert(process, target, "flow", predict(x_t, t_B), x_t, t_B)

    slopes = jax.lax.map(velocity, (times[:-1], starts))
    deviation = jnp.square((x_T - x_0)[None] - slopes)
    return jnp.mean(jnp.sum(deviation, axis=tuple(range(2, deviation.ndim))))

"""Where in t a network is trained: each density is `draw(key, shape) -> t` in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lgm import registry
from lgm.process import shift_time

Density = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def uniform() -> Density:
    """t ~ U(0, 1)."""
    return lambda key, shape: jax.random.uniform(key, shape)


def discrete(steps: int = 1000) -> Density:
    """t = k / steps with k uniform in 0 .. steps - 1: the times of a table."""
    return lambda key, shape: jax.random.randint(key, shape, 0, steps).astype(jnp.float32) / steps


def logit_normal(mean: float = 0.0, std: float = 1.0, shift: float = 1.0) -> Density:
    """t = sigmoid(mean + std n), n ~ N(0, 1) (SD3, 2403.03206, eq. 19), then moved by `shift_time`."""
    return lambda key, shape: shift_time(jax.nn.sigmoid(mean + std * jax.random.normal(key, shape)), shift)


DENSITIES = {"uniform": uniform, "discrete": discrete, "logit_normal": logit_normal}


def density(name: str, **options) -> Density:
    """The density of that name; ValueError, one line, for a name or option there is not."""
    return registry.make("density of t", DENSITIES, name, options)

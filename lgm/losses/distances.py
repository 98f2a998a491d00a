"""Distances of batches, in which losses measure how far one is from another."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lgm.losses.denoising import mean_square
from lgm.registry import make

Distance = Callable[[jax.Array, jax.Array], jax.Array]  # ([B, ...], [B, ...]) -> [B]


def squared() -> Distance:
    """Mean squared difference."""
    return lambda x, y: mean_square(x - y)


def pseudo_huber(scale: float = 0.00054) -> Distance:
    """sqrt(|x - y|^2 + c^2) - c with c = scale sqrt(dimensions) (Song & Dhariwal 2024, 2310.14189, section 3.3)."""
    if scale <= 0:
        raise ValueError(f"distance option scale={scale} must be above 0")

    def distance(x, y):
        axes = tuple(range(1, x.ndim))
        c = scale * (x.size // max(len(x), 1)) ** 0.5
        return jnp.sqrt(jnp.sum(jnp.square(x - y), axis=axes) + c**2) - c

    return distance


DISTANCES = {"squared": squared, "pseudo_huber": pseudo_huber}


def distance(name: str, **options) -> Distance:
    """The distance of that name; ValueError, one line, for a name or option there is not."""
    return make("distance", DISTANCES, name, options)

"""Guidance: one predict function made of a conditional one."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def classifier_free(predict: Callable, cond, uncond, scale: float) -> Callable:
    """`predict(x, t)` = u + scale (c - u) (Ho & Salimans 2022, 2207.12598), c and u evaluated as one batch.

    Scale 1 is the conditional prediction alone, at half the cost.
    """
    if scale == 1.0:
        return lambda x, t: predict(x, t, cond)
    both = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), cond, uncond)

    def guided(x, t):
        c, u = jnp.split(predict(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both), 2)
        return u + scale * (c - u)

    return guided

"""How errors at different t count: a weighting is `w(process, target, t_B) -> [B]`, a factor of the target's error."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lgm import registry
from lgm.process import Process

Weighting = Callable[[Process, str, jax.Array], jax.Array]


def constant() -> Weighting:
    """Every t counts alike in the network's own target."""
    return lambda process, target, t: jnp.ones_like(t)


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on the x-error (Hang et al. 2023, 2303.09556), divided as the network's target needs."""

    def weight(process, target, t):
        snr = jnp.exp(process.log_snr(t))
        per_x_error = {"x": 1.0, "eps": snr, "v": snr + 1.0}  # (target error) / (x error), for a VP process
        if target not in per_x_error:
            raise ValueError(f"weighting 'min_snr' is for targets eps, x and v, not {target!r}")
        return jnp.minimum(snr, gamma) / per_x_error[target]

    return weight


WEIGHTINGS = {"constant": constant, "min_snr": min_snr}


def weighting(name: str, **options) -> Weighting:
    """The weighting of that name; ValueError, one line, for a name or option there is not."""
    return registry.make("weighting", WEIGHTINGS, name, options)

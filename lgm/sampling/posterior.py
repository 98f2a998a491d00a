"""DDPM's ancestral step with each of the variances that the released codes know."""

from typing import Any

import jax.numpy as jnp

from lgm.gaussian import Process
from lgm.sampling import steps
from lgm.sampling.singlestep import ancestral
from lgm.sampling.steps import Denoise, Solver, arrival, decay, level

VARIANCES = ("small", "large", "learned")


def ddpm(variance: str = "small") -> Solver:
    """A draw from p(x_s | x_t), whose mean is that of q(x_s | x_t, x_hat) (Ho et al. 2020, 2006.11239, eq. 7).

    Its variance is q's ("small"), beta's, the noise that the step from s to t adds ("large"), or "learned": its log
    lies (v + 1) / 2 of the way from the one to the other, v being what the network gives beside its prediction (Nichol
    & Dhariwal 2021, 2102.09672, eq. 15). Steps may leave entries of a table out: beta is then that of the whole step.
    The step to the data draws nothing.
    """
    if variance not in VARIANCES:
        raise ValueError(f"solver option variance={variance!r} must be one of {', '.join(VARIANCES)}")
    if variance == "small":
        return ancestral()

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        ends: Any = denoise(x, t)  # a `Spread`, where the network gives variances
        at, to = level(process, t), arrival(process, s)
        shrink = decay(at, to)
        mean = to.a * ends.x + to.b * shrink * ends.eps
        share = 0.5 * (ends.v + 1.0) if variance == "learned" else 1.0
        # beta = b_t^2 (1 - shrink^2), the posterior's variance b_s^2 (1 - shrink^2)
        above = (at.b / jnp.where(to.b > 0, to.b, at.b)) ** share
        deviation = to.b * above * jnp.sqrt(jnp.maximum(1.0 - jnp.square(shrink), 0.0))
        return mean + deviation * steps.draw(key, x), memory

    return Solver(step, variance=variance == "learned")

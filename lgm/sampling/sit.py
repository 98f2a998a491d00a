"""SiT's sampler by a stochastic differential equation (Ma et al. 2024, 2401.08740, section 2.4 and its released code).

The SDE  dx = (v - D score) dt + sqrt(2 D) dw,  run from t = 1 down to 0, has the marginals of the probability-flow ODE
dx = v dt whatever D(t) >= 0 is: it may be chosen at sampling. The paper's w is 2 D.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lgm import registry
from lgm.gaussian import Endpoints, Process
from lgm.sampling import steps
from lgm.sampling.steps import Denoise, Solver

_LATEST = 1.0 - 1e-3  # of t for "sbdm", whose D has no bound where the data vanish

# D(process, t, norm) by the released code's names, whose own time is 1 - t
DIFFUSIONS: dict[str, Callable[[Process, jax.Array, float], jax.Array]] = {
    "constant": lambda process, t, norm: norm * jnp.ones_like(t),
    "sigma": lambda process, t, norm: norm * process.b(t),
    "linear": lambda process, t, norm: norm * t,
    "sbdm": lambda process, t, norm: norm * _of_the_forward_sde(process, jnp.minimum(t, _LATEST)),
    "decreasing": lambda process, t, norm: 0.25 * jnp.square(norm * jnp.cos(jnp.pi * (1.0 - t)) + 1.0),
    "increasing_decreasing": lambda process, t, norm: norm * jnp.square(jnp.sin(jnp.pi * t)),
}
LAST_STEPS = ("mean", "euler", "tweedie")


def sit_sde(diffusion: str = "sigma", norm: float = 1.0, last: str = "mean") -> Solver:
    """Euler and Maruyama's method on the SDE; D is the `diffusion` of that name, of size `norm`.

    The step to t = 0 draws no noise: "mean" makes the SDE's drift alone, "euler" the ODE's step, "tweedie" goes to the
    data that the network sees. The released sampler makes that step from t = 0.04: spacing "even_to".
    """
    registry.known("diffusion", DIFFUSIONS, diffusion)
    if last not in LAST_STEPS:
        raise ValueError(f"solver option last={last!r} must be one of {', '.join(LAST_STEPS)}")
    if not norm > 0.0:
        raise ValueError(f"solver option norm={norm} must be above 0")

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        ends: Endpoints = denoise(x, t)
        velocity = process.da(t) * ends.x + process.db(t) * ends.eps
        score, spread, h = -ends.eps / process.b(t), DIFFUSIONS[diffusion](process, t, norm), t - s
        drifted = x - h * (velocity - spread * score)
        final = {"mean": drifted, "euler": x - h * velocity, "tweedie": ends.x}[last]
        noise = jnp.sqrt(2.0 * spread * h) * steps.draw(key, x)
        return jnp.where(s > 0, drifted + noise, final), memory

    return Solver(step)


def _of_the_forward_sde(process: Process, t: jax.Array) -> jax.Array:
    """g^2 / 2 of the forward SDE whose marginals these are: b b' - b^2 a' / a."""
    a, b = process.a(t), process.b(t)
    return b * process.db(t) - jnp.square(b) * process.da(t) / a

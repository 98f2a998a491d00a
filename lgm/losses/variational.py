"""Learned variances of reverse steps: the hybrid loss of Nichol & Dhariwal 2021 (2102.09672, eq. 16), which DiT uses.

A network with learned sigma gives, beside its prediction, v in about [-1, 1] for every value: the log variance of
p(x_s | x_t) lies (v + 1) / 2 of the way from the posterior's to beta's (eq. 15), s being the table's entry before t.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lgm import gaussian
from lgm.gaussian import Process
from lgm.losses.denoising import Denoising, Drawn, denoising
from lgm.losses.densities import Density
from lgm.losses.records import OfDraws
from lgm.losses.weightings import Weighting


@dataclasses.dataclass(frozen=True)
class Hybrid(OfDraws):
    """`loss(predict, x, cond, key)`: a denoising loss plus `weight` times the bound's term at t, in bits a value.

    `predict` gives (prediction, v) side by side, [B, ..., 2 C]. The bound's gradient reaches v alone. Summed over the
    N steps the term is the bound, so that weight 1 is the paper's lambda = 1 / N at N = 1000. Times are rounded to the
    table's.
    """

    simple: Denoising
    weight: float = 1.0

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Drawn:
        """Times and noise for a batch of `shape` [B, ...]."""
        t_B, eps = self.simple.draw(key, shape)
        steps = self.simple.process.steps
        return Drawn(jnp.clip(jnp.round(t_B * steps), 0, steps - 1) / steps, eps)

    def given(self, predict: Callable, x: jax.Array, cond, t_B: jax.Array, eps: jax.Array) -> tuple[jax.Array, dict]:
        """The loss at times and noise that are drawn."""
        process, target = self.simple.process, self.simple.target
        x_t = gaussian.add_noise(process, x, eps, t_B)
        prediction, v = jnp.split(predict(x_t, t_B, cond).astype(jnp.float32), 2, -1)
        simple, _ = self.simple.given(lambda *_: prediction, x, cond, t_B, eps)
        fixed = jax.lax.stop_gradient(prediction)
        term = bound(process, x, gaussian.endpoints(process, target, fixed, x_t, t_B).x, v, x_t, t_B).mean()
        return simple + self.weight * term, {"denoising": simple, "bound": term}


def hybrid(process: Process, target: str, density: Density, weighting: Weighting, weight: float = 1.0) -> Hybrid:
    """The loss of a process with a table, a prediction target, a density of t and a weighting. Raises ValueError for a
    process without one."""
    if process.steps is None:
        raise ValueError(f"learned variances belong to the steps of a table, which process {process.name!r} has not")
    return Hybrid(denoising(process, target, density, weighting), weight)


def bound(process: Process, x: jax.Array, x_hat: jax.Array, v: jax.Array, x_t: jax.Array, t_B: jax.Array) -> jax.Array:
    """[B] bits a value: KL(q(x_s | x_t, x) || p(x_s | x_t)) of the step from the table's t to the entry before it.

    From the first entry, -log2 p(x | x_t): latents are continuous, so it is a density's, where Nichol & Dhariwal (and
    DiT's code after them) have the probability of an 8-bit value.
    """
    log_low, log_high, from_x, from_x_t = (gaussian.wide(c, x) for c in _step(process, t_B))
    mean, mean_hat = from_x * x + from_x_t * x_t, from_x * x_hat + from_x_t * x_t
    log_variance = log_low + 0.5 * (v + 1.0) * (log_high - log_low)
    square = jnp.square(mean - mean_hat) * jnp.exp(-log_variance)
    divergence = 0.5 * (log_variance - log_low - 1.0 + jnp.exp(log_low - log_variance) + square)
    likelihood = 0.5 * (math.log(2.0 * math.pi) + log_variance + square)
    first = gaussian.wide(t_B < 0.5 / process.steps, x)
    return jnp.mean(jnp.where(first, likelihood, divergence), axis=tuple(range(1, x.ndim))) / math.log(2.0)


def _step(process: Process, t_B: jax.Array):
    """([B] log posterior variance, log beta, and what of x and of x_t the posterior's mean is) of the step from t.

    From the first entry, whose posterior variance is 0, it is that of the second (2102.09672, section 3.1's clipping).
    """

    def coefficients(t):
        s = t - 1.0 / process.steps
        inside = s > -0.5 / process.steps
        a_s, b_s = jnp.where(inside, process.a(s), 1.0), jnp.where(inside, process.b(s), 0.0)
        a_t, b_t = process.a(t), process.b(t)
        beta = 1.0 - jnp.square(a_t / a_s)
        share = jnp.square(b_s / b_t)
        return beta, share, a_s * beta / jnp.square(b_t), a_t / a_s * share

    beta, share, from_x, from_x_t = coefficients(t_B)
    second = coefficients(jnp.full_like(t_B, 1.0 / process.steps))
    low = jnp.where(t_B < 0.5 / process.steps, second[0] * second[1], beta * share)
    return jnp.log(low), jnp.log(beta), from_x, from_x_t

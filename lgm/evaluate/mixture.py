"""Mixtures of Gaussians, whose denoiser is known exactly: what losses and solvers are proven on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lgm import gaussian
from lgm.gaussian import Process


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """sum_k weight_k N(mean_k, std_k^2 I): means [K, D], stds [K], weights [K] that sum to 1."""

    means: np.ndarray
    stds: np.ndarray
    weights: np.ndarray

    def sample(self, key: jax.Array, count: int) -> jax.Array:
        """[count, D] draws."""
        which_key, noise_key = jax.random.split(key)
        which = jax.random.choice(which_key, len(self.weights), (count,), p=jnp.asarray(self.weights))
        noise = jax.random.normal(noise_key, (count, self.means.shape[1]))
        return jnp.asarray(self.means)[which] + jnp.asarray(self.stds)[which, None] * noise

    def denoise(self, process: Process, x_t: jax.Array, t_B: jax.Array) -> jax.Array:
        """E[x | x_t], [B, D]: each component's posterior mean, by the component's share given x_t."""
        a, b = process.a(t_B)[:, None], process.b(t_B)[:, None]  # [B, 1]
        means, stds = jnp.asarray(self.means, float), jnp.asarray(self.stds, float)
        variance_BK = jnp.square(a * stds) + jnp.square(b)
        away_BKD = x_t[:, None] - a[..., None] * means
        share_BK = jax.nn.softmax(
            jnp.log(jnp.asarray(self.weights, float))
            - 0.5 * jnp.square(away_BKD).sum(-1) / variance_BK
            - 0.5 * means.shape[1] * jnp.log(variance_BK)
        )
        gain_BK = a * jnp.square(stds) / variance_BK
        return jnp.sum(share_BK[..., None] * (means + gain_BK[..., None] * away_BKD), axis=1)

    def predictor(self, process: Process, target: str):
        """`predict(x_t, t_B)`: the best prediction of that kind. Its x is exact; targets of eps need b > 0."""

        def predict(x_t: jax.Array, t_B: jax.Array) -> jax.Array:
            x_hat = self.denoise(process, x_t, t_B)
            eps_hat = (x_t - gaussian.wide(process.a(t_B), x_t) * x_hat) / gaussian.wide(process.b(t_B), x_t)
            return gaussian.target(process, target, x_hat, eps_hat, t_B)

        return predict


def ring(count: int = 8, radius: float = 1.6, std: float = 0.12) -> Mixture:
    """Equal Gaussians on a circle in the plane."""
    angles = 2 * np.pi * np.arange(count) / count
    means = radius * np.stack([np.cos(angles), np.sin(angles)], -1)
    return Mixture(means, np.full(count, std), np.full(count, 1 / count))


def energy_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """2 E|x - y| - E|x - x'| - E|y - y'| of two samples [N, D] and [M, D]: 0 for one distribution (Szekely & Rizzo
    2013), by all pairs of different points."""

    def mean_distance(x, y, same):
        square = jnp.sum(jnp.square(x), -1)[:, None] + jnp.sum(jnp.square(y), -1) - 2.0 * x @ y.T
        total = jnp.sum(jnp.sqrt(jnp.maximum(square, 0.0)))
        return total / (len(x) * (len(y) - same))

    return 2.0 * mean_distance(x, y, 0) - mean_distance(x, x, 1) - mean_distance(y, y, 1)

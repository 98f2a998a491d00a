"""What may be added to a denoising loss: hidden features drawn to a pretrained encoder's, predictions kept apart.

An alignment is a scalar of a network's hidden tokens; `aligned` adds it to the loss of a network that returns both
(prediction, hidden) and is as pure as the rest: the projection's parameters are the caller's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lgm import gaussian
from lgm.gaussian import Process
from lgm.losses.denoising import Denoising, Drawn, Predict, denoising, mean_square, noised
from lgm.losses.densities import Density
from lgm.losses.weightings import Weighting

Alignment = Callable[[jax.Array, jax.Array], jax.Array]  # (projected hidden [B, T, D], features [B, T, D]) -> scalar


def repa(hidden_BTD: jax.Array, features_BTD: jax.Array) -> jax.Array:
    """Minus the mean cosine between each token and the encoder's (REPA: Yu et al. 2025, 2410.06940, eq. 8)."""
    return -jnp.mean(jnp.sum(_unit(hidden_BTD) * _unit(features_BTD), axis=-1))


def info_nce(temperature: float = 0.1) -> Alignment:
    """Cross entropy of finding one's own image in the batch by mean feature (van den Oord et al. 2018, 1807.03748)."""
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be above 0")

    def align(hidden_BTD: jax.Array, features_BTD: jax.Array) -> jax.Array:
        mean = lambda x: _unit(x.astype(jnp.float32).mean(1))
        logits = mean(hidden_BTD) @ mean(features_BTD).T / temperature
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=-1)))

    return align


def aligned(process: Process, target: str, density: Density, weighting: Weighting, align: Alignment = repa,
            weight: float = 0.5):
    """`loss(predict, x, cond, key, features)`: the denoising loss plus `weight` times the alignment, for a network
    whose predict returns (prediction, projected hidden tokens [B, T, D])."""

    def loss(predict: Callable, x: jax.Array, cond, key: jax.Array, features_BTD: jax.Array):
        t_B, eps, x_t = noised(process, density, x, key)
        prediction, hidden_BTD = predict(x_t, t_B, cond)
        goal = gaussian.target(process, target, x, eps, t_B)
        error_B = mean_square(prediction.astype(jnp.float32) - goal)
        term = align(hidden_BTD, features_BTD)
        denoising = jnp.mean(weighting(process, target, t_B) * error_B)
        return denoising + weight * term, {"denoising": denoising, "alignment": term}

    return loss


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """`loss(predict, x, cond, key) -> (scalar, metrics)`; see `contrastive`. It is `given` what `draw` draws."""

    simple: Denoising
    weight: float = 0.05

    def __call__(self, predict: Predict, x: jax.Array, cond, key: jax.Array) -> tuple[jax.Array, dict]:
        return self.given(predict, x, cond, *self.draw(key, x.shape))

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Drawn:
        """Times and noise for a batch of `shape` [B, ...]."""
        return self.simple.draw(key, shape)

    def given(self, predict: Predict, x: jax.Array, cond, t_B: jax.Array, eps: jax.Array) -> tuple[jax.Array, dict]:
        """The loss at times and noise that are drawn."""
        process, target = self.simple.process, self.simple.target
        prediction = predict(gaussian.add_noise(process, x, eps, t_B), t_B, cond).astype(jnp.float32)
        goal = gaussian.target(process, target, x, eps, t_B)
        other = gaussian.target(process, target, jnp.roll(x, 1, 0), jnp.roll(eps, 1, 0), t_B)
        near_B, far_B = mean_square(prediction - goal), mean_square(prediction - other)
        value_B = self.simple.weighting(process, target, t_B) * (near_B - self.weight * far_B)
        return jnp.mean(value_B), {"denoising": jnp.mean(near_B)}


def contrastive(process: Process, target: str, density: Density, weighting: Weighting,
                weight: float = 0.05) -> Contrastive:
    """Contrastive flow matching (Stoica et al. 2025, 2506.05350, eq. 7).

    From each squared error `weight` times the squared distance to another example's target is taken away, which keeps
    the predictions of different conditions apart. The other is the next of the batch.
    """
    if not 0.0 <= weight < 1.0:
        raise ValueError(f"weight={weight} must lie between 0 and 1, or the loss has no minimum")
    return Contrastive(denoising(process, target, density, weighting), weight)


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))

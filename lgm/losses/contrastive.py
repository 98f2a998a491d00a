"""Contrastive flow matching: predictions of different conditions are kept apart."""

import dataclasses

import jax
import jax.numpy as jnp

from lgm import gaussian
from lgm.gaussian import Process
from lgm.losses.denoising import Denoising, Drawn, Predict, denoising, mean_square
from lgm.losses.densities import Density
from lgm.losses.records import Loss, OfDraws
from lgm.losses.weightings import Weighting


@dataclasses.dataclass(frozen=True)
class Contrastive(OfDraws):
    """`loss(predict, x, cond, key) -> (scalar, metrics)`; see `contrastive`. It is `given` what `draw` draws."""

    simple: Denoising
    weight: float = 0.05

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


CONTRASTIVE = Loss("contrastive", lambda of, weight=0.05: contrastive(of.process, of.target, of.density, of.weighting,
                                                                      weight))  # fmt: skip

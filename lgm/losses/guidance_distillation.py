"""Guidance distilled into one pass (Meng et al. 2023, 2210.03142, section 3.1): the network is told the scale."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lgm import gaussian
from lgm.gaussian import Process
from lgm.losses.denoising import Predict, drawn, mean_square
from lgm.losses.densities import Density
from lgm.losses.records import Loss, OfDraws, Setting
from lgm.losses.weightings import Weighting


class Scaled(NamedTuple):
    """What `GuidanceDistillation` draws for a batch: times [B], noise like x and scales of guidance [B]."""

    t: jax.Array
    eps: jax.Array
    scale: jax.Array


@dataclasses.dataclass(frozen=True)
class GuidanceDistillation(OfDraws):
    """`loss(predict, x, cond, key, teacher, unguided) -> (scalar, metrics)`; see `guidance_distillation`. It is `given`
    what `draw` draws."""

    process: Process
    target: str
    density: Density
    weighting: Weighting
    scales: tuple[float, float] = (1.0, 8.0)

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Scaled:
        """Times, noise and scales for a batch of `shape` [B, ...]."""
        key, scale_key = jax.random.split(key)
        low, high = self.scales
        scale_B = jax.random.uniform(scale_key, shape[:1], minval=low, maxval=high)
        return Scaled(*drawn(self.density, shape, key), scale_B)

    def given(self, predict: Predict, x: jax.Array, cond, t_B: jax.Array, eps: jax.Array, scale_B: jax.Array,
              teacher: Predict, unguided: Predict) -> tuple[jax.Array, dict]:
        """The loss at times, noise and scales that are drawn."""
        x_t = gaussian.add_noise(self.process, x, eps, t_B)
        c, u = (ask(x_t, t_B, cond).astype(jnp.float32) for ask in (teacher, unguided))
        goal = jax.lax.stop_gradient(u + gaussian.wide(scale_B, x) * (c - u))
        error = predict(x_t, t_B, dataclasses.replace(cond, guidance=scale_B)).astype(jnp.float32) - goal
        return jnp.mean(self.weighting(self.process, self.target, t_B) * mean_square(error)), {}


def guidance_distillation(process: Process, target: str, density: Density, weighting: Weighting,
                          scales: tuple[float, float] = (1.0, 8.0)) -> GuidanceDistillation:
    """A student that is told the guidance scale predicts what its teacher predicts with classifier-free guidance of it:
    `teacher` with the caption and, `unguided`, without.

    The scale is drawn evenly from `scales`, one an example, and stands in `cond.guidance`; at sampling a guided image
    then costs one pass, as with Flux.1-dev. Raises ValueError for scales that do not rise.
    """
    if len(scales) != 2 or not scales[0] <= scales[1]:
        raise ValueError(f"scales={tuple(scales)} must be two numbers that rise")
    gaussian.coefficients(process, target, jnp.float32(0.5))
    return GuidanceDistillation(process, target, density, weighting, (scales[0], scales[1]))


def _of_config(setting: Setting, scales=(1.0, 8.0)) -> GuidanceDistillation:
    return guidance_distillation(*setting, scales)


GUIDANCE_DISTILLATION = Loss("guidance_distillation", _of_config, teacher="predictions", guidance=True,
                             extra=lambda loss: ("unguided",))

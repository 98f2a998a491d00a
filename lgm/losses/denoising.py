"""The denoising loss: draw t, build x_t, compare the prediction with its target under a weighting.

With the rectified-flow process, target "flow" and a logit-normal density it is SD3's flow matching; with DDPM and
"eps" it is the simple loss of 2006.11239; with "v" that of 2202.00512.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lgm import gaussian
from lgm.gaussian import Process
from lgm.losses.densities import Density
from lgm.losses.records import Loss, OfDraws
from lgm.losses.weightings import Weighting


class Drawn(NamedTuple):
    """What is random in a batch's loss: times [B] and noise like x."""

    t: jax.Array
    eps: jax.Array


Predict = Callable[[jax.Array, jax.Array, object], jax.Array]  # (x_t [B, ...], t [B], cond) -> prediction, like x_t


@dataclasses.dataclass(frozen=True)
class Denoising(OfDraws):
    """`loss(predict, x, cond, key) -> (scalar float32, metrics)`: the batch mean of the weighted squared error.

    It is `given` what `draw` draws. A batch that is taken in pieces draws for all of it first.
    """

    process: Process
    target: str
    density: Density
    weighting: Weighting

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Drawn:
        """Times and noise for a batch of `shape` [B, ...]."""
        return drawn(self.density, shape, key)

    def given(self, predict: Predict, x: jax.Array, cond, t_B: jax.Array, eps: jax.Array) -> tuple[jax.Array, dict]:
        """The loss at times and noise that are drawn."""
        error_B = denoising_at(self.process, self.target, predict, x, cond, t_B, eps)
        return jnp.mean(self.weighting(self.process, self.target, t_B) * error_B), {}


def denoising(process: Process, target: str, density: Density, weighting: Weighting) -> Denoising:
    """The loss of a process, a prediction target, a density of t and a weighting. Raises ValueError for an unknown
    target."""
    gaussian.coefficients(process, target, jnp.float32(0.5))  # refused here, not in a trace
    return Denoising(process, target, density, weighting)


def denoising_at(process: Process, target: str, predict: Predict, x: jax.Array, cond, t_B: jax.Array,
                 eps: jax.Array) -> jax.Array:
    """[B] mean squared error of the prediction at given times and noise, reduced in float32."""
    x_t = gaussian.add_noise(process, x, eps, t_B)
    error = predict(x_t, t_B, cond).astype(jnp.float32) - gaussian.target(process, target, x, eps, t_B)
    return mean_square(error)


def drawn(density: Density, shape: tuple[int, ...], key: jax.Array) -> Drawn:
    """Times and noise for a batch of `shape` [B, ...]."""
    time_key, noise_key = jax.random.split(key)
    return Drawn(density(time_key, shape[:1]), jax.random.normal(noise_key, shape, jnp.float32))


def mean_square(error: jax.Array) -> jax.Array:
    """[B] mean square over everything but the batch."""
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


DENOISING = Loss("denoising", lambda setting: denoising(*setting))

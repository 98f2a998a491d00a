"""Losses on pairs (data, noise) that a teacher's ODE joined, and of students that do in one pass what took two.

A pair is x_0 = sampling.sample(solver, ..., predict, x_T, times) with the noise eps = x_T it came from. Lines between
joined ends cross less than lines between independent ones, so a network trained on them is straighter (Liu et al. 2023,
2209.03003): one Euler step of it is a sample. Applied again and again, then distilled into that one step (2309.06380).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lgm import gaussian
from lgm.gaussian import Process
from lgm.losses.denoising import Predict, denoising
from lgm.losses.distances import Distance, squared
from lgm.losses.records import Loss


class Noise(NamedTuple):
    """What `OneStep` draws for a batch where no pairs are given: the noise."""

    eps: jax.Array


@dataclasses.dataclass(frozen=True)
class OneStep:
    """`loss(predict, (x, eps), cond, key) -> (scalar, metrics)`; see `one_step`. It is `given` the pair's noise."""

    process: Process
    target: str
    between: Distance

    def __call__(self, predict: Predict, pair: tuple[jax.Array, jax.Array], cond, key: jax.Array):
        return self.given(predict, pair[0], cond, pair[1])

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Noise:
        """Noise for a batch of `shape` [B, ...], in whose place the pairs' own comes."""
        return Noise(jax.random.normal(key, shape, jnp.float32))

    def given(self, predict: Predict, x: jax.Array, cond, eps: jax.Array) -> tuple[jax.Array, dict]:
        """The loss of data x [B, ...] and the noise that a teacher made them of."""
        t_B = jnp.ones(x.shape[:1])
        x_T = gaussian.add_noise(self.process, jnp.zeros_like(x), eps, t_B)  # what a sampler starts from
        x_hat, _ = gaussian.endpoints(self.process, self.target, predict(x_T, t_B, cond), x_T, t_B)
        return jnp.mean(self.between(x_hat, x.astype(jnp.float32))), {}


def one_step(process: Process, target: str, between: Distance | None = None) -> OneStep:
    """How far the data that the network sees in pure noise, at t = 1, lie from the pair's. `between` is any distance of
    batches, a perceptual one too. Raises ValueError for a target that leaves the data open there, as eps may."""
    gaussian.check_tells_data(process, target, 1.0, "train another target")
    return OneStep(process, target, squared() if between is None else between)


# the loss on pairs is the plain one: what is straighter is the lines between their ends
REFLOW = Loss("reflow", lambda setting: denoising(*setting), teacher="pairs")
ONE_STEP = Loss("one_step", lambda setting, distance=None: one_step(setting.process, setting.target, distance),
                teacher="pairs", steps=lambda options: 1)

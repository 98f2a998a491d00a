"""Losses on pairs (data, noise) that a teacher's ODE joined, and of students that do in one pass what took two.

A pair is x_0 = sampling.sample(solver, ..., predict, x_T, times) with the noise eps = x_T it came from. Lines between
joined ends cross less than lines between independent ones, so a network trained on them is straighter (Liu et al. 2023,
2209.03003): one Euler step of it is a sample. Applied again and again, then distilled into that one step (2309.06380).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lgm import gaussian
from lgm.gaussian import Process
from lgm.losses.denoising import Predict, denoising_at, mean_square, noised
from lgm.losses.densities import Density
from lgm.losses.weightings import Weighting
from lgm.registry import make

Distance = Callable[[jax.Array, jax.Array], jax.Array]  # ([B, ...], [B, ...]) -> [B]


def reflow(process: Process, target: str, density: Density, weighting: Weighting):
    """`loss(predict, (x, eps), cond, key) -> (scalar float32, metrics)`: `denoising` on given pairs."""
    gaussian.coefficients(process, target, jnp.float32(0.5))

    def loss(predict: Predict, pair: tuple[jax.Array, jax.Array], cond, key: jax.Array):
        x, eps = pair
        t_B = density(key, x.shape[:1])
        error_B = denoising_at(process, target, predict, x, cond, t_B, eps)
        return jnp.mean(weighting(process, target, t_B) * error_B), {}

    return loss


def squared() -> Distance:
    """Mean squared difference."""
    return lambda x, y: mean_square(x - y)


def pseudo_huber(scale: float = 0.00054) -> Distance:
    """sqrt(|x - y|^2 + c^2) - c with c = scale sqrt(dimensions) (Song & Dhariwal 2024, 2310.14189, section 3.3)."""
    if scale <= 0:
        raise ValueError(f"distance option scale={scale} must be above 0")

    def distance(x, y):
        axes = tuple(range(1, x.ndim))
        c = scale * (x.size // max(len(x), 1)) ** 0.5
        return jnp.sqrt(jnp.sum(jnp.square(x - y), axis=axes) + c**2) - c

    return distance


DISTANCES = {"squared": squared, "pseudo_huber": pseudo_huber}


def distance(name: str, **options) -> Distance:
    """The distance of that name; ValueError, one line, for a name or option there is not."""
    return make("distance", DISTANCES, name, options)


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
    with jax.ensure_compile_time_eval():  # a loss may be made inside a traced function
        a, b, (p, q) = process.a(1.0), process.b(1.0), gaussian.coefficients(process, target, 1.0)
        singular = bool(abs(a * q - b * p) < 1e-6 * b)
    if singular:
        raise ValueError(f"target {target!r} says nothing of the data at t=1, which is pure noise under process "
                         f"{process.name!r}; train another target")
    return OneStep(process, target, squared() if between is None else between)


def guidance_distillation(process: Process, target: str, density: Density, weighting: Weighting,
                          scales: tuple[float, float] = (1.0, 8.0)):
    """`loss(predict, x, cond, key, teacher, uncond)`: a student that is told the guidance scale predicts what the
    `teacher` predicts with classifier-free guidance of that scale (Meng et al. 2023, 2210.03142, section 3.1).

    The scale is drawn evenly from `scales`, one an example, and stands in `cond.guidance`; at sampling a guided image
    then costs one pass, as with Flux.1-dev.
    """
    low, high = scales
    if not low <= high:
        raise ValueError(f"scales={scales} must rise")

    def loss(predict: Predict, x: jax.Array, cond, key: jax.Array, teacher: Predict, uncond):
        key, scale_key = jax.random.split(key)
        t_B, _, x_t = noised(process, density, x, key)
        scale_B = jax.random.uniform(scale_key, x.shape[:1], minval=low, maxval=high)
        c, u = teacher(x_t, t_B, cond), teacher(x_t, t_B, uncond)
        goal = jax.lax.stop_gradient((u + gaussian.wide(scale_B, x) * (c - u)).astype(jnp.float32))
        drawn = predict(x_t, t_B, dataclasses.replace(cond, guidance=scale_B)).astype(jnp.float32)
        return jnp.mean(weighting(process, target, t_B) * mean_square(drawn - goal)), {}

    return loss

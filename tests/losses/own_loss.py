"""A loss that the package knows nothing of: the mean absolute error of the plain denoising loss's prediction."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lgm import gaussian
from lgm.losses import Loss


class Drawn(NamedTuple):
    t: jax.Array
    eps: jax.Array


class Absolute:
    def __init__(self, setting, factor):
        self.setting, self.factor = setting, factor

    def draw(self, key, shape):
        time_key, noise_key = jax.random.split(key)
        return Drawn(self.setting.density(time_key, shape[:1]), jax.random.normal(noise_key, shape))

    def given(self, predict, x, cond, t_B, eps):
        process, target = self.setting.process, self.setting.target
        error = predict(gaussian.add_noise(process, x, eps, t_B), t_B, cond) - gaussian.target(
            process, target, x, eps, t_B)  # fmt: skip
        return self.factor * jnp.mean(jnp.abs(error)), {}


ABSOLUTE = Loss("absolute", lambda setting, factor=1.0: Absolute(setting, factor))

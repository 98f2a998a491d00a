"""Shortcut models: predict(x_t, t, s, cond) is the mean velocity of the path between s and t >= s, as in `mean_flow`,
and learns it from its own halves."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lgm import gaussian
from lgm.gaussian import Process
from lgm.losses.denoising import mean_square
from lgm.losses.densities import Density
from lgm.losses.mean_flow import Jump
from lgm.losses.records import Loss, OfDraws, Setting


class Pairs(NamedTuple):
    """What `Shortcut` draws for a batch: for each example the level and the place of its jumps, for those that are
    trained on jumps, and its time and noise [B, ...]."""

    level: jax.Array
    place: jax.Array
    t: jax.Array
    eps: jax.Array


@dataclasses.dataclass(frozen=True)
class Shortcut(OfDraws):
    """`loss(predict, x, cond, key, averaged=None, uncond=None) -> (scalar, metrics)`; see `shortcut`. It is `given`
    what `draw` draws."""

    process: Process
    density: Density
    share: float = 0.25
    levels: int = 7
    scale: float = 1.0
    averaged: bool = False

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Pairs:
        """Levels, places, times and noise for a batch of `shape` [B, ...]."""
        time_key, level_key, place_key, noise_key = jax.random.split(key, 4)
        return Pairs(
            jax.random.randint(level_key, shape[:1], 1, self.levels + 1),
            jax.random.uniform(place_key, shape[:1]),
            self.density(time_key, shape[:1]),
            jax.random.normal(noise_key, shape, jnp.float32),
        )

    def given(self, predict: Jump, x: jax.Array, cond, level_B: jax.Array, place_B: jax.Array, t_B: jax.Array,
              eps: jax.Array, averaged: tuple[Jump, Any, Any] | None = None, uncond=None
              ) -> tuple[jax.Array, dict]:  # fmt: skip
        """The loss at what is drawn; the first `share` of the examples are trained on jumps."""
        batch = len(x)
        paired = round(self.share * batch)
        if not 0 < paired < batch:
            raise ValueError(f"share={self.share} of a batch of {batch} leaves one part empty; use a larger batch")
        level_P = level_B[:paired]
        jumps_P = 2 ** (level_P - 1)  # of width 2 d that fit into [0, 1]
        t_P, d_P = (jnp.floor(place_B[:paired] * jumps_P) + 1.0) / jumps_P, 0.5 / jumps_P
        t_B = jnp.concatenate([t_P, t_B[paired:]])
        x_t = gaussian.add_noise(self.process, x, eps, t_B)
        v = gaussian.target(self.process, "flow", x, eps, t_B)

        make, first, uncond = (predict, cond, uncond) if averaged is None else averaged
        first = jax.tree.map(lambda leaf: leaf[:paired], first)
        if self.scale != 1.0 and uncond is None:
            raise ValueError(f"scale={self.scale} guides the smallest jumps; give uncond, the condition without a "
                             "caption")
        finest_P = level_P == self.levels

        def velocity(x_P, t_P):
            land_P = jnp.where(finest_P, t_P, t_P - d_P)
            given = make(x_P, t_P, land_P, first).astype(jnp.float32)
            if self.scale == 1.0:
                return given
            none = jax.tree.map(lambda leaf: leaf[:paired], uncond)
            free = make(x_P, t_P, land_P, none).astype(jnp.float32)
            return jnp.where(gaussian.wide(finest_P, x_P), free + self.scale * (given - free), given)

        u1 = velocity(x_t[:paired], t_P)
        u2 = velocity(x_t[:paired] - gaussian.wide(d_P, x) * u1, t_P - d_P)
        goal = jax.lax.stop_gradient(jnp.concatenate([0.5 * (u1 + u2), v[paired:]]))

        s_B = jnp.concatenate([t_P - 2.0 * d_P, t_B[paired:]])
        error_B = mean_square(predict(x_t, t_B, s_B, cond).astype(jnp.float32) - goal)
        metrics = {"consistency_error": jnp.mean(error_B[:paired]), "velocity_error": jnp.mean(error_B[paired:])}
        return jnp.mean(error_B), metrics


def shortcut(process: Process, density: Density, share: float = 0.25, levels: int = 7, scale: float = 1.0,
             averaged: bool = False) -> Shortcut:
    """Shortcut models (Frans et al. 2025, 2410.12557, algorithm 1).

    A `share` of the batch learns that one jump of 2 d is two of d, where d = 2^-k, k in 1 .. levels, and t a
    multiple of 2 d; the rest learns the velocity, a jump of no width. Below the smallest d the two halves are Euler
    steps of the velocity, guided by `scale` (uncond + scale (cond - uncond), as in the released code): what they learn,
    larger jumps inherit, and a guided sample costs one pass a jump. With `averaged` the jumps of d are made by the
    network whose weights are the average over training, as in the released code: the loss is given (its predict, its
    cond, its uncond). Without, by `predict` itself.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share={share} of the batch must lie between 0 and 1, both left out")
    if levels < 1:
        raise ValueError(f"levels={levels} must be at least 1")
    return Shortcut(process, density, share, levels, scale, averaged)


def _of_config(setting: Setting, share=0.25, levels=7, scale=1.0, averaged=True) -> Shortcut:
    return shortcut(setting.process, setting.density, share, levels, scale, averaged)


SHORTCUT = Loss("shortcut", _of_config, of=("rectified_flow", "flow"), jump=True, solver="jump", extra=lambda loss: (
    *(["averaged"] if loss.averaged else []), *(["uncond"] if loss.scale != 1.0 else [])))

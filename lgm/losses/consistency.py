"""Consistency in continuous time (sCM: Lu & Song 2025, 2410.11081): every point of a path maps to its end in one pass.

On the trigonometric process with data of unit variance, at the angle theta = pi t / 2, the network F of target "v"
gives the map f(x_t, t) = cos(theta) x_t - sin(theta) F(x_t, t), which is the x of `process.endpoints`; `sampling`'s
solver "consistency" draws with it in one step or more.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lgm import gaussian
from lgm.losses.denoising import Predict, drawn, mean_square
from lgm.losses.densities import Density
from lgm.losses.records import Loss, OfDraws, Setting


class Ramped(NamedTuple):
    """What `Consistency` draws for a batch: times [B] and noise, and [B] how much of the tangent's unstable part counts
    by now."""

    t: jax.Array
    eps: jax.Array
    ramp: jax.Array


@dataclasses.dataclass(frozen=True)
class Consistency(OfDraws):
    """`loss(predict, x, cond, key, teacher=None, log_weight=None) -> (scalar, metrics)`; see `consistency`. It is
    `given` what `draw` draws, for which it is told how far training is."""

    density: Density
    offset: float = 0.1
    warmup: float = 0.0

    def draw(self, key: jax.Array, shape: tuple[int, ...], progress: jax.Array | float = 1.0) -> Ramped:
        """Times and noise for a batch of `shape` [B, ...] after a share `progress` of the training."""
        t_B, eps = drawn(self.density, shape, key)
        ramp = jnp.minimum(jnp.asarray(progress, jnp.float32) / self.warmup, 1.0) if self.warmup else 1.0
        return Ramped(jnp.clip(t_B, 1e-4, 1.0 - 1e-4), eps, jnp.full(shape[:1], ramp, jnp.float32))

    def given(self, predict: Predict, x: jax.Array, cond, t_B: jax.Array, eps: jax.Array, ramp_B: jax.Array,
              teacher: Predict | None = None, log_weight: Callable[[jax.Array], jax.Array] | None = None
              ) -> tuple[jax.Array, dict]:  # fmt: skip
        """The loss at times and noise that are drawn."""
        process = gaussian.trigonometric()
        x_t = gaussian.add_noise(process, x, eps, t_B)
        velocity = gaussian.target(process, "v", x, eps, t_B) if teacher is None else teacher(x_t, t_B, cond)
        velocity = jax.lax.stop_gradient(velocity.astype(jnp.float32))
        cos, sin = (gaussian.wide(c(t_B), x) for c in (process.a, process.b))

        # the derivative along the path times cos sin, which keeps it finite near the ends (section 4.1)
        slow_B = process.a(t_B) * process.b(t_B)
        tangents = (cos * sin * velocity).astype(x_t.dtype), (slow_B * (2.0 / math.pi)).astype(t_B.dtype)
        F, dF = jax.jvp(lambda x_t, t_B: predict(x_t, t_B, cond), (x_t, t_B), tangents)
        F, dF = F.astype(jnp.float32), dF.astype(jnp.float32)
        fixed = jax.lax.stop_gradient(F)
        unstable = cos * sin * x_t + jax.lax.stop_gradient(dF)
        g = -jnp.square(cos) * (fixed - velocity) - gaussian.wide(ramp_B, x) * unstable
        axes = tuple(range(1, x.ndim))
        size = jnp.sqrt(jnp.mean(jnp.square(g), axis=axes, keepdims=True))
        g = jax.lax.stop_gradient(g / (size + self.offset))

        value_B = mean_square(F - fixed - g)  # 1 / tan(theta), the prior weight, is within g (eq. 8)
        if log_weight is not None:
            w_B = log_weight(t_B)
            value_B = jnp.exp(w_B) * value_B - w_B
        return jnp.mean(value_B), {"tangent": jnp.mean(size)}


def consistency(density: Density, offset: float = 0.1, warmup: float = 0.0) -> Consistency:
    """Continuous-time consistency, algorithm 1.

    With a `teacher`, a network of target "v" on the same process, it is consistency distillation: dx_t/dtheta is the
    teacher's velocity. Without one it is consistency training: the example's own. The tangent's unstable part comes in
    over the first share `warmup` of the training. The tangent g is divided by (rms(g) + offset), rms over
    an example's elements. `log_weight(t_B)`, if given, is the adaptive weighting's w: e^w error - w (section 4.2).
    """
    if offset < 0:
        raise ValueError(f"offset={offset} must be at least 0")
    if not 0.0 <= warmup <= 1.0:
        raise ValueError(f"warmup={warmup} is a share of the training; it must lie between 0 and 1")
    return Consistency(density, offset, warmup)


def _of_config(setting: Setting, offset=0.1, warmup=0.0) -> Consistency:
    return consistency(setting.density, offset, warmup)


CONSISTENCY = Loss("consistency", _of_config, of=("trigonometric", "v"), teacher="predictions", optional=True,
                   taught="v", forward=True, solver="consistency")

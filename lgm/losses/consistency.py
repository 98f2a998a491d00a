"""Consistency in continuous time (sCM: Lu & Song 2025, 2410.11081): every point of a path maps to its end in one pass.

On the trigonometric process with data of unit variance, at the angle theta = pi t / 2, the network F of target "v"
gives the map f(x_t, t) = cos(theta) x_t - sin(theta) F(x_t, t), which is the x of `process.endpoints`; `sampling`'s
solver "consistency" draws with it in one step or more.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lgm import gaussian
from lgm.losses.denoising import Drawn, Predict, drawn, mean_square
from lgm.losses.densities import Density
from lgm.losses.records import Loss, OfDraws


@dataclasses.dataclass(frozen=True)
class Consistency(OfDraws):
    """`loss(predict, x, cond, key, teacher=None, ramp=1.0, log_weight=None) -> (scalar, metrics)`; see `consistency`.
    It is `given` what `draw` draws."""

    density: Density
    offset: float = 0.1

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Drawn:
        """Times and noise for a batch of `shape` [B, ...]."""
        t_B, eps = drawn(self.density, shape, key)
        return Drawn(jnp.clip(t_B, 1e-4, 1.0 - 1e-4), eps)

    def given(self, predict: Predict, x: jax.Array, cond, t_B: jax.Array, eps: jax.Array,
              teacher: Predict | None = None, ramp=1.0,
              log_weight: Callable[[jax.Array], jax.Array] | None = None) -> tuple[jax.Array, dict]:
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
        g = -jnp.square(cos) * (fixed - velocity) - ramp * (cos * sin * x_t + jax.lax.stop_gradient(dF))
        axes = tuple(range(1, x.ndim))
        size = jnp.sqrt(jnp.mean(jnp.square(g), axis=axes, keepdims=True))
        g = jax.lax.stop_gradient(g / (size + self.offset))

        value_B = mean_square(F - fixed - g)  # 1 / tan(theta), the prior weight, is within g (eq. 8)
        if log_weight is not None:
            w_B = log_weight(t_B)
            value_B = jnp.exp(w_B) * value_B - w_B
        return jnp.mean(value_B), {"tangent": jnp.mean(size)}


def consistency(density: Density, offset: float = 0.1) -> Consistency:
    """Continuous-time consistency, algorithm 1.

    With a `teacher`, a network of target "v" on the same process, it is consistency distillation: dx_t/dtheta is the
    teacher's velocity. Without one it is consistency training: the example's own. `ramp` in [0, 1] brings in the
    tangent's unstable part over the first thousands of steps. The tangent g is divided by (rms(g) + offset), rms over
    an example's elements. `log_weight(t_B)`, if given, is the adaptive weighting's w: e^w error - w (section 4.2).
    """
    if offset < 0:
        raise ValueError(f"offset={offset} must be at least 0")
    return Consistency(density, offset)


CONSISTENCY = Loss("consistency", lambda setting, offset=0.1: consistency(setting.density, offset),
                   of=("trigonometric", "v"), teacher="predictions", optional=True, taught="v", forward=True)

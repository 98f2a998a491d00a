"""MeanFlow: predict(x_t, t, s, cond) is the mean velocity of the path between s and t >= s.

x_s = x_t - (t - s) predict(x_t, t, s, cond), which the solver "jump" takes in any number of steps, one among them. At
s = t the mean velocity is the velocity itself, so the loss holds flow matching within it.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lgm import gaussian
from lgm.gaussian import Process
from lgm.losses.denoising import mean_square
from lgm.losses.densities import Density
from lgm.losses.records import Loss, OfDraws, Setting

Jump = Callable[[jax.Array, jax.Array, jax.Array, object], jax.Array]  # (x_t, t_B, s_B, cond) -> like x_t


class Spans(NamedTuple):
    """What `MeanFlow` draws for a batch: times t >= s [B] and the noise."""

    t: jax.Array
    s: jax.Array
    eps: jax.Array


@dataclasses.dataclass(frozen=True)
class MeanFlow(OfDraws):
    """`loss(predict, x, cond, key, uncond=None, dropped=None) -> (scalar, metrics)`; see `mean_flow`. It is `given`
    what `draw` draws, so that a batch that is taken in pieces draws for all of it first."""

    process: Process
    density: Density
    same: float = 0.75
    power: float = 1.0
    offset: float = 0.01
    scale: float = 1.0
    kappa: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    @property
    def guided(self) -> bool:
        """Whether it trains the guided field."""
        return self.scale != 1.0 or self.kappa != 0.0

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Spans:
        """Times and noise for a batch of `shape` [B, ...]."""
        time_key, other_key, same_key, noise_key = jax.random.split(key, 4)
        first, second = self.density(time_key, shape[:1]), self.density(other_key, shape[:1])
        t_B, equal_B = jnp.maximum(first, second), jax.random.bernoulli(same_key, self.same, shape[:1])
        s_B = jnp.where(equal_B, t_B, jnp.minimum(first, second))
        return Spans(t_B, s_B, jax.random.normal(noise_key, shape, jnp.float32))

    def given(self, predict: Jump, x: jax.Array, cond, t_B: jax.Array, s_B: jax.Array, eps: jax.Array,
              uncond=None, dropped: jax.Array | None = None) -> tuple[jax.Array, dict]:
        """The loss at times and noise that are drawn. `dropped` [B] bool: whose caption is left out."""
        x_t = gaussian.add_noise(self.process, x, eps, t_B)
        v = gaussian.target(self.process, "flow", x, eps, t_B)
        if self.guided:
            v = self._guided(predict, x_t, t_B, v, cond, uncond, dropped)
        # the derivative along the path while s stays: dx/dt = v, dt/dt = 1
        tangents = v.astype(x_t.dtype), jnp.ones_like(t_B)
        u, du_dt = jax.jvp(lambda x_t, t_B: predict(x_t, t_B, s_B, cond), (x_t, t_B), tangents)
        goal = jax.lax.stop_gradient(v - gaussian.wide(t_B - s_B, x) * du_dt.astype(jnp.float32))
        error_B = mean_square(u.astype(jnp.float32) - goal)
        sum_B = error_B * (x.size // len(x))
        weight_B = jax.lax.stop_gradient((sum_B + self.offset) ** -self.power)
        equal_B = t_B == s_B
        velocity = jnp.sum(jnp.where(equal_B, error_B, 0.0)) / jnp.maximum(jnp.sum(equal_B), 1)
        return jnp.mean(weight_B * sum_B), {"mean_flow_error": jnp.mean(error_B), "velocity_error": velocity}

    def _guided(self, predict: Jump, x_t: jax.Array, t_B: jax.Array, v: jax.Array, cond, uncond,
                dropped: jax.Array | None) -> jax.Array:
        """The velocity of the guided field, v itself outside the interval and where the caption is dropped."""
        if uncond is None:
            raise ValueError(f"scale={self.scale} and kappa={self.kappa} train a guided field; give uncond, the "
                             "condition without a caption")
        at_rest = lambda told: jax.lax.stop_gradient(predict(x_t, t_B, t_B, told).astype(jnp.float32))
        field = self.scale * v + (1.0 - self.scale - self.kappa) * at_rest(uncond)
        if self.kappa:
            field = field + self.kappa * at_rest(cond)
        plain_B = (t_B < self.interval[0]) | (t_B > self.interval[1])
        plain_B = plain_B if dropped is None else plain_B | dropped
        return jnp.where(plain_B.reshape(-1, *(1,) * (v.ndim - 1)), v, field)


def mean_flow(process: Process, density: Density, same: float = 0.75, power: float = 1.0, offset: float = 0.01,
              scale: float = 1.0, kappa: float = 0.0, interval: tuple[float, float] = (0.0, 1.0)) -> MeanFlow:
    """MeanFlow (Geng et al. 2025, 2505.13447).

    The mean velocity u between s and t obeys u = v - (t - s) du/dt along the path; the right-hand side, with the
    example's own v and a forward derivative of the network, is the regression's fixed target. t and s are the larger
    and the smaller of two draws of `density`, equal for a share `same` of the examples. The squared error, a sum over
    an example's elements, is divided by (error + offset)^power, held fixed (eq. 22; power 1 and offset 0.01 are the
    released code's).

    A `scale` other than 1 or a `kappa` trains the guided field, so that a guided sample costs one pass: v is replaced
    by scale v + kappa u(x_t, t, t, cond) + (1 - scale - kappa) u(x_t, t, t, uncond), whose effective scale is
    scale / (1 - kappa) (eq. 20 and 21), for t in `interval` and examples whose caption is not dropped.
    """
    if not 0.0 <= same <= 1.0:
        raise ValueError(f"same={same} is a share of examples; it must lie between 0 and 1")
    if power < 0.0 or offset <= 0.0:
        raise ValueError(f"power={power} must be at least 0 and offset={offset} above 0")
    if not 0.0 <= kappa < 1.0:
        raise ValueError(f"kappa={kappa} must lie in [0, 1): the effective scale is scale / (1 - kappa)")
    if len(interval) != 2 or not 0.0 <= interval[0] < interval[1] <= 1.0:
        raise ValueError(f"interval={tuple(interval)} must be two times that rise within [0, 1]")
    return MeanFlow(process, density, same, power, offset, scale, kappa, (interval[0], interval[1]))


def _of_config(setting: Setting, same=0.75, power=1.0, offset=0.01, scale=1.0, kappa=0.0, interval=(0.0, 1.0)
               ) -> MeanFlow:  # fmt: skip
    return mean_flow(setting.process, setting.density, same, power, offset, scale, kappa, interval)


MEAN_FLOW = Loss("mean_flow", _of_config, of=("rectified_flow", "flow"), jump=True, forward=True, solver="jump",
                 extra=lambda loss: ("uncond", "dropped") if loss.guided else ())

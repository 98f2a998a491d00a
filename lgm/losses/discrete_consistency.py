"""Consistency between neighbouring noise levels (Song et al. 2023, 2303.01469; Song & Dhariwal 2024, 2310.14189).

Between sigma_min and sigma_max lie N levels, evenly in sigma^(1/rho), and N grows as training goes on. A network learns
that two points of a path on neighbouring levels have the same end f(x_t, t), the x of `process.endpoints`; on the
lowest level f is x_t itself. `sampling`'s solver "consistency" draws with it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from lgm import gaussian, registry
from lgm.gaussian import Process
from lgm.losses.denoising import Predict
from lgm.losses.distances import Distance, pseudo_huber
from lgm.losses.records import Loss, OfDraws, Setting

STEPS = ("euler", "heun")  # of the teacher's ODE


class Neighbours(NamedTuple):
    """What is drawn for a batch: times [B] of two neighbouring levels, t above s, and the noise."""

    t: jax.Array
    s: jax.Array
    eps: jax.Array


def doubling(start: int, end: int) -> Callable[[jax.Array], jax.Array]:
    """N - 1 of the share of training that is done: `start`, doubled at even intervals until it is `end` (2310.14189,
    section 3.4)."""
    intervals = math.log2(end / start) + 1.0
    return lambda progress: jnp.minimum(start * jnp.exp2(jnp.floor(progress * intervals)), end)


def root(start: int, end: int) -> Callable[[jax.Array], jax.Array]:
    """N - 1 of the share of training that is done: from start - 1 to `end`, the square of N growing evenly (2303.01469,
    appendix C)."""
    of = lambda progress: jnp.ceil(jnp.sqrt(progress * ((end + 1) ** 2 - start**2) + start**2) - 1.0)
    return lambda progress: jnp.maximum(of(progress), 1.0)


GROWTHS = {"doubling": doubling, "root": root}


@dataclasses.dataclass(frozen=True)
class DiscreteConsistency(OfDraws):
    """`loss(predict, x, cond, key, teacher=None) -> (scalar, metrics)`; see `discrete_consistency`. It is `given` what
    `draw` draws, for which it is told how far training is."""

    process: Process
    target: str
    between: Distance
    intervals: Callable[[jax.Array], jax.Array]
    mean: float = -1.1
    std: float = 2.0
    even: bool = False
    rho: float = 7.0
    weighted: bool = True
    solver: str = "heun"

    def draw(self, key: jax.Array, shape: tuple[int, ...], progress: jax.Array | float = 1.0) -> Neighbours:
        """Neighbouring levels and noise for a batch of `shape` [B, ...] after a share `progress` of the training."""
        level_key, noise_key = jax.random.split(key)
        count, u_B = self.intervals(jnp.asarray(progress, jnp.float32)), jax.random.uniform(level_key, shape[:1])
        low, high = self._ends()
        if self.even:
            number_B = jnp.floor(u_B * count)
        else:
            # log sigma normal within the ends: the interval that it falls into has the mass between its two levels
            first, last = (norm.cdf((end - self.mean) / self.std) for end in (low, high))
            log_sigma_B = self.mean + self.std * norm.ppf(first + u_B * (last - first))
            bottom, top = math.exp(low / self.rho), math.exp(high / self.rho)
            number_B = jnp.floor((jnp.exp(log_sigma_B / self.rho) - bottom) / (top - bottom) * count)
        number_B = jnp.clip(number_B, 0, count - 1)
        eps = jax.random.normal(noise_key, shape, jnp.float32)
        return Neighbours(self._time(number_B + 1, count), self._time(number_B, count), eps)

    def given(self, predict: Predict, x: jax.Array, cond, t_B: jax.Array, s_B: jax.Array, eps: jax.Array,
              teacher: Predict | None = None) -> tuple[jax.Array, dict]:
        """The loss at levels and noise that are drawn."""
        process = self.process
        x_t = gaussian.add_noise(process, x, eps, t_B)
        if teacher is None:
            x_s = gaussian.add_noise(process, x, eps, s_B)
        else:
            x_s = self._taught(teacher, x_t, cond, t_B, s_B)
        x_s = jax.lax.stop_gradient(x_s)
        end = lambda x, t_B: gaussian.endpoints(process, self.target, predict(x, t_B, cond), x, t_B).x
        goal = jnp.where(gaussian.wide(s_B > 0, x), end(x_s, s_B), x_s)
        error_B = self.between(end(x_t, t_B), jax.lax.stop_gradient(goal))
        weight_B = 1.0 / (process.b(t_B) - process.b(s_B)) if self.weighted else 1.0
        return jnp.mean(weight_B * error_B), {"consistency_error": jnp.mean(error_B)}

    def _taught(self, teacher: Predict, x_t: jax.Array, cond, t_B: jax.Array, s_B: jax.Array) -> jax.Array:
        """The teacher's ODE from t to s, by one step."""
        slope = lambda x, t_B: gaussian.endpoints(self.process, self.target, teacher(x, t_B, cond), x, t_B).eps
        width = gaussian.wide(self.process.b(s_B) - self.process.b(t_B), x_t)
        first = slope(x_t, t_B)
        if self.solver == "euler":
            return x_t + width * first
        return x_t + 0.5 * width * (first + slope(x_t + width * first, s_B))

    def _ends(self) -> tuple[float, float]:
        """log sigma_min and log sigma_max."""
        with jax.ensure_compile_time_eval():
            low, high = (math.log(float(self.process.b(jnp.float32(t)))) for t in (0.0, 1.0))
            return low, high

    def _time(self, number_B: jax.Array, count: jax.Array) -> jax.Array:
        """The time of a level's number; 0 of the lowest."""
        low, high = self._ends()
        bottom, top = math.exp(low / self.rho), math.exp(high / self.rho)
        log_sigma_B = self.rho * jnp.log(bottom + number_B / count * (top - bottom))
        return jnp.where(number_B == 0, 0.0, jnp.clip((log_sigma_B - low) / (high - low), 0.0, 1.0))


def discrete_consistency(process: Process, target: str, between: Distance, start: int = 10, end: int = 1280,
                         growth: str = "doubling", mean: float = -1.1, std: float = 2.0, even: bool = False,
                         rho: float = 7.0, weighted: bool = True, solver: str = "heun") -> DiscreteConsistency:
    """Consistency training on EDM's process; with a `teacher` of the same target consistency distillation, whose path
    from t to s is a step of its ODE by `solver` instead of the example's own.

    The defaults are the improved ones of 2310.14189: N - 1 from `start` to `end` by `growth`, levels by a normal
    density of log sigma (`mean`, `std`; all alike with `even`), errors `weighted` by 1 / (t - s) in sigma, and its
    distance "pseudo_huber". The first paper's are growth "root" from 2 to 150, even, not weighted, with a squared
    distance; start = end = 17 are its distillation's 18 levels. The network that says the goal is this one, held fixed:
    the first paper's average of it was found to bias (2310.14189, section 3.2).
    """
    if process.name != "edm":
        raise ValueError(f"neighbouring levels lie between the ends of process 'edm', which {process.name!r} has not")
    if not 1 <= start <= end:
        raise ValueError(f"start={start} must be at least 1 and at most end={end}")
    if std <= 0 or rho <= 0:
        raise ValueError(f"std={std} and rho={rho} must be above 0")
    registry.known("growth", GROWTHS, growth)
    if solver not in STEPS:
        raise ValueError(f"solver={solver!r} of the teacher's step must be one of {', '.join(STEPS)}")
    gaussian.coefficients(process, target, jnp.float32(0.5))
    return DiscreteConsistency(process, target, between, GROWTHS[growth](start, end), mean, std, even, rho, weighted,
                               solver)


def _of_config(setting: Setting, distance: Distance | None = None, start=10, end=1280, growth="doubling", mean=-1.1,
               std=2.0, even=False, rho=7.0, weighted=True, solver="heun") -> DiscreteConsistency:
    between = pseudo_huber() if distance is None else distance
    return discrete_consistency(setting.process, setting.target, between, start, end, growth, mean, std, even, rho,
                                weighted, solver)


DISCRETE_CONSISTENCY = Loss("discrete_consistency", _of_config, of=("edm", "edm"), teacher="predictions", optional=True,
                            solver="consistency")

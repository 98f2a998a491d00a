"""Progressive distillation (Salimans & Ho 2022, 2202.00512): a student does in one step what its teacher does in two.

Each stage is a run of its own, whose teacher is the run before and which starts from its weights: 1024 steps, 512, ...
"""

import dataclasses

import jax
import jax.numpy as jnp

from lgm import gaussian
from lgm.gaussian import Process
from lgm.losses.denoising import Drawn, Predict, mean_square
from lgm.losses.records import Loss, OfDraws
from lgm.losses.weightings import Weighting


@dataclasses.dataclass(frozen=True)
class Progressive(OfDraws):
    """`loss(predict, x, cond, key, teacher) -> (scalar, metrics)`; see `progressive`. It is `given` what `draw`
    draws."""

    process: Process
    target: str
    weighting: Weighting
    steps: int

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Drawn:
        """Starts of the student's steps and noise for a batch of `shape` [B, ...]."""
        step_key, noise_key = jax.random.split(key)
        number_B = jax.random.randint(step_key, shape[:1], 1, self.steps + 1)
        t_B = number_B.astype(jnp.float32) * (latest(self.process) / self.steps)
        return Drawn(t_B, jax.random.normal(noise_key, shape, jnp.float32))

    def given(self, predict: Predict, x: jax.Array, cond, t_B: jax.Array, eps: jax.Array,
              teacher: Predict) -> tuple[jax.Array, dict]:
        """The loss at times and noise that are drawn."""
        process, target = self.process, self.target
        x_t = gaussian.add_noise(process, x, eps, t_B)
        half = 0.5 * latest(process) / self.steps
        middle_B, end_B = t_B - half, t_B - 2.0 * half
        end_B = jnp.where(end_B < half, 0.0, end_B)  # the last step's, but for rounding
        x_hat, eps_hat = gaussian.endpoints(process, target, teacher(x_t, t_B, cond).astype(jnp.float32), x_t, t_B)
        a, b = (gaussian.wide(c(middle_B), x) for c in (process.a, process.b))
        between = a * x_hat + b * eps_hat  # DDIM's step, twice
        x_hat, eps_hat = gaussian.endpoints(process, target, teacher(between, middle_B, cond).astype(jnp.float32),
                                            between, middle_B)
        # the data have no noise, though a table's first entry has
        a_end = gaussian.wide(jnp.where(end_B > 0, process.a(end_B), 1.0), x)
        b_end = gaussian.wide(jnp.where(end_B > 0, process.b(end_B), 0.0), x)
        landed = a_end * x_hat + b_end * eps_hat

        # the data that one step from x_t to there implies, and the noise with it (appendix G)
        a, b = (gaussian.wide(c(t_B), x) for c in (process.a, process.b))
        implied = (landed - b_end / b * x_t) / (a_end - b_end / b * a)
        noise = (x_t - a * implied) / b
        goal = jax.lax.stop_gradient(gaussian.target(process, target, implied, noise, t_B))
        error_B = mean_square(predict(x_t, t_B, cond).astype(jnp.float32) - goal)
        return jnp.mean(self.weighting(process, target, t_B) * error_B), {}


def progressive(process: Process, target: str, weighting: Weighting, steps: int = 8) -> Progressive:
    """Algorithm 2 for a student of so many even `steps`, with the solver "ddim" or "euler", and a teacher of twice as
    many.

    Both networks are of one process and prediction `target`, in which the error is measured: with "v", the SNR + 1
    weighting of section 4; with "x", as "constant", none. Raises ValueError for a target that leaves the data open
    where the first step starts, as eps may.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    gaussian.check_tells_data(process, target, latest(process), "train another target")
    return Progressive(process, target, weighting, steps)


def latest(process: Process) -> float:
    """Where a sampler's first step starts: a table's last entry, or 1."""
    return 1.0 if process.steps is None else 1.0 - 1.0 / process.steps


PROGRESSIVE = Loss(
    "progressive", lambda setting, steps=8: progressive(setting.process, setting.target, setting.weighting, steps),
    teacher="predictions", steps=lambda options: options.get("steps", 8))  # fmt: skip

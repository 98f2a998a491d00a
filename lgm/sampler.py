"""A sampler: a solver and the times of its steps, on lgm's own grid or as a scheduler of diffusers has them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lgm import sampling
from lgm.gaussian import Process, pure_noise
from lgm.interop.schedules import LogShift, Schedule
from lgm.registry import section


class Sampler(NamedTuple):
    """How pictures are drawn: the times of the steps, the guided and bounded solver that takes them, what wraps a
    network for it (`sampling.guided`), the factor of the noise that x_T is, and the scheduler that all this is of."""

    timesteps: sampling.Timesteps
    solver: sampling.Solver
    wrap: sampling.Wrap
    scale: float
    schedule: Schedule | None = None


def resolve(process: Process, target: str, steps: int, schedule: Schedule | Mapping[str, Any],
            solver: str | Mapping[str, Any] | None, tokens: int, even: bool = False, log_shift: LogShift | None = None
            ) -> tuple[sampling.Timesteps, sampling.Solver, float]:  # fmt: skip
    """(times, solver, factor of the noise) of a scheduler, for so many image tokens, or of what `sampling.times` takes.

    `even` and `log_shift` as `Schedule.timesteps` has them; with a scheduler the `solver` may be None, for its own.
    """
    if isinstance(schedule, Schedule):
        timesteps = schedule.timesteps(steps, tokens, even, log_shift)
        return timesteps, schedule.method(timesteps.times, solver), schedule.noise_scale(process, timesteps.times)
    with jax.ensure_compile_time_eval():  # known when a program that draws is traced
        times = sampling.informative(process, target, sampling.times(process, steps, **schedule))
        scale = float(pure_noise(process, jnp.float32(1.0), times[0]))
    return sampling.Timesteps(times), sampling.solver(**section(solver, "solver")), scale

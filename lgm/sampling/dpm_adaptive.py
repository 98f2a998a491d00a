"""DPM-Solver with steps of its own size: DPM-Solver-12 and -23 (Lu et al. 2022, 2206.00927, appendix C) under the PID
control of step sizes that k-diffusion's `dpm_adaptive` has. All on y = x / a and s = -log sigma = log(a / b).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lgm.gaussian import Process
from lgm.sampling import steps
from lgm.sampling.halfway import FARTHEST
from lgm.sampling.singlestep import lowest_time
from lgm.sampling.steps import Denoise, Solver, arrival, level

REACHED = 1e-5  # of s: what is left of a way that is made


class Pace(NamedTuple):
    """What is carried from one attempt, and from one part of the way, to the next: the width of the next step in s, and
    the inverse errors of the last two steps that were kept; 0 before the first."""

    h: jax.Array
    before: jax.Array
    earlier: jax.Array


class Way(NamedTuple):
    """Where an attempt begins: y at s, y at the kept step before it, and how many attempts there were."""

    s: jax.Array
    y: jax.Array
    previous: jax.Array
    pace: Pace
    tried: jax.Array


def dpm_adaptive(order: int = 3, rtol: float = 0.05, atol: float = 0.0078, h_init: float = 0.05, pcoeff: float = 0.0,
                 icoeff: float = 1.0, dcoeff: float = 0.0, accept_safety: float = 0.81, eta: float = 0.0,
                 s_noise: float = 1.0, most: int = 1000) -> Solver:
    """From t to s, each of a grid's, in as many steps as the error asks for; a grid of one step is the whole way.

    A step's result by order 3 (2) is kept where it is within atol + rtol |y| of that by order 2 (1), rms over the batch
    [B, ...], which shares its steps; `pcoeff`, `icoeff` and `dcoeff` weigh the three parts of the control, and a width
    may change by `accept_safety` at most where the step is kept. With eta > 0 steps are ancestral. A way to the data
    ends at the process's lowest noise level, then at the network's data; one from pure noise begins with Euler's step.
    A way that `most` attempts do not make is NaN.
    """
    if order not in (2, 3):
        raise ValueError(f"solver option order={order} must be 2 or 3")
    if min(rtol, atol, h_init) <= 0.0 or most < 1 or not 0.0 < accept_safety < 1.0:
        raise ValueError(f"solver options rtol={rtol}, atol={atol} and h_init={h_init} must be above 0, accept_safety="
                         f"{accept_safety} lie between 0 and 1, and most={most} be at least 1")
    if not 0.0 <= eta <= 1.0 or s_noise < 0.0:
        raise ValueError(f"solver options: eta={eta} must lie between 0 and 1, s_noise={s_noise} be at least 0")
    control = 1.5 if eta else float(order)
    powers = (pcoeff + icoeff + dcoeff) / control, -(pcoeff + 2.0 * dcoeff) / control, dcoeff / control

    def judged(pace: Pace, error) -> tuple[Pace, jax.Array]:
        """(the pace after a step of that error, whether the step is kept)."""
        now = 1.0 / (error + 1e-8)
        before, earlier = (jnp.where(old > 0, old, now) for old in (pace.before, pace.earlier))
        factor = now ** powers[0] * before ** powers[1] * earlier ** powers[2]
        factor = 1.0 + jnp.arctan(factor - 1.0)
        kept = factor >= accept_safety
        return Pace(pace.h * factor, jnp.where(kept, now, before), jnp.where(kept, before, earlier)), kept

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        lowest = jnp.asarray(lowest_time(process), float)
        end_t = jnp.where(s > 0, s, jnp.minimum(lowest, t))
        at, end = level(process, t), level(process, end_t)
        noise_at, move = _on_levels(process, denoise)

        def first_step():
            ends = denoise(x, t)
            begin = level(process, process.time_at_log_snr(jnp.asarray(2.0 * FARTHEST, float)))
            return ends.x + ends.eps * (begin.b / begin.a)

        begin_s = jnp.maximum(at.log_ratio, FARTHEST)
        y = jax.lax.cond(at.log_ratio < FARTHEST, first_step, lambda: x / jnp.maximum(at.a, 1e-20))

        def attempt(way: Way) -> Way:
            to = jnp.minimum(end.log_ratio, way.s + way.pace.h)
            fresh = eta * jnp.exp(-to) * jnp.sqrt(jnp.maximum(-jnp.expm1(2.0 * (way.s - to)), 0.0))
            down = jnp.minimum(end.log_ratio, -0.5 * jnp.log(jnp.exp(-2.0 * to) - jnp.square(fresh))) if eta else to
            fresh = jnp.sqrt(jnp.maximum(jnp.exp(-2.0 * to) - jnp.exp(-2.0 * down), 0.0))
            eps = noise_at(way.y, way.s)
            both = _first_and_second if order == 2 else _second_and_third
            y_low, y_high = both(noise_at, move, way.y, way.s, down, eps)
            allowed = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(y_low), jnp.abs(way.previous)))
            error = jnp.sqrt(jnp.mean(jnp.square((y_low - y_high) / allowed)))
            pace, kept = judged(way.pace, error)
            if eta:
                y_high = y_high + s_noise * fresh * steps.draw(steps.another(key, way.tried), way.y)
            keep = lambda new, old: jnp.where(kept, new, old)
            return Way(keep(to, way.s), keep(y_high, way.y), keep(y_low, way.previous), pace, way.tried + 1)

        missing = lambda way: way.s < end.log_ratio - REACHED
        start = Way(begin_s, y, y, memory, jnp.zeros((), jnp.int32))
        way = jax.lax.while_loop(lambda way: missing(way) & (way.tried < most), attempt, start)
        y = jnp.where(missing(way), jnp.nan, way.y)
        to = arrival(process, s)
        made = jax.lax.cond(s > 0, lambda: to.a * y, lambda: denoise(end.a * y, end_t).x)
        return made, way.pace

    zero = lambda: jnp.zeros((), float)
    return Solver(step, lambda x: Pace(jnp.asarray(h_init, float), zero(), zero()))


def _on_levels(process: Process, denoise: Denoise):
    """(eps(y, s), move(y, at s, to s', eps) where eps stays what it is)."""

    def noise_at(y, s):
        t = process.time_at_log_snr(2.0 * s)
        return denoise(level(process, t).a * y, t).eps

    return noise_at, lambda y, s, to, eps: y - jnp.exp(-to) * jnp.expm1(to - s) * eps


def _first_and_second(noise_at, move, y, s, to, eps):
    """y at `to` by order 1 and by order 2."""
    half = s + 0.5 * (to - s)
    return move(y, s, to, eps), move(y, s, to, noise_at(move(y, s, half, eps), half))


def _second_and_third(noise_at, move, y, s, to, eps):
    """y at `to` by order 2, from a third of the way, and by order 3, from two thirds."""
    h, first, second = to - s, s + (to - s) / 3.0, s + (to - s) * (2.0 / 3.0)
    bend = lambda h: jnp.expm1(h) / jnp.maximum(h, REACHED / 10.0) - 1.0  # of an eps that changes evenly
    slope = noise_at(move(y, s, first, eps), first) - eps
    low = move(y, s, to, eps + 1.5 * slope)
    there = move(y, s, second, eps) - jnp.exp(-second) * 2.0 * bend(2.0 / 3.0 * h) * slope
    return low, move(y, s, to, eps) - jnp.exp(-to) * 1.5 * bend(h) * (noise_at(there, second) - eps)

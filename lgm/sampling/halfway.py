"""Solvers that ask the network a second time on the way of a step, and what adds noise before one.

Names, options and formulas are those of k-diffusion, on x / a with sigma = b / a. On a process that ends in pure noise
dpm_2 goes by `singlestep.ode`'s coordinate, a rectified flow's own t, and what is drawn anew is as ComfyUI's samplers
of flows draw it (`split`).
"""

import math

import jax
import jax.numpy as jnp

from lgm.gaussian import Process
from lgm.sampling import steps
from lgm.sampling.singlestep import ends_in_noise, exponential, ode
from lgm.sampling.steps import Denoise, Level, Solver, arrival, decay, level

FARTHEST = math.log(1e-4)  # least log(a / b) of a second evaluation: halfway from pure noise is still pure noise
FINITE = math.log(1e-5)  # the same where the noise has a last level: the table of cosines reaches sigma = 20,291


def split(process: Process, at: Level, to: Level, eta: float) -> tuple[Level, jax.Array, jax.Array]:
    """(down, c, fresh): an ancestral step from `at` to `to` goes to the level `down` without noise and ends at
    c x + fresh noise, which has the level `to`.

    Where a > 0 `down` has sigma_down = sqrt(sigma_to^2 - sigma_up^2) with sigma_up = eta sigma_to
    sqrt(1 - sigma_to^2 / sigma_at^2) (eta 1: the posterior's); on a process that ends in pure noise its u = b / (a + b)
    is u_to (1 + eta (u_to / u_at - 1)).
    """
    if ends_in_noise(process):
        size = to.a + to.b
        u_at, u_to = at.b / (at.a + at.b), to.b / size
        u = u_to * (1.0 + eta * (u_to / u_at - 1.0))
        down = steps.level_of(size * (1.0 - u), size * u)
        c = to.a / down.a
        return down, c, jnp.sqrt(jnp.maximum(jnp.square(to.b) - jnp.square(c * down.b), 0.0))
    keep, drawn = steps.shares(eta, decay(at, to))
    return steps.level_of(to.a, to.b * keep), jnp.ones(()), to.b * drawn


def euler_ancestral(eta: float = 1.0, s_noise: float = 1.0) -> Solver:
    """Euler's step down to less noise than the end has, the rest of which is drawn anew, `s_noise` times."""
    _check(eta, s_noise)

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        x_hat, eps_hat = denoise(x, t)
        down, c, fresh = split(process, level(process, t), arrival(process, s), eta)
        return c * (down.a * x_hat + down.b * eps_hat) + s_noise * fresh * steps.draw(key, x), memory

    return Solver(step)


def dpm_2(eta: float = 0.0, s_noise: float = 1.0) -> Solver:
    """DPM-Solver-2 (Lu et al. 2022, 2206.00927) as k-diffusion has it: the slope at the geometric mean of both noise
    levels; ancestral where eta > 0. The last step, to the data, is Euler's. Two evaluations a step."""
    _check(eta, s_noise)

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        scale, place, slope = ode(process)
        at, to = level(process, t), arrival(process, s)
        down, c, fresh = split(process, at, to, eta) if eta else (to, 1.0, 0.0)
        first = slope(denoise(x, t))
        middle = jnp.sqrt(place(at) * place(down))
        t_half = _time(process, jnp.log(jnp.maximum(1.0 - middle, 1e-6) if ends_in_noise(process) else 1.0)
                       - jnp.log(middle))  # fmt: skip
        half = level(process, t_half)
        move = lambda slope, to: scale(to) * (x / scale(at) + (place(to) - place(at)) * slope)
        second = lambda: slope(denoise(move(first, half), t_half))
        moved = move(jax.lax.cond(to.b > 0, second, lambda: first), down)
        return c * moved + (s_noise * fresh * steps.draw(key, x) if eta else 0.0), memory

    return Solver(step)


def dpmpp_2s_ancestral(eta: float = 1.0, s_noise: float = 1.0) -> Solver:
    """DPM-Solver++ 2S (2211.01095, algorithm 1, r = 1/2) down to less noise than the end has, the rest drawn anew. The
    last step is of first order. Two evaluations a step."""
    _check(eta, s_noise)

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        at, to = level(process, t), arrival(process, s)
        down, c, fresh = split(process, at, to, eta)
        x_hat, _ = denoise(x, t)
        t_half = _time(process, 0.5 * (at.log_ratio + down.log_ratio))
        half = level(process, t_half)
        second = lambda: denoise(exponential(x, x_hat, at, half, 0.0), t_half)[0]
        mean = jax.lax.cond(to.b > 0, second, lambda: x_hat)
        return c * exponential(x, mean, at, down, 0.0) + s_noise * fresh * steps.draw(key, x), memory

    return Solver(step)


def dpmpp_sde(eta: float = 1.0, s_noise: float = 1.0, r: float = 0.5) -> Solver:
    """DPM-Solver++ (stochastic) of k-diffusion: an ancestral step to the share r of the way in log sigma, then one over
    all of it with both outputs. The last step is of first order. Two evaluations a step.

    The noise is Brownian in sigma, as k-diffusion draws it: what the whole step adds begins with what its first part
    added.
    """
    _check(eta, s_noise)
    if not 0.0 < r <= 1.0:
        raise ValueError(f"solver option r={r} must lie in (0, 1]")

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        at, to = level(process, t), arrival(process, s)
        x_hat, _ = denoise(x, t)

        def refined():
            t_half = _time(process, at.log_ratio + r * (to.log_ratio - at.log_ratio))
            half = level(process, t_half)
            first = steps.draw(key, x)
            begun = jnp.clip((1.0 - decay(at, half)) / (1.0 - decay(at, to)), 0.0, 1.0)
            whole = jnp.sqrt(begun) * first + jnp.sqrt(1.0 - begun) * steps.draw(steps.another(key), x)
            other, _ = denoise(_drawn(x, x_hat, at, half, eta, s_noise * first), t_half)
            return _drawn(x, x_hat + 0.5 / r * (other - x_hat), at, to, eta, s_noise * whole)

        return jax.lax.cond(to.b > 0, refined, lambda: to.a * x_hat), memory

    return Solver(step)


def _drawn(x, mean, at: Level, to: Level, eta: float, noise) -> jax.Array:
    """The posterior's step, of a share eta, where the network's data are `mean` throughout."""
    shrink = decay(at, to)
    keep, drawn = steps.shares(eta, shrink)
    return to.b * keep / at.b * x + to.a * (1.0 - shrink * keep) * mean + to.b * drawn * noise


def churned(method: Solver, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
            s_noise: float = 1.0) -> Solver:
    """`method` after noise (Karras et al. 2022, 2206.00364, algorithm 2): a step from sigma in [s_tmin, s_tmax] begins
    at (1 + min(s_churn / steps, sqrt(2) - 1)) sigma, noise of deviation `s_noise` raising it there. No further than the
    process goes, but for EDM's, which goes on past its sigma_max; pure noise stays as it is."""
    if s_churn < 0.0 or s_noise < 0.0 or not 0.0 <= s_tmin <= s_tmax:
        raise ValueError(f"solver options s_churn={s_churn}, s_noise={s_noise}, s_tmin={s_tmin} and s_tmax={s_tmax} "
                         "must be at least 0, and s_tmin at most s_tmax")
    if s_churn == 0.0:
        return method

    def start(x, count):
        return jnp.asarray(count, float), method.start(x)

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        count, inner = memory
        at = level(process, t)
        sigma = at.b / at.a
        churns = (at.a > 1e-6) & (sigma >= s_tmin) & (sigma <= s_tmax)
        gamma = jnp.where(churns, jnp.minimum(s_churn / count, math.sqrt(2.0) - 1.0), 0.0)
        t = jnp.where(churns, _noisier(process, at.log_ratio - jnp.log1p(gamma)), t)
        up = level(process, t)
        grow = jnp.where(churns, up.a / at.a, 1.0)
        added = jnp.sqrt(jnp.maximum(jnp.square(up.b) - jnp.square(grow * at.b), 0.0))
        x = grow * x + jnp.where(churns, s_noise * added, 0.0) * steps.draw(key, x)
        x, inner = method.step(process, denoise, x, inner, t, s, key)
        return x, (count, inner)

    return Solver(step, start, counts=True)


def _time(process: Process, log_ratio: jax.Array) -> jax.Array:
    return process.time_at_log_snr(2.0 * jnp.maximum(log_ratio, FARTHEST if ends_in_noise(process) else FINITE))


def _noisier(process: Process, log_ratio: jax.Array) -> jax.Array:
    if process.name != "edm":
        return process.time_at_log_snr(2.0 * log_ratio)
    low, high = (0.5 * process.log_snr(jnp.asarray(t, float)) for t in (0.0, 1.0))  # linear in t, on both sides
    return (log_ratio - low) / (high - low)


def _check(eta: float, s_noise: float) -> None:
    if not 0.0 <= eta <= 1.0 or s_noise < 0.0:
        raise ValueError(f"solver options: eta={eta} must lie between 0 and 1, s_noise={s_noise} be at least 0")

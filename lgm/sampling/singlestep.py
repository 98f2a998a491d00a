"""Solvers that remember nothing, or only one half of a pair of steps."""

import jax
import jax.numpy as jnp

from lgm.gaussian import Endpoints, Process
from lgm.sampling import steps
from lgm.sampling.steps import Denoise, Level, Solver, arrival, decay, level


def euler() -> Solver:
    """First order on d(x / a) / d(b / a) = eps, exact for a network that predicts straight lines.

    On a rectified flow this is x + (s - t) velocity; on DDPM it is DDIM with eta = 0 (2010.02502, eq. 12).
    """

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        x_hat, eps_hat = denoise(x, t)
        to = arrival(process, s)
        return to.a * x_hat + to.b * eps_hat, memory

    return Solver(step)


def ancestral(eta: float = 1.0) -> Solver:
    """A share eta of the posterior's noise is drawn anew (DDIM, 2010.02502, eq. 16): 0 is `euler`, 1 draws from
    q(x_s | x_t, x_hat), which is DDPM's ancestral step (2006.11239, eq. 7) and, on x / a, Euler ancestral's.

    Holds for any process: the posterior's deviation is b_s sqrt(1 - exp(-2 h)).
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"solver option eta={eta} must lie between 0 and 1")

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        x_hat, eps_hat = denoise(x, t)
        at, to = level(process, t), arrival(process, s)
        keep, drawn = steps.shares(eta, decay(at, to))
        return to.a * x_hat + to.b * (keep * eps_hat + drawn * steps.draw(key, x)), memory

    return Solver(step)


def ddim(eta: float = 0.0) -> Solver:
    """DDIM (Song et al. 2021, 2010.02502); deterministic at eta = 0."""
    return euler() if eta == 0.0 else ancestral(eta)


def ends_in_noise(process: Process) -> bool:
    """Whether x_1 holds no data at all, so that b / a is infinite there."""
    with jax.ensure_compile_time_eval():
        return bool(process.a(jnp.asarray(1.0, float)) < 1e-6)


def lowest_time(process: Process) -> float:
    """Of the last noise level above the data: a table's first entry, EDM's sigma_min, a thousandth of a flow."""
    return 0.0 if process.steps or process.name == "edm" else 1e-3


def ode(process: Process):
    """The probability-flow ODE as  d(x / scale) / du = slope:  scale and u of a Level, slope of Endpoints.

    Where a > 0, on x / a with u = b / a, as Karras et al. 2022 (2206.00364) write it: the slope is eps. A process that
    ends in pure noise is taken on x / (a + b) with u = b / (a + b), which is finite there and is a rectified flow's own
    t: the slope is eps - x.
    """
    straight = ends_in_noise(process)

    def scale(at: Level) -> jax.Array:
        return at.a + at.b if straight else at.a

    def place(at: Level) -> jax.Array:
        return at.b / scale(at)

    def slope(ends: Endpoints) -> jax.Array:
        return ends.eps - ends.x if straight else ends.eps

    return scale, place, slope


def heun() -> Solver:
    """Heun's second-order step (Karras et al. 2022, 2206.00364, algorithm 1); Euler's where s = 0, where eps is not
    defined. Two evaluations a step."""

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        scale, place, slope = ode(process)
        at, to = level(process, t), arrival(process, s)
        width = scale(to) * (place(to) - place(at))
        base = x * (scale(to) / scale(at))
        first = slope(denoise(x, t))
        euler_x = base + width * first
        refined = lambda: base + width * 0.5 * (first + slope(denoise(euler_x, s)))
        return jax.lax.cond(s > 0, refined, lambda: euler_x), memory

    return Solver(step)


def consistency() -> Solver:
    """Multistep consistency sampling (Song et al. 2023, 2303.01469, algorithm 1): to the data at once, then all noise
    anew to time s. For networks that map x_t to the end of its path; one step is their one-step sample."""

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        x_hat, _ = denoise(x, t)
        to = arrival(process, s)
        return to.a * x_hat + to.b * steps.draw(key, x), memory

    return Solver(step)


def lcm(timestep_scaling: float = 10.0) -> Solver:
    """`consistency` for latent consistency models (Luo et al. 2023, 2310.04378, eq. 9): the data are c_skip x_t +
    c_out x_hat, with c_skip = 1 / (4 u^2 + 1) and c_out = 2 u / sqrt(4 u^2 + 1) of u = `timestep_scaling` times the
    entry of the table that x_t is at."""
    if timestep_scaling <= 0.0:
        raise ValueError(f"solver option timestep_scaling={timestep_scaling} must be above 0")

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        u = 2.0 * timestep_scaling * (process.steps or 1000) * t
        skip, out = 1.0 / (jnp.square(u) + 1.0), u * jax.lax.rsqrt(jnp.square(u) + 1.0)
        to = arrival(process, s)
        return to.a * (skip * x + out * denoise(x, t)[0]) + to.b * steps.draw(key, x), memory

    return Solver(step)


def tcd(eta: float = 0.3) -> Solver:
    """Strategic stochastic sampling of trajectory consistency models (Zheng et al. 2024, 2402.19159, algorithm 4;
    gamma there): along the path to (1 - eta) s, a table's entry rounded down, then by fresh noise up to s."""
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"solver option eta={eta} must lie between 0 and 1")

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        below = (1.0 - eta) * s
        if process.steps:  # above 0, which would be the data
            below = jnp.maximum(jnp.floor(below * process.steps + 1e-4) / process.steps, jnp.minimum(s, 1e-7))
        x_hat, eps_hat = denoise(x, t)
        low, to = arrival(process, below), arrival(process, s)
        up = to.a / low.a
        fresh = jnp.sqrt(jnp.maximum(jnp.square(to.b) - jnp.square(up * low.b), 0.0))
        return up * (low.a * x_hat + low.b * eps_hat) + fresh * steps.draw(key, x), memory

    return Solver(step)


def dpmpp_2s(noise: bool = False, limits: tuple[tuple[float, int], ...] = (), of: int | None = None) -> Solver:
    """DPM-Solver++ 2S (Lu et al. 2022, 2211.01095, algorithm 1), or its SDE: steps go in pairs, the first one of first
    order, the second from the pair's beginning again with the slope that both outputs give. One evaluation a step; the
    last step, to the data, is of first order, as are those that begin at or below the time of one of `limits`, (time,
    order), whose order is 1. The SDE, as released, is of weak order 1: the noise of a pair's middle is
    not the first half of the pair's. The last steps of `of` more has the same pairs as the whole; what is left
    of a pair is of first order. `of` may be their number modulo 2."""

    def start(x, count=0):
        unpaired = 0 if of is None else (of - count) % 2
        return x.astype(float), jnp.zeros(x.shape, float), jnp.ones(()), jnp.full((), -unpaired, jnp.int32)

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        x_hat, _ = denoise(x, t)
        begin_x, begin_hat, begin_t, number = memory
        at, to, begin = level(process, t), arrival(process, s), level(process, begin_t)
        draw = steps.draw(key, x) if noise else 0.0
        whole = jnp.maximum(to.log_ratio - begin.log_ratio, 1e-6)
        ratio = jnp.maximum(at.log_ratio - begin.log_ratio, 1e-6) / whole
        mean = begin_hat + 0.5 / ratio * (x_hat - begin_hat)
        second = (number > 0) & (number % 2 == 1)
        pair = second & (to.b > 0) & (steps.limited(limits, t, 2) > 1)
        moved = jnp.where(pair, exponential(begin_x, mean, begin, to, draw), exponential(x, x_hat, at, to, draw))
        memory = jax.lax.cond(
            second,
            lambda: (begin_x, begin_hat, begin_t, number + 1),
            lambda: (x.astype(float), x_hat, jnp.asarray(t, float), number + 1),
        )
        return moved, memory

    return Solver(step, start, counts=of is not None)


def exponential(x: jax.Array, mean: jax.Array, at: Level, to: Level, draw: jax.Array | float) -> jax.Array:
    """The exact step of the ODE where the network's data are `mean` throughout, or of the SDE for noise `draw`."""
    shrink = decay(at, to)
    if isinstance(draw, float):
        return to.b / at.b * x + to.a * (1.0 - shrink) * mean
    gain = jnp.maximum(1.0 - jnp.square(shrink), 0.0)
    return to.b / at.b * shrink * x + to.a * gain * mean + to.b * jnp.sqrt(gain) * draw

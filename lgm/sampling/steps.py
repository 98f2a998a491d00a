"""What every solver is made of: its signature, the noise levels at the two ends of a step, and a short memory.

With lambda = log(a / b) and h = lambda_s - lambda_t, every formula is written with `decay` = exp(-h) taken from a and b
themselves, so that it holds where a = 0 (a rectified flow's start) and where b = 0 (the data).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lgm.gaussian import Endpoints, Process

Denoise = Callable[[jax.Array, jax.Array], Endpoints]  # (x_t, t []) -> (x_hat, eps_hat)
LIMIT = 30.0  # of |lambda|: stands for infinity, so that ratios of steps stay finite


ROUNDING = 1e-5  # by which a time may leave [0, 1], as in tables of angles and of sigmas made elsewhere


def check_times(times) -> float | None:
    """The first of a grid's times, None where they are not known yet. Raises ValueError unless they fall in [0, 1]."""
    try:
        grid = np.asarray(times, np.float32)
    except jax.errors.TracerArrayConversionError:
        return None
    low, high = -ROUNDING, 1.0 + ROUNDING
    if grid.ndim != 1 or len(grid) < 2 or not (np.diff(grid) <= 0).all() or not low <= grid[-1] <= grid[0] <= high:
        raise ValueError(f"times must be two or more that fall within [0, 1], not {np.array2string(grid, threshold=6)}")
    return float(grid[0])


class Solver(NamedTuple):
    """step(process, denoise, x, memory, t, s, key) -> (x at s, memory); `memory` is what start(x_T) gives at first.

    With `jumps` the network is told, after all else that it takes, where the step ends: predict(..., s_B). With
    `counts` start takes the number of steps, too (`begin`). With `variance` the network gives (prediction, v) side by
    side, [B, ..., 2 C], and the step sees `Spread` instead of Endpoints.
    """

    step: Callable
    start: Callable[..., Any] = lambda x: ()
    jumps: bool = False
    counts: bool = False
    variance: bool = False


class Spread(NamedTuple):
    """The data and the noise that a prediction implies, and v in about [-1, 1]: where between the logs of the
    posterior's variance and of beta that of the step lies (`losses.hybrid`)."""

    x: jax.Array
    eps: jax.Array
    v: jax.Array


def begin(method: Solver, x: jax.Array, steps: int) -> Any:
    """The memory with which so many steps from x begin."""
    return method.start(x, steps) if method.counts else method.start(x)


class Level(NamedTuple):
    """Signal a, noise b and lambda = log(a / b), kept within +-LIMIT, at one time."""

    a: jax.Array
    b: jax.Array
    log_ratio: jax.Array


def level(process: Process, t: jax.Array) -> Level:
    """The level at the time t that a step starts from."""
    return level_of(process.a(t), process.b(t))


def arrival(process: Process, s: jax.Array) -> Level:
    """The level at the time s that a step ends at: s = 0 is the data, a = 1 and b = 0, also for a table, whose
    first entry has some noise, and for EDM, whose t = 0 is sigma_min."""
    return level_of(jnp.where(s > 0, process.a(s), 1.0), jnp.where(s > 0, process.b(s), 0.0))


def level_of(a: jax.Array, b: jax.Array) -> Level:
    """The level of that signal and noise."""
    tiny = jnp.finfo(jnp.float32).tiny
    log_ratio = jnp.log(jnp.maximum(a, tiny)) - jnp.log(jnp.maximum(b, tiny))
    return Level(a, b, jnp.clip(log_ratio, -LIMIT, LIMIT))


def decay(at: Level, to: Level) -> jax.Array:
    """exp(lambda_t - lambda_s) = (b_s / a_s) / (b_t / a_t); 0 from pure noise and to pure data."""
    return to.b * at.a / (at.b * to.a)


def shares(eta: float, shrink: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(kept, drawn anew) of the noise at a step's end, kept^2 + drawn^2 = 1; drawn is eta times the posterior's.

    Each from `shrink` itself: as what the other leaves, a small share, as of a step from pure noise, would be lost.
    """
    square = jnp.square(shrink)
    return (jnp.sqrt(jnp.maximum(1.0 - eta**2 + eta**2 * square, 0.0)),
            jnp.minimum(eta * jnp.sqrt(jnp.maximum(1.0 - square, 0.0)), 1.0))


def limited(limits: tuple[tuple[float, int], ...], t: jax.Array, order: int) -> jax.Array | int:
    """The order of a multistep solver's step from t: the lowest of the `limits`, (time, order), not below t."""
    for when, most in limits:
        order = jnp.where(t <= when * (1.0 + 1e-6), jnp.minimum(order, most), order)
    return order


def draw(key: jax.Array, x: jax.Array) -> jax.Array:
    """N(0, I) like x [B, ...], from one key or from one an example [B], whose noise then is its own in any batch."""
    if key.ndim:
        return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], float))(key)
    return jax.random.normal(key, x.shape, float)


def another(key: jax.Array, number: int | jax.Array = 1) -> jax.Array:
    """A further key of that number, or keys [B], for one step."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, number) if key.ndim else jax.random.fold_in(key, number)


class History(NamedTuple):
    """The last K network outputs [K, B, ...], newest first, where they were taken [K], and how many there are."""

    values: jax.Array
    places: jax.Array
    count: jax.Array


def empty(x: jax.Array, length: int) -> History:
    """A history without entries; its places differ, so that no unused formula divides by 0."""
    places = -1e3 * jnp.arange(1.0, length + 1.0)
    return History(jnp.zeros((length, *x.shape), float), places, jnp.zeros((), jnp.int32))


def push(history: History, value: jax.Array, place: jax.Array) -> History:
    """The history with one newer entry, the oldest one dropped."""
    values = jnp.concatenate([value[None].astype(float), history.values[:-1]])
    places = jnp.concatenate([jnp.reshape(place, (1,)), history.places[:-1]])
    return History(values, places, jnp.minimum(history.count + 1, len(values)))


_GAUSS = np.polynomial.legendre.leggauss(12)
NODES, NODE_WEIGHTS = 0.5 + 0.5 * _GAUSS[0], 0.5 * _GAUSS[1]  # of [0, 1]


def polynomial_weights(places: jax.Array, active: jax.Array, kernel: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """[K] weights w with sum_i w_i f(places_i) = integral over [0, 1] of kernel(u) times the polynomial through the
    `active` of the K points; 0 for the others.

    By Gauss-Legendre: exact for kernel 1, to float32's rounding for exp(c u) with |c| < 10.
    """
    u = jnp.asarray(NODES, float)[:, None, None]
    others = active[None, :] & ~jnp.eye(len(places), dtype=bool)
    distance = jnp.where(others, places[:, None] - places[None, :], 1.0)
    basis = jnp.where(others, (u - places[None, :]) / distance, 1.0).prod(-1)
    weights = jnp.asarray(NODE_WEIGHTS, float) * kernel(u[:, 0, 0])
    return jnp.where(active, weights @ basis, 0.0)

"""UniPC: a multistep predictor, and a corrector that costs no evaluation (Zhao et al. 2023, 2302.04867).

On the data prediction, or with `noise` on that of noise, with B(h) = exp(h) - 1 ("bh2") or h ("bh1"). The linear
systems of the paper's eq. 5 ask that a polynomial's exponential integral be exact: they are solved here as the weights
of that integral (`steps.polynomial_weights`). Only where the paper puts 1/2 in place of the solution, at UniP-2 and
UniC-1, does B(h) matter.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lgm.gaussian import Process
from lgm.sampling import steps
from lgm.sampling.steps import Denoise, History, Level, Solver, arrival, decay, level


class _Before(NamedTuple):
    """The step that led here: where it began, at what time, and its order; 0 at the first step."""

    x: jax.Array
    t: jax.Array
    order: jax.Array


def unipc(order: int = 2, limits: tuple[tuple[float, int], ...] = (), variant: Literal["bh2", "bh1"] = "bh2",
          uncorrected: tuple[float, ...] = (), noise: bool = False) -> Solver:
    """UniPC-p for p = `order` of 1, 2 or 3: each output first corrects the step that led to it (UniC-p), then predicts
    the next (UniP-p). Of order p + 1 (theorem 3.1); the first steps, and the last, to the data, are of lower order.
    Steps that begin at or below the time of one of `limits`, (time, order), are of that order at most; those that begin
    at one of the times `uncorrected` are not corrected. With `noise`, whose integral has no end there, none may go to
    the data."""
    if order not in (1, 2, 3):
        raise ValueError(f"solver option order={order} must be 1, 2 or 3")
    if (variant, noise) not in VARIANTS:
        raise ValueError(f"solver option variant={variant!r} must be bh2 or bh1")
    gain, move = VARIANTS[variant, noise], _of_noise if noise else _of_data
    rate = 1.0 if noise else -1.0
    kept = np.asarray(uncorrected, np.float32)

    def start(x):
        return steps.empty(x, order), _Before(jnp.zeros(x.shape, float), jnp.ones(()), jnp.zeros((), jnp.int32))

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        history, before = memory
        ends = denoise(x, t)
        said = ends.eps if noise else ends.x
        at, to = level(process, t), arrival(process, s)
        corrected = _correct(history, said, before, level(process, before.t), at, gain, move, rate)
        x = jnp.where((before.order > 0) & ~jnp.isclose(before.t, kept, atol=1e-6).any(), corrected, x)
        history = steps.push(history, said, at.log_ratio)
        taken = jnp.where(to.b > 0, jnp.minimum(history.count, steps.limited(limits, t, order)), 1)
        x_s = move(x, said, _ahead(history, at, to, taken, gain, rate), at, to)
        return x_s, (history, _Before(x, jnp.asarray(t, float), taken))

    return Solver(step, start)


def _of_data(x, said, change, at: Level, to: Level) -> jax.Array:
    """x at the level `to` where the data are `said` all the way, and what `change` adds to their integral."""
    return to.b / at.b * x + to.a * ((1.0 - decay(at, to)) * said + change)


def _of_noise(x, said, change, at: Level, to: Level) -> jax.Array:
    """The same where it is the noise that is `said`."""
    return to.a / at.a * x - to.b * ((1.0 / decay(at, to) - 1.0) * said + change)


# what multiplies a half, by variant and whether of noise: B(h) exp(-h) of data, B(h) of noise
VARIANTS: dict[tuple[str, bool], Callable[[Level, Level], jax.Array]] = {
    ("bh2", False): lambda at, to: 1.0 - decay(at, to),
    ("bh2", True): lambda at, to: 1.0 / decay(at, to) - 1.0,
    ("bh1", False): lambda at, to: to.log_ratio - at.log_ratio,
    ("bh1", True): lambda at, to: to.log_ratio - at.log_ratio,
}


def _ahead(history: History, at: Level, to: Level, taken: jax.Array, gain, rate: float) -> jax.Array:
    """What UniP adds to the first-order step, from the outputs before the newest."""
    values, places, _ = history
    h = to.log_ratio - at.log_ratio
    if len(places) == 1:
        return jnp.zeros_like(values[0])
    half = 0.5 * gain(at, to) * (values[0] - values[1]) * (h / (places[0] - places[1]))
    exact = _integral(values, (places - at.log_ratio) / h, jnp.arange(len(places)) < taken, h, values[0], rate)
    return jnp.where(taken == 1, 0.0, jnp.where(taken == 2, half, exact))


def _correct(history: History, said: jax.Array, before: _Before, at: Level, to: Level, gain, move,
             rate: float) -> jax.Array:
    """The step that led from `before` to here, taken again now that the output at its end is known."""
    h = jnp.maximum(to.log_ratio - at.log_ratio, 1e-6)
    values = jnp.concatenate([said[None], history.values])
    places = jnp.concatenate([jnp.ones((1,)), (history.places - at.log_ratio) / h])
    newest = history.values[0]
    exact = _integral(values, places, jnp.arange(len(places)) <= before.order, h, newest, rate)
    change = jnp.where(before.order == 1, 0.5 * gain(at, to) * (said - newest), exact)
    return move(before.x, newest, change, at, to)


def _integral(values, places, active, h, base, rate: float):
    """Integral over the step of h exp(rate h (1 - u)) times the polynomial through the active values, less `base`."""
    weights = steps.polynomial_weights(places, active, lambda u: h * jnp.exp(rate * h * (1.0 - u)))
    return jnp.tensordot(weights, values - base, 1)

"""UniPC: a multistep predictor, and a corrector that costs no evaluation (Zhao et al. 2023, 2302.04867).

On the data prediction, with B(h) = exp(h) - 1 ("bh2"). The linear systems of the paper's eq. 5 ask that a polynomial's
exponential integral be exact: they are solved here as the weights of that integral (`steps.polynomial_weights`). Only
where the paper puts 1/2 in place of the solution, at UniP-2 and UniC-1, does B(h) matter.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lgm.process import Process
from lgm.sampling import steps
from lgm.sampling.steps import Denoise, History, Level, Solver, arrival, decay, level


class _Before(NamedTuple):
    """The step that led here: where it began, at what time, and its order; 0 at the first step."""

    x: jax.Array
    t: jax.Array
    order: jax.Array


def unipc(order: int = 2, limits: tuple[tuple[float, int], ...] = ()) -> Solver:
    """UniPC-p for p = `order` of 1, 2 or 3: each output first corrects the step that led to it (UniC-p), then predicts
    the next (UniP-p). Of order p + 1 (theorem 3.1); the first steps, and the last, to the data, are of lower order.
    Steps that begin at or below the time of one of `limits`, (time, order), are of that order at most."""
    if order not in (1, 2, 3):
        raise ValueError(f"solver option order={order} must be 1, 2 or 3")

    def start(x):
        return steps.empty(x, order), _Before(jnp.zeros(x.shape, float), jnp.ones(()), jnp.zeros((), jnp.int32))

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        history, before = memory
        x_hat, _ = denoise(x, t)
        at, to = level(process, t), arrival(process, s)
        x = jnp.where(before.order > 0, _correct(history, x_hat, before, level(process, before.t), at), x)
        history = steps.push(history, x_hat, at.log_ratio)
        taken = jnp.where(to.b > 0, jnp.minimum(history.count, steps.limited(limits, t, order)), 1)
        mean = (1.0 - decay(at, to)) * x_hat + _ahead(history, at, to, taken)
        return to.b / at.b * x + to.a * mean, (history, _Before(x, jnp.asarray(t, float), taken))

    return Solver(step, start)


def _ahead(history: History, at: Level, to: Level, taken: jax.Array) -> jax.Array:
    """What UniP adds to the first-order step, from the outputs before the newest."""
    values, places, _ = history
    h = to.log_ratio - at.log_ratio
    if len(places) == 1:
        return jnp.zeros_like(values[0])
    half = 0.5 * (1.0 - decay(at, to)) * (values[0] - values[1]) * (h / (places[0] - places[1]))
    exact = _integral(values, (places - at.log_ratio) / h, jnp.arange(len(places)) < taken, h, values[0])
    return jnp.where(taken == 1, 0.0, jnp.where(taken == 2, half, exact))


def _correct(history: History, x_hat: jax.Array, before: _Before, at: Level, to: Level) -> jax.Array:
    """The step that led from `before` to here, taken again now that the output at its end is known."""
    h = jnp.maximum(to.log_ratio - at.log_ratio, 1e-6)
    values = jnp.concatenate([x_hat[None], history.values])
    places = jnp.concatenate([jnp.ones((1,)), (history.places - at.log_ratio) / h])
    newest, gain = history.values[0], 1.0 - decay(at, to)
    exact = _integral(values, places, jnp.arange(len(places)) <= before.order, h, newest)
    change = jnp.where(before.order == 1, 0.5 * gain * (x_hat - newest), exact)
    return to.b / at.b * before.x + to.a * (gain * newest + change)


def _integral(values, places, active, h, base):
    """Integral over the step of h exp(-h (1 - u)) times the polynomial through the active values, less `base`."""
    weights = steps.polynomial_weights(places, active, lambda u: h * jnp.exp(-h * (1.0 - u)))
    return jnp.tensordot(weights, values - base, 1)

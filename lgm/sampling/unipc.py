"""UniPC: a multistep predictor, and a corrector that costs no evaluation (Zhao et al. 2023, 2302.04867).

On the data prediction, with B(h) = exp(h) - 1 ("bh2") or h ("bh1"). The linear systems of the paper's eq. 5 ask that a
polynomial's exponential integral be exact: they are solved here as the weights of that integral
(`steps.polynomial_weights`). Only where the paper puts 1/2 in place of the solution, at UniP-2 and UniC-1, does B(h)
matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lgm.process import Process
from lgm.sampling import steps
from lgm.sampling.steps import Denoise, History, Level, Solver, arrival, decay, level


class _Before(NamedTuple):
    """The step that led here: where it began, at what time, and its order; 0 at the first step."""

    x: jax.Array
    t: jax.Array
    order: jax.Array


def unipc(order: int = 2, limits: tuple[tuple[float, int], ...] = (), variant: Literal["bh2", "bh1"] = "bh2",
          uncorrected: tuple[float, ...] = ()) -> Solver:
    """UniPC-p for p = `order` of 1, 2 or 3: each output first corrects the step that led to it (UniC-p), then predicts
    the next (UniP-p). Of order p + 1 (theorem 3.1); the first steps, and the last, to the data, are of lower order.
    Steps that begin at or below the time of one of `limits`, (time, order), are of that order at most; those that begin
    at one of the times `uncorrected` are not corrected."""
    if order not in (1, 2, 3):
        raise ValueError(f"solver option order={order} must be 1, 2 or 3")
    if variant not in VARIANTS:
        raise ValueError(f"solver option variant={variant!r} must be {' or '.join(VARIANTS)}")
    gain = VARIANTS[variant]
    kept = np.asarray(uncorrected, np.float32)

    def start(x):
        return steps.empty(x, order), _Before(jnp.zeros(x.shape, float), jnp.ones(()), jnp.zeros((), jnp.int32))

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        history, before = memory
        x_hat, _ = denoise(x, t)
        at, to = level(process, t), arrival(process, s)
        corrected = _correct(history, x_hat, before, level(process, before.t), at, gain)
        x = jnp.where((before.order > 0) & ~jnp.isclose(before.t, kept, atol=1e-6).any(), corrected, x)
        history = steps.push(history, x_hat, at.log_ratio)
        taken = jnp.where(to.b > 0, jnp.minimum(history.count, steps.limited(limits, t, order)), 1)
        mean = (1.0 - decay(at, to)) * x_hat + _ahead(history, at, to, taken, gain)
        return to.b / at.b * x + to.a * mean, (history, _Before(x, jnp.asarray(t, float), taken))

    return Solver(step, start)


# B(h) exp(-h), what multiplies a half
VARIANTS: dict[str, Callable[[Level, Level], jax.Array]] = {
    "bh2": lambda at, to: 1.0 - decay(at, to),
    "bh1": lambda at, to: to.log_ratio - at.log_ratio,
}


def _ahead(history: History, at: Level, to: Level, taken: jax.Array, gain) -> jax.Array:
    """What UniP adds to the first-order step, from the outputs before the newest."""
    values, places, _ = history
    h = to.log_ratio - at.log_ratio
    if len(places) == 1:
        return jnp.zeros_like(values[0])
    half = 0.5 * gain(at, to) * (values[0] - values[1]) * (h / (places[0] - places[1]))
    exact = _integral(values, (places - at.log_ratio) / h, jnp.arange(len(places)) < taken, h, values[0])
    return jnp.where(taken == 1, 0.0, jnp.where(taken == 2, half, exact))


def _correct(history: History, x_hat: jax.Array, before: _Before, at: Level, to: Level, gain) -> jax.Array:
    """The step that led from `before` to here, taken again now that the output at its end is known."""
    h = jnp.maximum(to.log_ratio - at.log_ratio, 1e-6)
    values = jnp.concatenate([x_hat[None], history.values])
    places = jnp.concatenate([jnp.ones((1,)), (history.places - at.log_ratio) / h])
    newest = history.values[0]
    exact = _integral(values, places, jnp.arange(len(places)) <= before.order, h, newest)
    change = jnp.where(before.order == 1, 0.5 * gain(at, to) * (x_hat - newest), exact)
    return to.b / at.b * before.x + to.a * ((1.0 - decay(at, to)) * newest + change)


def _integral(values, places, active, h, base):
    """Integral over the step of h exp(-h (1 - u)) times the polynomial through the active values, less `base`."""
    weights = steps.polynomial_weights(places, active, lambda u: h * jnp.exp(-h * (1.0 - u)))
    return jnp.tensordot(weights, values - base, 1)

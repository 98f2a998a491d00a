"""Solvers that remember earlier outputs of the network: one evaluation a step.

In lambda = log(a / b), with x_hat the network's data, the exact step is
x_s = (b_s / b_t) x_t + a_s * integral of exp(lambda - lambda_s) x_hat(lambda) from lambda_t to lambda_s (2211.01095,
eq. 8); what differs is how x_hat is continued. In the ODE's own coordinate the slope's polynomial is integrated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lgm.process import Process
from lgm.sampling import steps
from lgm.sampling.singlestep import ode
from lgm.sampling.steps import Denoise, Solver, decay, level


def dpmpp(order: int = 2, noise: bool = False, curvature: float = 1.0) -> Solver:
    """DPM-Solver++ multistep of order 1, 2 or 3 (Lu et al. 2022, 2211.01095, algorithm 2), or its SDE (appendix C).

    The first steps are of lower order, and so is the last, which ends where lambda is infinite. `curvature` scales the
    quadratic term of order 3: 1 integrates the polynomial exactly and is of third order; the released DPM-Solver code,
    and diffusers after it, have 1/2, which leaves an error of second order.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"solver option order={order} must be 1, 2 or 3")

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        x_hat, _ = denoise(x, t)
        at, to = level(process, t), level(process, s)
        memory = steps.push(memory, x_hat, at.log_ratio)
        shrink, h = decay(at, to), to.log_ratio - at.log_ratio
        # the SDE's exponent is twice the ODE's, as if the network's data were approached twice as fast
        gain, width = (1.0 - jnp.square(shrink), 2.0 * h) if noise else (1.0 - shrink, h)
        mean = gain * x_hat + _continuation(memory, h, gain, width, order, curvature, to.b > 0)
        x = to.b / at.b * (shrink if noise else 1.0) * x + to.a * mean
        if noise:
            x += to.b * jnp.sqrt(jnp.maximum(gain, 0.0)) * jax.random.normal(key, x.shape, jnp.float32)
        return x, memory

    return Solver(step, lambda x: steps.empty(x, order))


def _continuation(memory, h, gain, width, order: int, curvature: float, inside):
    """What the slope, and at order 3 the curvature, of x_hat in lambda add to gain * x_hat."""
    if order == 1:
        return 0.0
    values, places, count = memory
    slope = (values[0] - values[1]) * (h / (places[0] - places[1]))
    second = 0.5 * gain * slope
    second = jnp.where((count >= 2) & inside, second, 0.0)
    if order == 2:
        return second
    r0, r1 = (places[0] - places[1]) / h, (places[1] - places[2]) / h
    bend = slope - (values[1] - values[2]) / r1
    # integrals of exp(-width (1 - u)) width u^k over [0, 1], k = 1 and 2
    linear = 1.0 - gain / width
    quadratic = 1.0 - 2.0 * linear / width
    third = linear * (slope + r0 / (r0 + r1) * bend) + curvature * quadratic * bend / (r0 + r1)
    return jnp.where((count >= 3) & inside, third, second)


def unipc() -> Solver:
    """UniPC of order 2 with B(h) = exp(h) - 1 on the data prediction (Zhao et al. 2023, 2302.04867, "bh2").

    Each output first corrects the step that led to it (UniC), then predicts the next (UniP): no evaluation is spent on
    the correction. The last step, to the data, is of first order.
    """

    def start(x):
        before = (jnp.zeros(x.shape, jnp.float32), jnp.ones(()), jnp.zeros((), jnp.int32))
        return steps.empty(x, 2), before

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        history, (before_x, before_t, before_order) = memory
        x_hat, _ = denoise(x, t)
        at, to, before = level(process, t), level(process, s), level(process, before_t)
        corrected = _corrected(history, x_hat, before_x, before, at, before_order)
        x = jnp.where(before_order > 0, corrected, x)
        history = steps.push(history, x_hat, at.log_ratio)
        shrink, h = decay(at, to), to.log_ratio - at.log_ratio
        order = jnp.where(to.b > 0, history.count, 1)
        mean = (1.0 - shrink) * (x_hat + _half_slope(history, h, order))
        return to.b / at.b * x + to.a * mean, (history, (x, jnp.asarray(t, jnp.float32), order))

    return Solver(step, start)


def _half_slope(history, h, order):
    values, places, _ = history
    return jnp.where(order > 1, 0.5 * (values[0] - values[1]) * (h / (places[0] - places[1])), 0.0)


def _corrected(history, x_hat, x, at, to, order):
    """The step that led from `x` to here, taken again now that the output at its end is known."""
    values, places, _ = history
    shrink, h = decay(at, to), jnp.maximum(to.log_ratio - at.log_ratio, 1e-6)
    gain = -jnp.expm1(-h)
    first = 1.0 / gain - 1.0 / h  # 1 / B(h) times the integral of exp(-h (1 - u)) h u, then that of its square
    second = 1.0 / gain - 2.0 * first / h
    ratio = (places[1] - places[0]) / h  # below 0: where the older output lies
    old_share = (first - second) / (1.0 - ratio)
    two = old_share * (values[1] - values[0]) / ratio + (first - old_share) * (x_hat - values[0])
    change = jnp.where(order > 1, two, 0.5 * (x_hat - values[0]))
    return to.b / at.b * x + to.a * (1.0 - shrink) * (values[0] + change)


def adams_bashforth(order: int = 4) -> Solver:
    """Adams-Bashforth of order 1 to 4 with any step sizes, on the ODE's own coordinate (see `singlestep.ode`): LMS of
    k-diffusion where that is sigma; velocity in t on a rectified flow."""
    if order not in (1, 2, 3, 4):
        raise ValueError(f"solver option order={order} must be 1, 2, 3 or 4")
    nodes, weights = np.polynomial.legendre.leggauss(2)  # exact for the cubic polynomials there are
    nodes, weights = 0.5 + 0.5 * nodes, 0.5 * weights

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        scale, place, slope = ode(process)
        memory = steps.push(memory, slope(denoise(x, t)), place(t))
        values, places, count = memory
        width = place(s) - place(t)
        change = jnp.zeros_like(values[0])
        for i in range(order):
            share = 0.0
            for node, weight in zip(nodes, weights, strict=True):
                u, basis = place(t) + node * width, 1.0
                for j in range(order):
                    if j != i:
                        basis *= jnp.where(j < count, (u - places[j]) / (places[i] - places[j]), 1.0)
                share += weight * basis
            change += jnp.where(i < count, share, 0.0) * values[i]
        return scale(s) * (x / scale(t) + width * change), memory

    return Solver(step, lambda x: steps.empty(x, order))


PLMS = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24


def plms() -> Solver:
    """Pseudo linear multistep (Liu et al. 2022, 2202.09778): Adams-Bashforth's coefficients of equal steps on eps, then
    DDIM's step. The first step is an improved Euler step, of two evaluations."""

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        at, to = level(process, t), level(process, s)
        x_hat, eps_hat = denoise(x, t)
        memory = steps.push(memory, eps_hat, t)
        # where a = 0, eps says nothing of the data: the prediction's own are taken
        data = lambda eps: jnp.where(at.a > 0, (x - at.b * eps) / jnp.where(at.a > 0, at.a, 1.0), x_hat)
        move = lambda eps: to.a * data(eps) + to.b * eps
        improved = lambda: 0.5 * (eps_hat + denoise(move(eps_hat), s).eps)
        row = jnp.asarray(PLMS, jnp.float32)[memory.count - 1]
        combined = lambda: jnp.tensordot(row, memory.values, 1)
        return move(jax.lax.cond((memory.count == 1) & (to.b > 0), improved, combined)), memory

    return Solver(step, lambda x: steps.empty(x, 4))

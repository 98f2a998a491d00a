"""Solvers that remember earlier outputs of the network: one evaluation a step.

In lambda = log(a / b), with x_hat the network's data, the exact step is
x_s = (b_s / b_t) x_t + a_s * integral of exp(lambda - lambda_s) x_hat(lambda) from lambda_t to lambda_s (2211.01095,
eq. 8); what differs is how x_hat is continued. In the ODE's own coordinate the slope's polynomial is integrated.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lgm.gaussian import Process
from lgm.sampling import steps
from lgm.sampling.singlestep import ode
from lgm.sampling.steps import Denoise, Solver, arrival, decay, level


def dpmpp(order: int = 2, eta: float = 0.0, s_noise: float = 1.0, curvature: float = 1.0, exact: bool = False,
          limits: tuple[tuple[float, int], ...] = ()) -> Solver:
    """DPM-Solver++ multistep of order 1, 2 or 3 (Lu et al. 2022, 2211.01095, algorithm 2), or, with eta = 1, its SDE
    (appendix C); k-diffusion's eta lies between and beyond, its s_noise multiplies what is drawn.

    The first steps are of lower order, and so is the last, which ends where lambda is infinite. `curvature` scales the
    quadratic term of order 3: 1 integrates the polynomial exactly and is of third order; the released DPM-Solver code,
    and diffusers after it, have 1/2, which leaves an error of second order. Order 2 takes the slope's integral as 1/2
    of the step, or as it is with `exact` (diffusers' solver_type "heun"). Steps that begin at or below the time of one
    of `limits`, (time, order), are of that order at most.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"solver option order={order} must be 1, 2 or 3")
    if eta < 0.0 or s_noise < 0.0:
        raise ValueError(f"solver options eta={eta} and s_noise={s_noise} must be at least 0")

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        x_hat, _ = denoise(x, t)
        at, to = level(process, t), arrival(process, s)
        memory = steps.push(memory, x_hat, at.log_ratio)
        shrink, h = decay(at, to), to.log_ratio - at.log_ratio
        # the SDE's exponent is 1 + eta times the ODE's, as if the network's data were approached so much faster
        slowed = shrink**eta if eta else 1.0
        gain, width = 1.0 - shrink * slowed, (1.0 + eta) * h
        most = jnp.where(to.b > 0, steps.limited(limits, t, order), 1)
        mean = gain * x_hat + _continuation(memory, h, gain, width, order, curvature, exact, most)
        x = to.b / at.b * slowed * x + to.a * mean
        if eta:
            x += to.b * s_noise * jnp.sqrt(jnp.maximum(1.0 - jnp.square(slowed), 0.0)) * steps.draw(key, x)
        return x, memory

    return Solver(step, lambda x: steps.empty(x, order))


def _continuation(memory, h, gain, width, order: int, curvature: float, exact: bool, most):
    """What the slope, and at order 3 the curvature, of x_hat in lambda add to gain * x_hat, up to the order `most`."""
    if order == 1:
        return 0.0
    values, places, count = memory
    slope = (values[0] - values[1]) * (h / (places[0] - places[1]))
    # integrals of exp(-width (1 - u)) width u^k over [0, 1], k = 1 and 2
    linear = 1.0 - gain / width
    second = (linear if exact else 0.5 * gain) * slope
    second = jnp.where((count >= 2) & (most >= 2), second, 0.0)
    if order == 2:
        return second
    r0, r1 = (places[0] - places[1]) / h, (places[1] - places[2]) / h
    bend = slope - (values[1] - values[2]) / r1
    quadratic = 1.0 - 2.0 * linear / width
    third = linear * (slope + r0 / (r0 + r1) * bend) + curvature * quadratic * bend / (r0 + r1)
    return jnp.where((count >= 3) & (most >= 3), third, second)


def adams_bashforth(order: int = 4) -> Solver:
    """Adams-Bashforth of order 1 to 4 with any step sizes, on the ODE's own coordinate (see `singlestep.ode`): LMS of
    k-diffusion where that is sigma; velocity in t on a rectified flow."""
    if order not in (1, 2, 3, 4):
        raise ValueError(f"solver option order={order} must be 1, 2, 3 or 4")

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        scale, place, slope = ode(process)
        at, to = level(process, t), arrival(process, s)
        memory = steps.push(memory, slope(denoise(x, t)), place(at))
        width = place(to) - place(at)
        places = (memory.places - place(at)) / width
        weights = steps.polynomial_weights(places, jnp.arange(order) < memory.count, jnp.ones_like)
        return scale(to) * (x / scale(at) + width * jnp.tensordot(weights, memory.values, 1)), memory

    return Solver(step, lambda x: steps.empty(x, order))


def deis(order: int = 3, limits: tuple[tuple[float, int], ...] = ()) -> Solver:
    """DEIS of order 1, 2 or 3 with polynomials in log(b / a) (Zhang & Chen 2023, 2204.13902, tAB-DEIS): x / a moves by
    the integral of eps over b / a, eps being continued through its last values. The first steps are of lower order, and
    so is one to the data; steps that begin at or below the time of one of `limits`, (time, order), of that at most."""
    if order not in (1, 2, 3):
        raise ValueError(f"solver option order={order} must be 1, 2 or 3")

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        at, to = level(process, t), arrival(process, s)
        x_hat, eps_hat = denoise(x, t)
        memory = steps.push(memory, eps_hat, at.log_ratio)
        h = to.log_ratio - at.log_ratio
        most = jnp.where(to.b > 0, jnp.minimum(memory.count, steps.limited(limits, t, order)), 1)
        places = (memory.places - at.log_ratio) / jnp.maximum(h, 1e-6)  # the last step may be of no width
        weights = steps.polynomial_weights(places, jnp.arange(order) < most, lambda u: h * jnp.exp(-h * u))
        change = to.a * at.b / jnp.maximum(at.a, 1e-6) * jnp.tensordot(weights, memory.values - eps_hat, 1)
        return to.a * x_hat + to.b * eps_hat - jnp.where(most > 1, change, 0.0), memory

    return Solver(step, lambda x: steps.empty(x, order))


PLMS = np.array([[24, 0, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]) / 24


def plms(velocity: bool = False, entries: int | None = None) -> Solver:
    """Pseudo linear multistep (Liu et al. 2022, 2202.09778): Adams-Bashforth's coefficients of equal steps on eps, then
    DDIM's step. The first step is an improved Euler step, of two evaluations.

    With `velocity` it is v = a eps - b x that is combined, as diffusers does for networks that predict v. With
    `entries`, a table's number of them, the first three steps are Runge-Kutta's of order 4 (there: F-PNDM, algorithm
    2), of four evaluations each: those halfway are at a whole entry.
    """

    def step(process: Process, denoise: Denoise, x, memory, t, s, key):
        at, to = level(process, t), arrival(process, s)
        said = lambda ends, at: at.a * ends.eps - at.b * ends.x if velocity else ends.eps
        here = denoise(x, t)
        value = said(here, at)
        memory = steps.push(memory, value, t)

        def move(value, to=to):
            if velocity:
                data, eps = at.a * x - at.b * value, at.b * x + at.a * value
            else:  # where a = 0, eps says nothing of the data: the prediction's own are taken
                eps = value
                data = jnp.where(at.a > 0, (x - at.b * eps) / jnp.where(at.a > 0, at.a, 1.0), here.x)
            return to.a * data + to.b * eps

        def improved():
            return 0.5 * (value + said(denoise(move(value), s), level(process, s)))

        def runge_kutta():
            # half of an odd step is one entry less from either end, as diffusers counts it
            half = jnp.floor(0.5 * (t - s) * entries + 1e-3) / entries
            low = level(process, s + half)
            second = said(denoise(move(value, level(process, t - half)), s + half), low)
            third = said(denoise(move(second, low), s + half), low)
            last = said(denoise(move(third), s), to)
            return (value + 2.0 * second + 2.0 * third + last) / 6.0

        row = jnp.asarray(PLMS, float)[memory.count - 1]
        combined = lambda: jnp.tensordot(row, memory.values, 1)
        first, begins = (improved, memory.count == 1) if entries is None else (runge_kutta, memory.count < 4)
        return move(jax.lax.cond(begins & (to.b > 0), first, combined)), memory

    return Solver(step, lambda x: steps.empty(x, 4))

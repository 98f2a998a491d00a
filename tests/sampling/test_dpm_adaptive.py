"""`dpm_adaptive` against DPM-Solver's formulas (2206.00927, appendix C) and the published control of their steps,
written out in float64 for one scalar field; and against an exact solution.

Tolerance: 1e-6, to which the time of a noise level within a step is found, over some forty steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm import gaussian, sampling

EDM, FLOW, TABLE = gaussian.edm(), gaussian.rectified_flow(), gaussian.ddpm()
SHAPE = (2, 3)
FIRST, LAST = -np.log(80.0), -np.log(0.002)


def data(numbers, x, sigma):
    return numbers.tanh(x / (1.0 + sigma)) + 0.3 * numbers.cos(sigma / (1.0 + sigma) + 0.2 * x / (1.0 + sigma))


def noise(number):
    key = jax.random.fold_in(jax.random.key(0), 0)
    return np.asarray(jax.random.normal(jax.random.fold_in(key, number), SHAPE, float))


def theirs(x, order=3, rtol=0.05, atol=0.0078, h_init=0.05, pcoeff=0.0, icoeff=1.0, dcoeff=0.0, accept_safety=0.81,
           eta=0.0, s_noise=1.0):  # fmt: skip
    """(x at sigma 0.002, evaluations, rejected steps); t is -log sigma."""
    evaluations = rejected = attempts = 0
    sigma = lambda t: np.exp(-t)

    def eps(x, t):
        nonlocal evaluations
        evaluations += 1
        return (x - data(np, x, sigma(t))) / sigma(t)

    def one(x, t, to, e):
        return x - sigma(to) * np.expm1(to - t) * e

    def two(x, t, to, e, r=0.5):
        h = to - t
        inner = eps(x - sigma(t + r * h) * np.expm1(r * h) * e, t + r * h)
        return x - sigma(to) * np.expm1(h) * e - sigma(to) / (2 * r) * np.expm1(h) * (inner - e)

    def three(x, t, to, e):
        h, r1, r2 = to - t, 1 / 3, 2 / 3
        e1 = eps(x - sigma(t + r1 * h) * np.expm1(r1 * h) * e, t + r1 * h)
        u2 = x - sigma(t + r2 * h) * np.expm1(r2 * h) * e
        u2 = u2 - sigma(t + r2 * h) * (r2 / r1) * (np.expm1(r2 * h) / (r2 * h) - 1) * (e1 - e)
        e2 = eps(u2, t + r2 * h)
        return x - sigma(to) * np.expm1(h) * e - sigma(to) / r2 * (np.expm1(h) / h - 1) * (e2 - e)

    s, before, h, errors = FIRST, x, h_init, []
    power = 1.5 if eta else order
    powers = (pcoeff + icoeff + dcoeff) / power, -(pcoeff + 2 * dcoeff) / power, dcoeff / power
    while s < LAST - 1e-5:
        to = down = min(LAST, s + h)
        if eta:
            up = min(sigma(to), eta * np.sqrt(sigma(to) ** 2 * (sigma(s) ** 2 - sigma(to) ** 2) / sigma(s) ** 2))
            down = min(LAST, -np.log(np.sqrt(sigma(to) ** 2 - up**2)))
        fresh = np.sqrt(max(sigma(to) ** 2 - sigma(down) ** 2, 0.0))
        e = eps(x, s)
        low, high = (one(x, s, down, e), two(x, s, down, e)) if order == 2 else (
            two(x, s, down, e, 1 / 3), three(x, s, down, e))  # fmt: skip
        evaluations -= order == 3  # its first inner evaluation is the other's
        delta = np.maximum(atol, rtol * np.maximum(np.abs(low), np.abs(before)))
        inverse = 1 / (np.linalg.norm((low - high) / delta) / np.sqrt(x.size) + 1e-8)
        errors = [inverse, *errors[1:]] if errors else [inverse] * 3
        factor = 1 + np.arctan(errors[0] ** powers[0] * errors[1] ** powers[1] * errors[2] ** powers[2] - 1)
        if factor >= accept_safety:
            errors[2], errors[1] = errors[1], errors[0]
            before, x, s = low, high + fresh * s_noise * noise(attempts), to
        else:
            rejected += 1
        h, attempts = h * factor, attempts + 1
    return x, evaluations, rejected


CASES = [{}, dict(order=2), dict(rtol=0.01, atol=1e-3), dict(pcoeff=0.3, icoeff=0.6, dcoeff=0.1, h_init=2.0),
         dict(eta=0.7, s_noise=1.05, rtol=0.2)]  # fmt: skip


@pytest.mark.parametrize("options", CASES, ids=str)
def test_every_step_is_kept_or_made_anew_as_published(options):
    predict = lambda x, t_B: data(jnp, x, jnp.exp(np.log(0.002) + (np.log(80.0) - np.log(0.002)) * t_B[:, None]))
    with jax.enable_x64(True):
        x = 80.0 * np.random.default_rng(0).normal(size=SHAPE)
        made = sampling.sample(sampling.solver("dpm_adaptive", **options), EDM, "x", predict, x, [1.0, 1e-13])
        expected, evaluations, rejected = theirs(x, **options)
        np.testing.assert_allclose(made, expected, atol=1e-6)
    assert evaluations > 20
    if "h_init" in options:
        assert rejected  # so that steps made anew are among what is compared


@pytest.mark.slow
@pytest.mark.parametrize("process", [EDM, FLOW, TABLE], ids=lambda p: p.name)
def test_normal_data_are_reached_from_any_process(process):
    """The exact path of N(m, s^2) data: z = (x_t - a m) / sqrt(a^2 s^2 + b^2) stays.

    Each place has a spread of its own: of one alone the difference between the orders, which judges a step, has a width
    where it is zero, and a step that happens to be as wide is kept however far it is off.
    """
    mean, std = 0.5, np.float32([0.2, 0.35, 0.6])

    def predict(x, t_B):
        a, b = (gaussian.wide(c(t_B), x) for c in (process.a, process.b))
        return mean + a * std**2 / (jnp.square(a * std) + jnp.square(b)) * (x - a * mean)

    z = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    t = 999 / 1000 if process is TABLE else 1.0
    a, b = float(process.a(jnp.float32(t))), float(process.b(jnp.float32(t)))
    x_T = a * mean + np.sqrt((a * std) ** 2 + b**2) * z
    method = sampling.solver("dpm_adaptive", rtol=1e-3, atol=1e-3)
    # the last level's noise, 0.002 to 0.03, is taken for none: that much of 0.2 to 0.6 is missing
    made = sampling.sample(method, process, "x", predict, x_T, [t, 0.0])
    np.testing.assert_allclose(made, mean + std * z, atol=0.03)
    halves = sampling.sample(method, process, "x", predict, x_T, [t, 0.5, 0.0])
    np.testing.assert_allclose(halves, made, atol=0.01)


def test_a_way_that_is_not_made_is_not_taken_for_one():
    made = sampling.sample(sampling.solver("dpm_adaptive", most=3), EDM, "x", lambda x, t: 0.5 * x, jnp.ones(SHAPE),
                           [1.0, 0.0])  # fmt: skip
    assert np.isnan(made).all()
    with pytest.raises(ValueError, match="solver option order=4 must be 2 or 3"):
        sampling.solver("dpm_adaptive", order=4)
    with pytest.raises(ValueError, match="rtol=0.0, atol=0.0078 and h_init=0.05 must be above 0"):
        sampling.solver("dpm_adaptive", rtol=0.0)

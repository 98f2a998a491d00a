"""The weak order of every stochastic solver, and the mean and variance it reaches, without a draw of noise.

With a denoiser that is affine in x a solver's sample is affine in x_T and in each step's noise. So its mean is the
sample of a run without noise, and its variance is the sum of the squared responses to x_T and to the noise of each
step: a batch in which example n is given one unit of the noise of step n, and nothing else.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm import process as gaussian
from lgm import sampling
from lgm.sampling import steps

MEAN, STD = 0.7, np.array([0.3, 0.6, 1.1], np.float32)  # of three elements, so that no change of sign hides an error
PROCESSES = {
    "ddpm": gaussian.ddpm(),
    "zero terminal": gaussian.ddpm(zero_terminal_snr=True),
    "vp": gaussian.continuous_vp(),
    "edm": gaussian.edm(),
    "trigonometric": gaussian.trigonometric(),
    "flow": gaussian.rectified_flow(),
}
# solver -> the weak order of the paper's theorem
STOCHASTIC = {
    "ddpm": 1, "euler_ancestral": 1, "ddim": 1, "dpmpp_sde": 1, "dpmpp_2m_sde": 2, "dpmpp_3m_sde": 2,
    "dpmpp_2s_sde": 1,  # as released: the middle of a pair has noise of its own, not the first half of the pair's
}  # fmt: skip
OPTIONS = {"ddim": {"eta": 0.5}, "euler_ancestral": {"eta": 0.7}}


def exact(process):
    """E[x | x_t] of N(MEAN, STD^2) data, as a network that predicts x."""

    def predict(x_t, t_B):
        a, b = process.a(t_B)[:, None], process.b(t_B)[:, None]
        return MEAN + a * STD**2 / (a**2 * STD**2 + b**2) * (x_t - a * MEAN)

    return predict


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(method, process, carry, t, s, noise):
    """A step whose draw is `noise`."""
    drawn, steps.draw = steps.draw, lambda key, x: noise  # while this function is traced
    try:
        denoise = lambda x, t: gaussian.endpoints(process, "x", exact(process)(x, jnp.full(len(x), t)), x,
                                                  jnp.full(len(x), t))  # fmt: skip
        return method.step(process, denoise, *carry, t, s, jax.random.key(0))
    finally:
        steps.draw = drawn


def moments(name, process, times, start_mean, start_std):
    """(mean, deviation) [3] of the sample from N(start_mean, start_std^2) at times[0], exactly."""
    method, count = sampling.solver(name, **OPTIONS.get(name, {})), len(times) - 1
    # examples: the mean, the response to x_T, the response to the noise of every step
    x = jnp.full((count + 2, 3), start_mean, jnp.float32).at[1].add(start_std)
    carry = (x, method.start(x))
    for n, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        noise = jnp.zeros_like(x).at[n + 2].set(1.0)
        carry = _step(method, process, carry, jnp.float32(t), jnp.float32(s), noise)
    got = np.asarray(carry[0], np.float64)
    return got[0], np.sqrt(np.sum(np.square(got[1:] - got[0]), 0))


def marginal(process, t):
    a, b = float(process.a(jnp.float32(t))), float(process.b(jnp.float32(t)))
    return a * MEAN, np.hypot(a * STD, b)


SPAN = {"flow": (0.9, 0.2), "vp": (0.7, 0.15), "edm": (0.75, 0.5)}


@pytest.mark.parametrize("process_name", SPAN)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_weak_error_falls_with_the_order_of_the_solver(name, process_name):
    process, (t, s) = PROCESSES[process_name], SPAN[process_name]
    counts, errors = (16, 64), []
    for count in counts:
        times = t + (s - t) * np.linspace(0.0, 1.0, count + 1) ** 1.5
        mean, deviation = moments(name, process, times, *marginal(process, t))
        right = marginal(process, s)
        errors.append(max((abs(mean - right[0]) / right[1]).max(), (abs(deviation - right[1]) / right[1]).max()))
    measured = np.log2(errors[0] / errors[1]) / np.log2(counts[1] / counts[0])
    # from above: terms of third order in the data lower the error of a smooth problem
    assert STOCHASTIC[name] - 0.45 < measured < STOCHASTIC[name] + 1.3, (measured, errors)


@pytest.mark.parametrize("process_name", PROCESSES)
@pytest.mark.parametrize("name", ["euler", "ddpm", "dpmpp_2m_sde"])
def test_the_ode_and_the_sde_of_every_process_reach_the_datas_mean_and_variance(name, process_name):
    process = PROCESSES[process_name]
    times = sampling.times(process, 150, "even" if process.steps is None else "trailing")
    mean, deviation = moments(name, process, times, *marginal(process, times[0]))
    # what 150 even steps leave of the bias, most for the smallest deviation: 8% at first order, 3% at second
    allowed = 0.03 if STOCHASTIC.get(name) == 2 else 0.1
    assert (abs(mean - MEAN) < 1e-3 * STD).all(), mean  # where x_t is a MEAN the denoiser is constant: no bias at all
    assert (abs(deviation / STD - 1) < allowed).all(), deviation

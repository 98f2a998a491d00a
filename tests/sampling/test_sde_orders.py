"""The weak order of every stochastic solver, and the mean and covariance that every solver reaches on every process,
in float64 and without a draw of noise.

With a denoiser that is affine in x a solver's sample is affine in x_T and in each step's noise. So its mean is the
sample of a run without noise, and its covariance the sum of the outer products of the responses to each element of x_T
and of the noise of every step: a batch in which each example is given one unit of one of them, and nothing else.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm import gaussian, sampling
from lgm.sampling import steps

PROCESSES = {
    "ddpm": gaussian.ddpm(),
    "linear": gaussian.ddpm("linear", 1e-4, 0.02),
    "cosine": gaussian.ddpm("squared_cosine"),
    "zero terminal": gaussian.ddpm(zero_terminal_snr=True),
    "vp": gaussian.continuous_vp(),
    "edm": gaussian.edm(),
    "trigonometric": gaussian.trigonometric(),
    "flow": gaussian.rectified_flow(),
    "shifted flow": gaussian.rectified_flow(3.0),
}
# solver -> the weak order of the paper's theorem, and of one without noise its order
ORDER = {
    "ddpm": 1, "euler_ancestral": 1, "ddim": 1, "dpm_2_ancestral": 2, "dpmpp_2s_ancestral": 2, "dpmpp_2m_sde": 2,
    "dpmpp_3m_sde": 2,
    "dpmpp_2s_sde": 1,  # as released: the middle of a pair has noise of its own, not the first half of the pair's
    "euler": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 3,
}  # fmt: skip
OPTIONS = {"ddim": {"eta": 0.5}, "euler_ancestral": {"eta": 0.7}}
MEAN = np.array([0.7, -0.3, 0.2])
ANGLE = np.array([[0.6, -0.8, 0.0], [0.64, 0.48, -0.6], [0.48, 0.36, 0.8]])  # a rotation: no axis is an eigenvector
VARIANCES = np.square([0.3, 0.6, 1.1])
COVARIANCE = ANGLE @ np.diag(VARIANCES) @ ANGLE.T


def denoiser(process):
    """(x_t, t) -> E[x | x_t] and the noise that goes with it, of N(MEAN, COVARIANCE) data."""

    def denoise(x, t):
        a, b = process.a(t), process.b(t)
        gain = a * VARIANCES / (a**2 * VARIANCES + b**2)
        x_hat = MEAN + (x - a * MEAN) @ (ANGLE * gain) @ ANGLE.T
        return gaussian.Endpoints(x_hat, (x - a * x_hat) / b)

    return denoise


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(method, process, x, times, count):
    """The samples after `count` steps; example 4 + 3 n + j is given one unit of element j of the noise of step n."""

    def body(n, carry):
        noise = jnp.zeros_like(x).at[4 + 3 * n + jnp.arange(3), jnp.arange(3)].set(1.0)
        drawn, steps.draw = steps.draw, lambda key, x: noise  # while this function is traced
        try:
            return method.step(process, denoiser(process), *carry, times[n], times[n + 1], jax.random.key(0))
        finally:
            steps.draw = drawn

    return jax.lax.fori_loop(0, count, body, (x, method.start(x)))[0]


def moments(name, process, times, start_mean, start_covariance, most):
    """(mean [3], covariance [3, 3]) of the sample from N(start_mean, start_covariance) at times[0], exactly. One
    program serves all numbers of steps up to `most`."""
    x = np.tile(start_mean, (4 + 3 * most, 1))
    x[1:4] += np.linalg.cholesky(start_covariance).T
    padded = np.append(times, np.zeros(most + 1 - len(times)))
    method = sampling.solver(name, **OPTIONS.get(name, {}))
    got = np.asarray(_run(method, process, jnp.asarray(x), jnp.asarray(padded), len(times) - 1))
    got = got[: 4 + 3 * (len(times) - 1)]
    return got[0], (got[1:] - got[0]).T @ (got[1:] - got[0])


def marginal(process, t):
    a, b = (float(c(jnp.asarray(t, float))) for c in (process.a, process.b))
    return a * MEAN, a**2 * COVARIANCE + b**2 * np.eye(3)


SPAN = {"flow": (0.9, 0.2), "vp": (0.7, 0.15), "edm": (0.75, 0.5)}
WEAK = [pytest.param(name, process, marks=() if process == "flow" else pytest.mark.slow)
        for name in ("ddpm", "euler_ancestral", "ddim", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m_sde",
                     "dpmpp_3m_sde", "dpmpp_2s_sde")
        for process in SPAN]  # fmt: skip


@pytest.mark.parametrize("name, process_name", WEAK)
def test_the_weak_error_falls_with_the_order_of_the_solver(name, process_name):
    process, (t, s) = PROCESSES[process_name], SPAN[process_name]
    counts, errors = (64, 256), []
    with jax.enable_x64(True):
        mean, covariance = marginal(process, s)
        for count in counts:
            times = t + (s - t) * np.linspace(0.0, 1.0, count + 1) ** 1.5
            got = moments(name, process, times, *marginal(process, t), most=counts[-1])
            errors.append(max(np.abs(got[0] - mean).max(), np.abs(got[1] - covariance).max()))
    measured = np.log2(errors[0] / errors[1]) / 2
    assert ORDER[name] - 0.2 < measured < ORDER[name] + 0.6, (measured, errors)


FAST = [("euler", "cosine"), ("ddpm", "flow")]
REACHED = [pytest.param(name, process, marks=() if (name, process) in FAST else pytest.mark.slow)
           for name in ORDER for process in PROCESSES
           if process == "flow" or name in ("euler", "ddpm", "dpmpp_2m", "dpmpp_2m_sde")]  # fmt: skip


@pytest.mark.parametrize("name, process_name", REACHED)
def test_the_ode_and_the_sde_of_every_process_reach_the_datas_mean_and_covariance(name, process_name):
    """In the limit of ever more steps, extrapolated (Romberg) from three numbers of them, to 1% in every direction."""
    process, order, counts = PROCESSES[process_name], ORDER[name], (100, 200, 400)
    whiten = np.linalg.inv(np.linalg.cholesky(COVARIANCE))  # what makes the unit matrix of it
    with jax.enable_x64(True):
        off = []
        for count in counts:
            times = np.asarray(sampling.times(process, count), np.float64)
            if process.steps:  # above 0: to the first entry, whose noise would be 1% of the smallest variance
                times[-1] = 1e-12
            mean, covariance = moments(name, process, times, *marginal(process, times[0]), most=counts[-1])
            wanted = marginal(process, times[-1]) if process.steps else (MEAN, COVARIANCE)
            np.testing.assert_allclose(mean, wanted[0], atol=1e-3)
            off.append(whiten @ (covariance - wanted[1]) @ whiten.T)
    size = [np.abs(matrix).max() for matrix in off]
    assert all(fine < max(0.75 * coarse, 2e-3) for coarse, fine in zip(size, size[1:], strict=False)), size
    finer = lambda coarse, fine, order: fine + (fine - coarse) / (2**order - 1)
    limit = finer(finer(*off[:2], order), finer(*off[1:], order), order + 1)
    assert np.abs(limit).max() < 0.01, (np.abs(limit).max(), size)

"""Each solver's order of convergence, and the mean and covariance its samples reach, where the denoiser is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm import process as gaussian
from lgm import sampling

MEAN, DEVIATION = 0.7, 0.4
PROCESSES = {
    "rectified_flow": gaussian.rectified_flow(),
    "continuous_vp": gaussian.continuous_vp(),
    "edm": gaussian.edm(),
}


def exact(process):
    """E[x | x_t] of Gaussian data, as a network that predicts x."""

    def predict(x_t, t_B):
        a, b = (c(t_B)[:, None] for c in (process.a, process.b))
        gain = a * DEVIATION**2 / (a**2 * DEVIATION**2 + b**2)
        return MEAN + gain * (x_t - a * MEAN)

    return predict


def flow_of_data(process, x, t, s):
    """The ODE's exact solution: a quantile keeps its place."""
    spread = lambda u: np.sqrt(process.a(u) ** 2 * DEVIATION**2 + process.b(u) ** 2)
    return process.a(s) * MEAN + (x - process.a(t) * MEAN) * spread(s) / spread(t)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(name, options, process_name, x, times, key):
    process = PROCESSES[process_name]
    return sampling.sample(sampling.solver(name, **dict(options)), process, "x", exact(process), x, times, key)


def run(name, process_name, x, times, seed=0, **options):
    return _run(name, tuple(options.items()), process_name, x, jnp.asarray(times), jax.random.key(seed))


# from one middle noise level to another, so that the last step to the data, of first order by design, is left out
SPAN = {"rectified_flow": (0.9, 0.2), "continuous_vp": (0.7, 0.15), "edm": (0.75, 0.5)}
STEPS = (8, 16, 32)
ORDERS = {
    "euler": (1, {}),
    "ddim": (1, {}),
    "heun": (2, {}),
    "plms": (2, {}),
    "dpmpp_2m": (2, {}),
    "dpmpp_2s": (2, {}),
    "dpmpp_3m": (3, {}),
    "unipc": (3, {}),
    "lms": (2, {"order": 2}),
}


@pytest.mark.parametrize("process_name", PROCESSES)
@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_order_of_the_solver(name, process_name):
    process = PROCESSES[process_name]
    t, s = SPAN[process_name]
    order, options = ORDERS[name]
    x = 1.3 * process.b(t) + process.a(t) * MEAN * jnp.ones((1, 1))
    errors = []
    for n in STEPS:
        got = run(name, process_name, x, np.linspace(t, s, n + 1), **options)
        errors.append(abs(float(got[0, 0]) - float(flow_of_data(process, x, t, s)[0, 0])))
    measured = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    print(name, process_name, errors, measured)

"""SiT's sampler by an SDE against its formulas, and its samples against the mixture that they should be of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm import gaussian, sampling
from lgm.evaluate.mixture import Mixture
from lgm.sampling import steps
from lgm.sampling.sit import DIFFUSIONS

FLOW = gaussian.rectified_flow()
MIXTURE = Mixture(np.array([[-1.5], [1.0]]), np.array([0.4, 0.3]), np.array([0.35, 0.65]))

# 2401.08740's code, tau from noise at 0 to data at 1, x_tau = tau x + (1 - tau) eps
RELEASED = {
    "constant": lambda tau, norm: norm,
    "sigma": lambda tau, norm: norm * (1 - tau),
    "linear": lambda tau, norm: norm * (1 - tau),
    "sbdm": lambda tau, norm: norm * ((1 - tau) ** 2 / tau + (1 - tau)),
    "decreasing": lambda tau, norm: 0.25 * (norm * np.cos(np.pi * tau) + 1) ** 2,
    "increasing_decreasing": lambda tau, norm: norm * np.sin(np.pi * tau) ** 2,
}


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_a_step_is_the_released_one(name):
    """x + (v + D score) dtau + sqrt(2 D dtau) z, with the score that the velocity implies, (tau v - x) / (1 - tau)."""
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    velocity = lambda x, tau: np.sin(x) + tau  # dx / dtau
    predict = lambda x, t_B: -(jnp.sin(x) + 1.0 - t_B[:, None])  # dx / dt
    key, (t, s), norm = jax.random.key(3), (0.7, 0.6), 0.8
    denoise = lambda x, t: gaussian.endpoints(FLOW, "flow", predict(x, jnp.full(5, t)), x, jnp.full(5, t))
    solver = sampling.solver("sit_sde", diffusion=name, norm=norm)
    found, _ = solver.step(FLOW, denoise, jnp.asarray(x), (), jnp.float32(t), jnp.float32(s), key)
    tau, dtau, z = 1 - t, t - s, np.asarray(steps.draw(key, jnp.asarray(x)))
    v, amount = velocity(x, tau), RELEASED[name](tau, norm)
    score = (tau * v - x) / (1 - tau)
    np.testing.assert_allclose(found, x + (v + amount * score) * dtau + np.sqrt(2 * amount * dtau) * z, atol=1e-5)


@pytest.mark.parametrize("last", ["mean", "euler", "tweedie"])
def test_the_last_step_has_no_noise(last):
    x, t = jnp.ones((2, 3)), 0.04
    denoise = lambda x, t: gaussian.endpoints(FLOW, "flow", 0.5 * x, x, jnp.full(2, t))
    found, _ = sampling.solver("sit_sde", last=last).step(FLOW, denoise, x, (), jnp.float32(t), jnp.float32(0.0),
                                                          jax.random.key(0))  # fmt: skip
    v, tau = -0.5, 1 - t
    score = (tau * v - 1) / t
    expected = {"mean": 1 + t * (v + t * score), "euler": 1 + t * v, "tweedie": 1 / tau + t**2 / tau * score}[last]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["constant", "sigma", "sbdm", "decreasing", "increasing_decreasing"])
def test_samples_are_of_the_data_whatever_the_diffusion_is(name):
    """8,000 samples: the mean of the mixture has a standard error of 0.014, its standard deviation one of about 0.01;
    150 steps of Euler and Maruyama's method and the last step's blur come on top of it."""
    predict = MIXTURE.predictor(FLOW, "flow")
    times = sampling.times(FLOW, 150, "even_to", last=0.01)
    noise = jax.random.normal(jax.random.key(0), (8000, 1))
    draw = jax.jit(lambda x: sampling.sample(sampling.solver("sit_sde", diffusion=name), FLOW, "flow", predict, x,
                                             times, jax.random.key(1)))
    found = np.asarray(draw(noise), np.float64)[:, 0]
    mean = float(MIXTURE.weights @ MIXTURE.means[:, 0])
    std = float(np.sqrt(MIXTURE.weights @ (MIXTURE.stds**2 + MIXTURE.means[:, 0] ** 2) - mean**2))
    assert abs(found.mean() - mean) < 0.06 and abs(found.std() - std) < 0.05
    assert abs((found < 0).mean() - 0.35) < 0.02  # the two modes in their shares
    assert np.abs(found - np.asarray(draw(noise))[:, 0]).max() == 0.0


def test_the_grid_ends_with_the_last_step_and_options_are_checked():
    times = sampling.times(FLOW, 25, "even_to")
    np.testing.assert_allclose(times, [*np.linspace(1.0, 0.04, 25), 0.0], atol=1e-6)
    for options, line in ((dict(diffusion="sigmas"), "unknown diffusion 'sigmas'; did you mean 'sigma'"),
                          (dict(last="none"), "last='none' must be one of mean"), (dict(norm=0.0), "norm=0.0")):
        with pytest.raises(ValueError, match=line):
            sampling.solver("sit_sde", **options)
    with pytest.raises(ValueError, match="last=1.0 must lie between 0 and 1"):
        sampling.times(FLOW, 4, "even_to", last=1.0)

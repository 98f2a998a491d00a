"""The ODE's likelihood against densities that are known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from lgm import gaussian
from lgm.cli import main
from lgm.evaluate.likelihood import log_density
from lgm.evaluate.mixture import Mixture

MIXTURE = Mixture(np.array([[-0.8, 0.4], [0.9, -0.2], [0.1, 1.0]]), np.array([0.4, 0.6, 0.5]),
                  np.array([0.5, 0.2, 0.3]))
BASIS = lambda x: jnp.sqrt(x.shape[1]) * jnp.moveaxis(jnp.tile(jnp.eye(x.shape[1]), (len(x), 1, 1)), 1, 0)


def mixture_log_density(process, x, t):
    """log sum_k w_k N(x; a m_k, a^2 s_k^2 + b^2), by scipy."""
    a, b = float(process.a(t)), float(process.b(t))
    parts = [w * multivariate_normal(a * m, (a * s) ** 2 + b**2).pdf(x)
             for w, m, s in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.stds, strict=True)]
    return np.log(np.sum(parts, 0))


@pytest.mark.parametrize("process, target, ends, tolerance", [
    (gaussian.rectified_flow(), "flow", (1e-3, 1.0), 1e-3),
    (gaussian.rectified_flow(), "x", (1e-2, 1.0), 1e-3),
    (gaussian.trigonometric(), "v", (1e-3, 1.0), 1e-3),
    # x_1 is not quite N(0, I): what is left of the data's mean at a = 0.0066 moves log p by a (m . x) of about 1e-2
    (gaussian.continuous_vp(), "eps", (1e-3, 1.0), 2e-2),
])  # fmt: skip
def test_density_of_a_mixture(process, target, ends, tolerance):
    """The basis as probes gives the trace itself, so what is left is Runge-Kutta's error and float32's."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 2)) * 0.9, jnp.float32)
    predict = MIXTURE.predictor(process, target)
    found = jax.jit(lambda x: log_density(process, target, predict, x, BASIS(x), 48, ends))(x)
    np.testing.assert_allclose(found, mixture_log_density(process, x, ends[0]), atol=tolerance)


def test_signs_are_unbiased():
    """Over 2,000 draws of signs the mean estimate is the exact one within four of its own standard errors."""
    process = gaussian.rectified_flow()
    x = jnp.tile(jnp.asarray([[0.7, 0.5]], jnp.float32), (2000, 1))
    predict = MIXTURE.predictor(process, "flow")
    signs = jax.random.rademacher(jax.random.key(3), (1, *x.shape), jnp.float32)
    found = np.asarray(jax.jit(lambda x: log_density(process, "flow", predict, x, signs, 24))(x))
    assert found.std() > 1e-3  # a probe's estimate does err
    truth = mixture_log_density(process, x[:1], 1e-3)
    assert abs(found.mean() - truth) < 4 * found.std() / np.sqrt(len(found)) + 1e-3


def test_one_gaussian_in_images_shape():
    """Independent values of one normal distribution: every probe gives the trace itself."""
    process, std = gaussian.rectified_flow(), 0.7
    x = std * jax.random.normal(jax.random.key(0), (3, 4, 4, 2))

    def predict(x_t, t_B):  # x_hat = a s^2 x_t / (a^2 s^2 + b^2)
        a, b = (gaussian.wide(c, x_t) for c in (process.a(t_B), process.b(t_B)))
        return a * std**2 * x_t / ((a * std) ** 2 + b**2)

    signs = jax.random.rademacher(jax.random.key(1), (1, *x.shape), jnp.float32)
    found = log_density(process, "x", predict, x, signs, 64, (1e-3, 1.0))
    level = np.hypot(std * float(process.a(1e-3)), 1e-3)
    np.testing.assert_allclose(found, norm(0, level).logpdf(x).sum((1, 2, 3)), atol=5e-3)


def test_ends_that_cannot_be():
    x = jnp.zeros((1, 2))
    for process, target, ends in [(gaussian.rectified_flow(), "eps", (0.0, 1.0)), (gaussian.edm(), "x", (0.5, 0.5))]:
        with pytest.raises(ValueError, match="ends"):
            log_density(process, target, MIXTURE.predictor(process, target), x, BASIS(x), 4, ends)


@pytest.mark.slow
def test_of_a_run(tiny_run, tmp_path):
    """The metric "likelihood" of a run that has hardly learned anything: about what N(0, I) says of its latents."""
    out = tmp_path / "metrics.json"
    words = ["evaluate", f"--workdir={tiny_run}", f"--out={out}", "--metric=heldout"]
    assert main([*words, "--metric=likelihood:steps=16"]) == 0
    found = json.loads(out.read_text())["metrics"]
    # standardised latents under N(0, I) have 0.5 log2(2 pi e) = 2.05 bits a value
    assert 0.5 < found["latent_bits"] < 3.5 and 0 < found["latent_bits_error"] < 1
    assert found["heldout_loss"] > 0
    assert main(["evaluate", f"--workdir={tiny_run}", f"--out={out}", "--metric=likelihood:steps=0"]) != 0

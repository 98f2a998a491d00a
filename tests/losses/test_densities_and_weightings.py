"""Densities of t and weightings against scipy, closed forms and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from lgm import gaussian, losses
from lgm.losses import densities, weightings

DRAWS = 20000
CASES = {
    "uniform": ("uniform", {}),
    "logit normal": ("logit_normal", {}),
    "logit normal moved": ("logit_normal", {"mean": -0.5, "std": 0.8, "shift": 3.0}),
    "mode": ("mode", {"scale": 1.29}),
    "mode, light": ("mode", {"scale": -0.8}),
    "cosmap": ("cosmap", {}),
    "edm": ("edm_log_normal", {}),
    "log tangent": ("log_tangent", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_pdf_and_the_pdf_integrates_to_one(case):
    name, options = CASES[case]
    t = np.asarray(losses.density(name, **options)(jax.random.key(0), (DRAWS,)))
    assert t.min() >= 0 and t.max() <= 1
    grid = np.linspace(1e-5, 1 - 1e-5, 20001)
    mass = scipy.integrate.cumulative_trapezoid(
        np.asarray(densities.pdf(name, **options)(jnp.asarray(grid)), np.float64), grid, initial=0
    )
    assert abs(mass[-1] - 1) < 2e-3  # float32 near the poles, and edm's tail beyond its ends
    assert scipy.stats.kstest(t, lambda u: np.interp(u, grid, mass / mass[-1])).pvalue > 1e-3


@pytest.mark.parametrize("draws", ["stratified", "antithetic"])
def test_evened_draws_have_the_same_density_and_less_variance(draws):
    keys = jax.random.split(jax.random.key(1), 400)
    mean_of = lambda kind: jax.vmap(lambda k: losses.density("logit_normal", draws=kind)(k, (17,)).mean())(keys)
    plain, evened = np.asarray(mean_of("independent")), np.asarray(mean_of(draws))
    assert abs(evened.mean() - 0.5) < 4 * evened.std() / 20
    assert evened.var() < 0.25 * plain.var()
    with pytest.raises(ValueError, match="draws='even' must be one of independent, stratified, antithetic"):
        losses.density("uniform", draws="even")


def test_discrete_times_are_the_tables():
    t = np.asarray(losses.density("discrete", steps=10)(jax.random.key(0), (2000,)))
    np.testing.assert_allclose(np.unique(t), np.arange(10) / 10, atol=1e-6)


PROCESSES = {
    "ddpm": gaussian.ddpm(),
    "vp": gaussian.continuous_vp(),
    "edm": gaussian.edm(),
    "flow": gaussian.rectified_flow(),
}
T = jnp.linspace(0.05, 0.9, 9)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("name", sorted(set(losses.WEIGHTINGS) - {"constant"}))
def test_a_weighting_gives_one_loss_whatever_the_network_predicts(name, process):
    x, eps, wrong = (jax.random.normal(jax.random.key(i), (len(T), 8)) for i in range(3))
    x_t = gaussian.add_noise(process, x, eps, T)
    weighting = losses.weighting(name)
    reference = None
    for target in gaussian.TARGETS:
        if target == "flow" and process.name == "edm":
            pass  # dx/dt = sigma' eps: also a target
        guess = gaussian.convert(process, "x", target, x + 0.3 * wrong, x_t, T)
        error = jnp.square(guess - gaussian.target(process, target, x, eps, T)).mean(1)
        weighted = np.asarray(weighting(process, target, T) * error)
        reference = weighted if reference is None else reference
        # 2 x 2 solves in float32 at an SNR of up to 1e5
        np.testing.assert_allclose(weighted, reference, rtol=5e-3)


def test_published_formulas():
    vp, t = PROCESSES["ddpm"], T
    snr = np.exp(np.asarray(vp.log_snr(t), np.float64))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3)
    w = lambda name, target, process=vp, **o: np.asarray(losses.weighting(name, **o)(process, target, t))
    close(w("snr", "eps"), 1.0)
    close(w("min_snr", "eps"), np.minimum(snr, 5) / snr)
    close(w("min_snr", "v"), np.minimum(snr, 5) / (snr + 1))
    close(w("truncated_snr", "x"), np.maximum(snr, 1))
    close(w("p2", "eps"), 1 / (1 + snr))
    close(w("sigmoid", "eps"), 1 / (1 + np.exp(np.log(snr) - 2)))
    flow, u = PROCESSES["flow"], np.asarray(t, np.float64)
    close(w("flow", "flow", flow), 1.0)
    close(w("flow", "eps", flow), (1 / (1 - u)) ** 2)
    close(w("sd3", "flow", flow), scipy.stats.norm.pdf(np.log(u / (1 - u))) / (u * (1 - u)))
    edm = PROCESSES["edm"]
    sigma = np.asarray(edm.b(t), np.float64)
    close(w("edm", "x", edm), (sigma**2 + 0.25) / (sigma * 0.5) ** 2)
    # log sigma is linear in t, so the bound's weight on eps is log(sigma_max / sigma_min) at every t
    close(w("vlb", "eps", edm), np.log(80 / 0.002))


@pytest.mark.parametrize("drawn", ["uniform", "mode", "cosmap"])
def test_a_density_and_its_importance_weight_leave_the_expectation_alone(drawn):
    error = lambda t: jnp.sin(3 * t) + t**2
    wanted, used = densities.pdf("logit_normal"), densities.pdf(drawn)
    weighting = weightings.importance(wanted, used)
    t = losses.density(drawn, draws="stratified")(jax.random.key(0), (DRAWS,))
    got = float((weighting(None, "flow", t) * error(t)).mean())
    grid = np.linspace(1e-6, 1 - 1e-6, 100001)
    exactly = scipy.integrate.trapezoid(np.asarray(wanted(jnp.asarray(grid)) * error(jnp.asarray(grid))), grid)
    assert abs(got - exactly) < 2e-3  # 20,000 stratified draws


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_weights_and_gradients_are_finite_at_both_ends(process, dtype):
    ends = jnp.asarray([0.0, 1e-4, 0.999, 1.0])
    x = jax.random.normal(jax.random.key(0), (4, 8), dtype)
    for name in losses.WEIGHTINGS:
        for target in ("eps", "x", "v", "flow"):

            def loss(scale, name=name, target=target):
                predict = lambda x_t, t, cond: (scale * x_t).astype(dtype)
                error = losses.denoising_at(process, target, predict, x, None, ends, jnp.ones((4, 8)))
                return jnp.mean(losses.weighting(name)(process, target, ends) * error)

            value, slope = jax.value_and_grad(loss)(jnp.asarray(0.5, jnp.float32))
            assert bool(jnp.isfinite(value) & jnp.isfinite(slope)), (name, target)


DEVIATION = 0.6


@pytest.mark.parametrize("process", [PROCESSES["ddpm"], PROCESSES["flow"]], ids=["ddpm", "flow"])
@pytest.mark.parametrize("name, target", [("constant", "eps"), ("min_snr", "v"), ("edm", "x"), ("sigmoid", "eps")])
def test_the_loss_of_the_exact_denoiser_is_the_posterior_variance(name, target, process):
    weighting = losses.weighting(name)

    def predict(x_t, t_B, cond):
        a, b = process.a(t_B)[:, None], process.b(t_B)[:, None]
        x_hat = a * DEVIATION**2 / (a**2 * DEVIATION**2 + b**2) * x_t
        return gaussian.convert(process, "x", target, x_hat, x_t, t_B)

    density = losses.density("uniform", draws="stratified")
    loss = losses.denoising(process, target, density, weighting)
    x = DEVIATION * jax.random.normal(jax.random.key(0), (DRAWS, 16))
    got = float(loss(predict, x, None, jax.random.key(1))[0])
    t = (jnp.arange(20000) + 0.5) / 20000
    a, b = process.a(t), process.b(t)
    posterior = DEVIATION**2 * b**2 / (a**2 * DEVIATION**2 + b**2)
    exactly = float(jnp.mean(weighting(process, target, t) * posterior * weightings.per_x_error(process, target, t)))
    np.testing.assert_allclose(got, exactly, rtol=0.02)  # Monte-Carlo error of 320,000 squared normals under weights

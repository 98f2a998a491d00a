"""The bound of learned variances against torch's divergence of the two Gaussians and diffusers' variances."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lgm import gaussian, losses
from lgm.losses.variational import bound

DDPM = gaussian.ddpm("linear", 1e-4, 0.02)
RNG = np.random.default_rng(0)
X, EPS, V = (RNG.standard_normal((3, 4, 4, 2)).astype(np.float32) for _ in range(3))
V = np.tanh(V)


def test_a_term_is_the_divergence_of_the_step_that_diffusers_makes():
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False, beta_schedule="linear")
    t = np.float32([1, 400, 999])
    x_t = gaussian.add_noise(DDPM, X, EPS, jnp.asarray(t / 1000))
    x_hat = X + 0.1 * EPS
    ours = bound(DDPM, jnp.asarray(X), jnp.asarray(x_hat), jnp.asarray(V), x_t, jnp.asarray(t / 1000))
    for i, k in enumerate(t.astype(int)):
        alpha_bar, before = scheduler.alphas_cumprod[k].double(), scheduler.alphas_cumprod[k - 1].double()
        beta = 1 - alpha_bar / before
        # Ho et al. 2020, eq. 7: the posterior's mean; eq. 7's variance and diffusers' interpolated log variance
        mean = lambda x, i=i: (before.sqrt() * beta * torch.tensor(x).double()  # noqa: B023
                               + (1 - beta).sqrt() * (1 - before) * torch.tensor(np.asarray(x_t[i])).double()) / (
                                   1 - alpha_bar)  # fmt: skip
        log_variance = scheduler._get_variance(int(k), predicted_variance=torch.tensor(V[i]).double())
        q = torch.distributions.Normal(mean(X[i]), (beta * (1 - before) / (1 - alpha_bar)).sqrt())
        p = torch.distributions.Normal(mean(x_hat[i]), (0.5 * log_variance).exp())
        expected = float(torch.distributions.kl_divergence(q, p).mean() / np.log(2))
        # float32 tables: beta is a difference of two of them, of 1e-4 at the first entries
        assert float(ours[i]) == pytest.approx(expected, rel=5e-3, abs=1e-4), k


def test_the_first_entry_gives_the_density_of_the_data():
    t = jnp.zeros(3)
    x_hat = X + 0.01 * EPS
    ours = bound(DDPM, jnp.asarray(X), jnp.asarray(x_hat), jnp.full(X.shape, 1.0), jnp.asarray(X), t)
    p = torch.distributions.Normal(torch.tensor(x_hat).double(), 1e-4**0.5)  # v = 1: the variance is beta
    expected = -p.log_prob(torch.tensor(X).double()).mean((1, 2, 3)) / np.log(2)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-3)


def test_the_bound_teaches_variances_alone_and_the_rest_is_the_simple_loss():
    density, weighting = losses.density("discrete"), losses.weighting("constant")
    hybrid = losses.hybrid(DDPM, "eps", density, weighting)
    simple = losses.denoising(DDPM, "eps", density, weighting)
    network = lambda p, x, t: jnp.concatenate([p["eps"] * x, jnp.tanh(p["v"] * x)], -1)
    params = {"eps": jnp.float32(0.3), "v": jnp.float32(0.2)}
    key = jax.random.key(0)
    both = jax.grad(lambda p: hybrid(lambda x, t, c: network(p, x, t), X, None, key)[0])(params)
    plain = jax.grad(lambda p: simple(lambda x, t, c: network(p, x, t)[..., :2], X, None, key)[0])(params)
    np.testing.assert_allclose(both["eps"], plain["eps"], rtol=1e-6)
    assert plain["v"] == 0 and both["v"] != 0


def test_a_process_without_a_table_has_no_steps():
    flow = gaussian.rectified_flow()
    with pytest.raises(ValueError, match="belong to the steps of a table, which process 'rectified_flow' has not"):
        losses.hybrid(flow, "flow", losses.density("uniform"), losses.weighting("constant"))

"""Guidance against diffusers' own functions, and what each rule leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from lgm import gaussian, sampling
from lgm.models import Conditioning

FLOW = gaussian.rectified_flow()
TOLERANCE = 2e-6  # float32, sums of 48 elements


def draws(count, seed=0):
    return [np.asarray(jax.random.normal(jax.random.key(seed + i), (3, 4, 4, 3))) for i in range(count)]


def network(x, t, cond):
    """A velocity that depends on its condition."""
    return x * (0.3 + t[:, None, None, None]) + cond.pooled[:, :, None, None]


def condition(value):
    return Conditioning(pooled=jnp.full((3, 1), value))


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_is_diffusers(share):
    c, u = draws(2)
    guided = torch.tensor(u + 7.5 * (c - u))
    # theirs is the deviation of a sample, ours of all elements: their ratio is the same
    theirs = rescale_noise_cfg(guided, torch.tensor(c), guidance_rescale=share).numpy()
    np.testing.assert_allclose(sampling.rescaled(7.5, share)(c, u), theirs, rtol=2e-5, atol=TOLERANCE)


def test_rescaling_of_tokens_is_that_of_diffusers_pipeline():
    """As QwenImagePipeline writes it, of packed latents."""
    c, u = draws(2)
    pack = lambda x: QwenImagePipeline._pack_latents(torch.tensor(x).permute(0, 3, 1, 2), 3, 3, 4, 4)
    guided = pack(u) + 4.0 * (pack(c) - pack(u))
    theirs = guided * (torch.norm(pack(c), dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True))
    ours = sampling.token_rescaled(4.0)(c, u)
    np.testing.assert_allclose(pack(np.array(ours)).numpy(), theirs.numpy(), rtol=2e-5, atol=TOLERANCE)
    with pytest.raises(ValueError, match="latents of 4 x 4 do not divide into tokens of 3"):
        sampling.token_rescaled(4.0, patch=3)(c, u)
    with pytest.raises(ValueError, match="patch=0 of the token_rescaled prediction must be at least 1"):
        sampling.token_rescaled(4.0, patch=0)


@pytest.mark.parametrize("momentum", [0.0, -0.5])
@pytest.mark.parametrize("limit", [0.0, 5.0])
def test_projected_guidance_is_diffusers_update_by_update(limit, momentum):
    rule = sampling.Projected(4.0, parallel=0.3, limit=limit, momentum=momentum)
    buffer = MomentumBuffer(momentum)
    running = jnp.zeros((3, 4, 4, 3))
    for seed in range(3):
        c, u = draws(2, 10 * seed)
        ours, running = rule(c, u, running)
        # the paper writes c + (w - 1) update, as theirs does when asked for it, with w - 1 for a scale
        theirs = normalized_guidance(torch.tensor(c), torch.tensor(u), 3.0, buffer, 0.3, limit, True)
        # the norm is over [C, H, W] of theirs and [H, W, C] of ours: all but the batch either way
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-5, atol=1e-5)


def test_projection_with_nothing_taken_away_is_classifier_free_guidance_in_any_solver():
    x_T, times = draws(1)[0], sampling.times(FLOW, 6)
    cond, uncond = condition(0.5), condition(-0.2)
    for name in ("euler", "heun", "dpmpp_2m"):
        method = sampling.projected(sampling.solver(name), sampling.Projected(3.0, parallel=1.0))
        got = sampling.sample(method, FLOW, "flow", sampling.paired(network, cond, uncond), x_T, times)
        plain = sampling.classifier_free(network, cond, uncond, 3.0)
        expected = sampling.sample(sampling.solver(name), FLOW, "flow", plain, x_T, times)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_momentum_moves_once_a_step():
    x_T, times = draws(1)[0], sampling.times(FLOW, 4)
    predict = sampling.paired(network, condition(0.5), condition(-0.2))
    draw = lambda name, momentum: sampling.sample(
        sampling.projected(sampling.solver(name), sampling.Projected(3.0, momentum=momentum)), FLOW, "flow", predict,
        x_T, times)  # fmt: skip
    for name in ("euler", "heun"):  # one and two evaluations a step
        assert float(jnp.abs(draw(name, -0.5) - draw(name, 0.0)).max()) > 1e-3
    # by hand for Euler: x_hat = x - t v, then the straight line to the data
    rule, x, running = sampling.Projected(3.0, momentum=-0.5), jnp.asarray(x_T), jnp.zeros_like(x_T)
    for t, s in zip(times[:-1], times[1:], strict=True):
        t_B = jnp.full(3, t)
        c, u = (x - t * network(x, t_B, cond) for cond in (condition(0.5), condition(-0.2)))
        x_hat, running = rule(c, u, running)
        x = x_hat + s / t * (x - x_hat)
    np.testing.assert_allclose(draw("euler", -0.5), x, rtol=1e-4, atol=1e-5)


def test_outside_the_interval_only_the_condition_counts():
    x = draws(1)[0]
    cond, uncond = condition(0.5), condition(-0.2)
    guided = sampling.classifier_free(network, cond, uncond, 3.0, interval=(0.2, 0.7))
    free = sampling.classifier_free(network, cond, uncond, 3.0)
    for t, expected in ((0.1, network), (0.5, None), (0.9, network)):
        t_B = jnp.full(3, t)
        right = free(x, t_B) if expected is None else network(x, t_B, cond)
        np.testing.assert_allclose(jax.jit(guided)(x, t_B), right, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(free(x, jnp.full(3, 0.1)) - network(x, jnp.full(3, 0.1), cond)).max()) > 0.1


def test_a_negative_prompt_is_the_other_condition():
    x, t = draws(1)[0], jnp.full(3, 0.4)
    away = sampling.classifier_free(network, condition(0.5), condition(0.1), 2.0)(x, t)
    np.testing.assert_allclose(away, network(x, t, condition(0.5 + 0.4)), rtol=1e-5)


def test_a_distilled_scale_is_an_input():
    told = lambda x, t, cond: x * cond.guidance[:, None, None, None]
    x = draws(1)[0]
    np.testing.assert_allclose(sampling.embedded(told, Conditioning(), 3.5)(x, jnp.ones(3)), 3.5 * x, rtol=1e-6)


def test_what_cannot_be_is_one_line():
    with pytest.raises(ValueError, match=r"guidance interval=\(0.7, 0.2\) must rise within \[0, 1\]"):
        sampling.classifier_free(network, condition(0.5), condition(0.0), 2.0, interval=(0.7, 0.2))
    with pytest.raises(ValueError, match="share=2.0 of the rescaled prediction must lie between 0 and 1"):
        sampling.rescaled(2.0, share=2.0)

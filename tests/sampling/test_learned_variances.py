"""DDPM's step with the variances that a network learns: diffusers' DDPMScheduler, the released code's respaced betas,
and what guidance and clipping make of the channels that hold them."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lgm import gaussian, sampling
from lgm.interop.schedulers import read_schedule
from lgm.models import Conditioning

LINEAR = gaussian.ddpm("linear", 1e-4, 0.02)
RNG = np.random.default_rng(0)
SHAPE = (2, 3, 3, 4)
X_T = RNG.standard_normal(SHAPE).astype(np.float32)
MIX = (RNG.standard_normal((4, 8)) * 0.6).astype(np.float32)


def network(numbers, x, t):
    """(prediction, v) side by side; v reaches beyond [-1, 1], as an untrained network's does."""
    both = numbers.tanh(x @ MIX) + 0.3 * numbers.cos(3 * t + x @ MIX)
    return both if numbers is not torch else both.float()


def predict(x, t_B, _=None):
    return network(jnp, x, t_B.reshape(-1, 1, 1, 1))


def noise(number):
    return np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(0), number), SHAPE))


@pytest.mark.parametrize("options, steps", [
    ({}, 10), (dict(timestep_spacing="linspace", clip_sample=False), 7),
    (dict(prediction_type="v_prediction", clip_sample_range=0.7), 10),
    (dict(variance_type="fixed_large", beta_schedule="squaredcos_cap_v2"), 10)], ids=str)  # fmt: skip
def test_each_step_equals_diffusers(options, steps, monkeypatch):
    options = dict(variance_type="learned_range") | options
    theirs, number = diffusers.DDPMScheduler(**options), [0]
    draw = lambda *_, **__: torch.from_numpy(noise(number[0]).transpose(0, 3, 1, 2).copy())
    monkeypatch.setattr(diffusers.schedulers.scheduling_ddpm, "randn_tensor", draw)
    theirs.set_timesteps(steps)
    channels = 8 if options["variance_type"] == "learned_range" else 4
    first = lambda x: torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    x = X_T
    for number[0], t in enumerate(theirs.timesteps):
        out = np.asarray(network(np, x, np.float32(t) / 1000))[..., :channels]
        x = theirs.step(first(out), t, first(x)).prev_sample.numpy().transpose(0, 2, 3, 1)
    schedule = read_schedule(dict(options, _class_name="DDPMScheduler"))
    walk = schedule.timesteps(steps)
    method = schedule.method(walk.times)
    assert method.variance == (channels == 8)
    told = lambda x, t_B, _: predict(x, t_B)[..., :channels]
    ours = sampling.loop(method, schedule.build(), schedule.target, told, X_T, walk, (), jax.random.key(0))
    # theirs has float32 tables of alpha_bar, in whose differences beta is
    np.testing.assert_allclose(ours, x, atol=1e-4 * np.abs(x).max())


def released(x, timesteps, clip):
    """p_sample_loop on respaced betas: 2102.09672 eq. 15 and section 4, in float64."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000, dtype=np.float64))
    used = np.append(1.0, alpha_bar[np.sort(timesteps)])
    betas = 1 - used[1:] / used[:-1]
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar[:-1])
    posterior = betas * (1 - before) / (1 - bar)
    log_posterior = np.log(np.append(posterior[1], posterior[1:]))
    for number, i in enumerate(reversed(range(len(betas)))):
        eps, v = np.split(np.asarray(network(np, x, np.sort(timesteps)[i] / 1000)), 2, -1)
        hat = np.clip((x - np.sqrt(1 - bar[i]) * eps) / np.sqrt(bar[i]), -clip, clip)
        mean = (betas[i] * np.sqrt(before[i]) * hat + (1 - before[i]) * np.sqrt(1 - betas[i]) * x) / (1 - bar[i])
        log_variance = 0.5 * (v + 1) * np.log(betas[i]) + (1 - 0.5 * (v + 1)) * log_posterior[i]
        x = mean + (np.exp(0.5 * log_variance) * noise(number) if i else 0.0)
    return x


@pytest.mark.parametrize("clip", [1.0, np.inf])
def test_steps_that_leave_entries_out_are_the_released_codes_respaced_betas(clip):
    times = sampling.times(LINEAR, 12, "linspace")  # of the released code: both ends
    method = sampling.solver("ddpm", variance="learned")
    method = method if clip == np.inf else sampling.bounded(method, clip)
    ours = sampling.sample(method, LINEAR, "eps", predict, X_T, times, jax.random.key(0))
    theirs = released(X_T.astype(np.float64), np.round(np.linspace(0, 999, 12)).astype(int), clip)
    # float32 with eps divided by a(t), 0.006 at the first step
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


def test_guidance_moves_the_prediction_and_leaves_the_conditionals_variances():
    x, t = jnp.asarray(X_T), jnp.full(2, 0.4)
    of = lambda cond: cond.pooled[:, :, None, None]
    told = lambda x, t, cond: jnp.concatenate([x + of(cond), x * of(cond)], -1)
    cond, none = (Conditioning(pooled=jnp.full((2, 1), value)) for value in (0.5, -0.2))
    half = lambda a: (a[..., :4], a[..., 4:])
    prediction, v = half(sampling.classifier_free(told, cond, none, 3.0)(x, t))
    np.testing.assert_allclose(prediction, x + 3.0 * 0.7 - 0.2, atol=1e-6)
    np.testing.assert_array_equal(v, 0.5 * x)
    # DiT's and SiT's released forward_with_cfg guides three channels and takes the rest from the conditional half
    rule = sampling.rule("plain", 3.0, channels=3)
    prediction, v = half(sampling.classifier_free(told, cond, none, 0.0, rule)(x, t))
    np.testing.assert_allclose(prediction[..., :3], (x + 3.0 * 0.7 - 0.2)[..., :3], atol=1e-6)
    np.testing.assert_allclose(prediction[..., 3], x[..., 3] + 0.5, atol=1e-6)
    np.testing.assert_array_equal(v, 0.5 * x)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.8)])
def test_projected_guidance_of_its_plain_form_draws_what_plain_guidance_draws(interval):
    told = lambda x, t, cond: predict(x, t) * cond.pooled[:, :, None, None]
    cond, none = (Conditioning(pooled=jnp.full((2, 1), value)) for value in (0.9, 0.4))
    times, method = sampling.times(LINEAR, 6, "linspace"), sampling.solver("ddpm", variance="learned")
    drawn = []
    for how in (sampling.plain(1.5), sampling.Projected(1.5, parallel=1.0)):
        solver, wrap = sampling.guided(method, how, interval)
        drawn.append(sampling.sample(solver, LINEAR, "eps", wrap(told, cond, none), X_T, times, jax.random.key(1)))
    np.testing.assert_allclose(*drawn, atol=2e-4 * float(jnp.abs(drawn[0]).max()))


def test_what_cannot_be_is_one_line():
    with pytest.raises(ValueError, match="solver option variance='beta' must be one of small, large, learned"):
        sampling.solver("ddpm", variance="beta")
    with pytest.raises(ValueError, match="gives 4 channels for x's 4; this solver takes 8"):
        sampling.sample(sampling.solver("ddpm", variance="learned"), LINEAR, "eps", lambda x, t: x, X_T, [0.9, 0.0])
    with pytest.raises(ValueError, match="gives 8 channels for x's 4; this solver takes 4, a prediction alone"):
        sampling.sample(sampling.solver("ddpm"), LINEAR, "eps", predict, X_T, [0.9, 0.0])
    with pytest.raises(ValueError, match="variance_type='learned_range' with timestep_spacing='trailing'"):
        read_schedule(dict(_class_name="DDPMScheduler", variance_type="learned_range", timestep_spacing="trailing"))

"""Every solver against diffusers' scheduler of that name, step by step, with one shared predictor and shared noise.

Tolerance: 1e-5 of the largest value met, in float32 (both sum 10 to 50 steps of about 1e-7 rounding each).
"""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from shared_predictor import (
    DDPM,
    FLOW,
    KEY,
    MIX,
    SD,
    assert_same,
    ours,
    ours_trace,
    predictor,
    signal,
    start,
    theirs_trace,
)

from lgm import gaussian, sampling

EPS = dict(SD, timestep_spacing="trailing", clip_sample=False)
MULTI = dict(SD, timestep_spacing="trailing", final_sigmas_type="zero", lower_order_final=False)
SIGMA = dict(SD, timestep_spacing="trailing")
# name -> (our solver, its options, diffusers' class, its options, arguments of its step, whether x is x / a there)
CASES = {
    "ddim": ("ddim", {}, "DDIMScheduler", EPS, {}, False),
    "ddim eta": ("ddim", {"eta": 0.6}, "DDIMScheduler", EPS, {"eta": 0.6}, False),
    "ddim eta 1": ("ddim", {"eta": 1.0}, "DDIMScheduler", EPS, {"eta": 1.0}, False),
    "ddpm": ("ddpm", {}, "DDPMScheduler", EPS, {}, False),
    "euler": ("euler", {}, "EulerDiscreteScheduler", SIGMA, {}, True),
    "euler ancestral": ("euler_ancestral", {}, "EulerAncestralDiscreteScheduler", SIGMA, {}, True),
    "heun": ("heun", {}, "HeunDiscreteScheduler", SIGMA, {}, True),
    "lms": ("lms", {}, "LMSDiscreteScheduler", SIGMA, {}, True),
    "plms": ("plms", {}, "PNDMScheduler", dict(SD, timestep_spacing="trailing", skip_prk_steps=True,
                                                set_alpha_to_one=True), {}, False),
    "dpmpp 2m": ("dpmpp_2m", {}, "DPMSolverMultistepScheduler", MULTI, {}, False),
    "dpmpp 3m": ("dpmpp_3m", {"curvature": 0.5}, "DPMSolverMultistepScheduler", dict(MULTI, solver_order=3), {}, False),
    "dpmpp sde 1": ("ddpm", {}, "DPMSolverMultistepScheduler",
                  dict(MULTI, solver_order=1, algorithm_type="sde-dpmsolver++"), {}, False),
    "dpmpp 2m sde": ("dpmpp_2m_sde", {}, "DPMSolverMultistepScheduler",
                     dict(MULTI, algorithm_type="sde-dpmsolver++"), {}, False),
    "dpmpp 3m sde": ("dpmpp_3m_sde", {}, "DPMSolverMultistepScheduler",
                     dict(MULTI, solver_order=3, algorithm_type="sde-dpmsolver++", solver_type="heun"), {}, False),
    "dpmpp 2s": ("dpmpp_2s", {}, "DPMSolverSinglestepScheduler",
                 dict(SD, final_sigmas_type="zero", lower_order_final=True), {}, False),
    "dpmpp 2s sde": ("dpmpp_2s_sde", {}, "DPMSolverSinglestepScheduler",
                     dict(SD, final_sigmas_type="zero", lower_order_final=True, algorithm_type="sde-dpmsolver++"),
                     {}, False),
    "unipc 1": ("unipc", {"order": 1}, "UniPCMultistepScheduler",
                dict(SD, timestep_spacing="trailing", final_sigmas_type="zero", solver_order=1), {}, False),
    "unipc": ("unipc", {}, "UniPCMultistepScheduler", dict(SD, timestep_spacing="trailing", final_sigmas_type="zero"),
              {}, False),
    "unipc 3": ("unipc", {"order": 3}, "UniPCMultistepScheduler",
                dict(SD, timestep_spacing="trailing", final_sigmas_type="zero", solver_order=3), {}, False),
}  # fmt: skip


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("case", CASES)
def test_each_step_of_a_diffusion_equals_diffusers(case, steps):
    name, options, cls, config, keywords, by_sigma = CASES[case]
    scheduler = getattr(diffusers, cls)(**config)
    scheduler.set_timesteps(steps)
    if case == "dpmpp 3m sde":
        _with_the_sign_of_the_curvature_mended(scheduler)
    k = np.asarray(scheduler.timesteps)
    k = k[np.append(True, np.diff(k) != 0)]  # those of Heun and PLMS come twice
    times = np.append(k / 1000, 0.0).astype(np.float32)
    if case == "unipc 3":  # diffusers lowers its order two steps before the end
        options = options | {"limits": ((float(times[-3]), 2),)}
    x, a = start(steps), signal(times)
    theirs = theirs_trace(scheduler, (x / a[0, 0] if by_sigma else x).astype(np.float32), by_sigma, keywords=keywords)
    if name == "heun":  # two evaluations a step
        theirs = np.concatenate([theirs[:-1:2], theirs[-1:]])
    if name == "plms":  # two in the first
        theirs = theirs[[0, *range(2, len(theirs))]]
    mine = ours_trace(sampling.solver(name, **options), DDPM, "eps", x, times)
    assert_same(mine, theirs * a if by_sigma else theirs)


def _with_the_sign_of_the_curvature_mended(scheduler):
    """diffusers 0.42 has (1 - e^(-2h) - 2h) / (2h)^2 - 1/2 before D2 in its third-order SDE step, the ODE's expression
    with its outer sign lost: as h -> 0 it tends to -1, not 0, and the step is not of second order. The mended factor,
    1/2 - (2h - 1 + e^(-2h)) / (2h)^2 as in k-diffusion, is larger by exactly 1."""
    published = scheduler.multistep_dpm_solver_third_order_update

    def mended(outputs, sample, noise=None, **keywords):
        at = lambda i: scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index + i])
        logs = [torch.log(at(i)[0]) - torch.log(at(i)[1]) for i in (1, 0, -1, -2)]
        h, h0, h1 = (logs[i] - logs[i + 1] for i in range(3))
        bend = ((outputs[-1] - outputs[-2]) / h0 - (outputs[-2] - outputs[-3]) / h1) * h / ((h0 + h1) / h)
        return published(outputs, sample=sample, noise=noise, **keywords) + at(1)[0] * bend

    scheduler.multistep_dpm_solver_third_order_update = mended


FLOW_SIGMAS = dict(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, lower_order_final=True)
FLOWS = {
    "euler": ("FlowMatchEulerDiscreteScheduler", dict(shift=3.0)),
    "heun": ("FlowMatchHeunDiscreteScheduler", dict(shift=3.0)),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", FLOW_SIGMAS),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", FLOW_SIGMAS),
    "dpmpp_3m": ("DPMSolverMultistepScheduler", dict(FLOW_SIGMAS, solver_order=3, lower_order_final=False)),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", dict(FLOW_SIGMAS, algorithm_type="sde-dpmsolver++")),
    "unipc": ("UniPCMultistepScheduler", FLOW_SIGMAS),
    "unipc 3": ("UniPCMultistepScheduler", dict(FLOW_SIGMAS, solver_order=3)),
}


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("name", FLOWS)
def test_each_step_of_a_flow_equals_diffusers(name, steps):
    cls, options = FLOWS[name]
    scheduler = getattr(diffusers, cls)(**options)
    scheduler.set_timesteps(steps)
    sigmas = np.asarray(scheduler.sigmas)
    times = sigmas if name != "heun" else np.append(sigmas[:-1][np.append(True, np.diff(sigmas[:-1]) != 0)], 0.0)
    if name not in ("euler", "heun"):
        scheduler.timesteps = torch.from_numpy(sigmas[:-1] * 1000)  # theirs are whole numbers; the network gets ours
        scheduler.set_begin_index(0)
    x, times = start(steps), times.astype(np.float32)
    options = {"unipc 3": {"order": 3, "limits": ((float(times[-3]), 2),)}, "dpmpp_3m": {"curvature": 0.5}}
    theirs = theirs_trace(scheduler, x)
    theirs = theirs if name != "heun" else np.concatenate([theirs[:-1:2], theirs[-1:]])
    method = sampling.solver(name.split()[0], **options.get(name, {}))
    assert_same(ours_trace(method, FLOW, "flow", x, times), theirs)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_each_step_of_consistency_sampling_equals_diffusers(steps):
    scheduler = diffusers.SCMScheduler(sigma_data=1.0)
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    angles = scheduler.timesteps.numpy()
    x = start(steps)
    theirs = theirs_trace(scheduler, x, inputs=angles[:-1] / (np.pi / 2))
    process, times = gaussian.trigonometric(), (angles / (np.pi / 2)).astype(np.float32)
    assert_same(ours_trace(sampling.solver("consistency"), process, "v", x, times), theirs)


EDM = gaussian.edm()
EDMS = {
    "euler": ("EDMEulerScheduler", {}),
    "dpmpp_2m": ("EDMDPMSolverMultistepScheduler", {}),
    "dpmpp_3m": ("EDMDPMSolverMultistepScheduler", dict(solver_order=3, lower_order_final=False)),
    "dpmpp_2m_sde": ("EDMDPMSolverMultistepScheduler", dict(algorithm_type="sde-dpmsolver++")),
}


def _scaled(x, t_B):
    return predictor(jnp)(gaussian.network_input(EDM, x, t_B), t_B.reshape(-1, 1, 1, 1), MIX)


@pytest.mark.parametrize("ramp", ["karras", "exponential"])
@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("name", EDMS)
def test_each_step_of_edm_equals_diffusers(name, steps, ramp):
    cls, options = EDMS[name]
    scheduler = getattr(diffusers, cls)(sigma_schedule=ramp, **options)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double().numpy()
    low, high = np.log(0.002), np.log(80)
    times = np.maximum((np.log(sigmas[:-1]) - low) / (high - low), 1e-9)  # sigma_min, which is not yet the data
    times = np.append(times, 0.0).astype(np.float32)
    x = start(steps) * 80
    theirs = theirs_trace(scheduler, x, scaled=True, inputs=times[:-1])
    method = sampling.solver(name, **({"curvature": 0.5} if name == "dpmpp_3m" else {}))
    mine = ours_trace(method, EDM, "edm", x, times, predict=_scaled)
    # step by step in units of each step's own noise level, which falls from 80 to 0.002
    units = np.maximum(np.append(sigmas[:-1], 1.0), 1.0).reshape(-1, 1, 1, 1, 1)
    np.testing.assert_allclose(mine / units, theirs / units, atol=1e-5)
    if name == "dpmpp_2m" and ramp == "karras":  # the grid is ours, too
        np.testing.assert_allclose(sampling.times(EDM, steps, "karras"), times, atol=1e-6)


def test_scan_and_loop_make_the_same_steps():
    x, times = start(0), sampling.times(DDPM, 10, "trailing")
    for name in ("unipc", "dpmpp_2m_sde"):
        method, key = sampling.solver(name), jax.random.key(KEY)
        by_steps = ours_trace(method, DDPM, "eps", x, times)
        end, states = sampling.trace(method, DDPM, "eps", ours, jnp.asarray(x), times, key)
        looped = sampling.loop(method, DDPM, "eps", _with_arguments, jnp.asarray(x), times, (), key)
        assert_same(np.asarray(states), by_steps[1:], atol=2e-6)
        assert_same(np.asarray(jnp.stack([end, looped])), np.stack([by_steps[-1]] * 2), atol=2e-6)


def _with_arguments(x, t_B, arguments):
    return ours(x, t_B)

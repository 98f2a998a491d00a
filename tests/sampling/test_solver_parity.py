"""Every solver against diffusers' scheduler of that name, step by step, with one shared predictor and shared noise.

Tolerance: 1e-5 of the largest value met, in float32 (both sum 10 to 50 steps of about 1e-7 rounding each).
"""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lgm import process as gaussian
from lgm import sampling

SHAPE = (2, 4, 4, 3)
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
DDPM = gaussian.ddpm()
FLOW = gaussian.rectified_flow()
RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(3, 3)).astype(np.float32) * 0.6


def predictor(numpy_like):
    """A fixed nonlinear function of (x_t, t in [0, 1]) in numpy's terms, for torch and for JAX."""
    return lambda x, t, mix: 0.9 * numpy_like.tanh(x @ mix) + 0.3 * x + 0.1 * t


def theirs_trace(scheduler, x, noises, from_vp, model_time=1000.0, keywords=None):
    """The state before each step and at the end; `from_vp` is how x is scaled for the network."""
    predict, mix = predictor(torch), torch.from_numpy(MIX)
    x, states = torch.from_numpy(x), []
    draws = iter(noises)
    for t in scheduler.timesteps:
        states.append(x.numpy().copy())
        given = scheduler.scale_model_input(x, t) if from_vp else x
        output = predict(given, float(t) / model_time, mix)
        with _noise_of(draws):
            x = scheduler.step(output, t, x, **(keywords or {})).prev_sample
    return np.stack([*states, x.numpy()])


class _noise_of:
    """Every draw of the schedulers' noise is the next of ours."""

    MODULES = ("ddpm", "ddim", "euler_ancestral_discrete", "dpmsolver_multistep", "dpmsolver_singlestep", "scm")

    def __init__(self, draws):
        self.draws, self.patch = draws, pytest.MonkeyPatch()

    def __enter__(self):
        for name in self.MODULES:
            module = getattr(diffusers.schedulers, f"scheduling_{name}")
            self.patch.setattr(module, "randn_tensor", lambda *a, **k: torch.from_numpy(next(self.draws)))

    def __exit__(self, *_):
        self.patch.undo()


def ours_trace(name, process, target, x, times, **options):
    method = sampling.solver(name, **options)
    states, key = [np.asarray(x)], jax.random.key(3)
    _, states = sampling.trace(method, process, target, _predict, jnp.asarray(x), times, key)
    return np.concatenate([x[None], np.asarray(states)])


def _predict(x, t_B):
    return predictor(jnp)(x, t_B.reshape(-1, 1, 1, 1), MIX)


def noises(steps):
    keys = [jax.random.fold_in(jax.random.key(3), n) for n in range(steps)]
    return [np.asarray(jax.random.normal(key, SHAPE, jnp.float32)) for key in keys]


def assert_same(ours, theirs):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5)


EPS = dict(SD, timestep_spacing="trailing", clip_sample=False)
MULTI = dict(SD, timestep_spacing="trailing", final_sigmas_type="zero", lower_order_final=False)
SIGMA = dict(SD, timestep_spacing="trailing")
# name -> (our solver, its options, diffusers' class, its options, arguments of its step, whether x is x / a there)
CASES = {
    "ddim": ("ddim", {}, "DDIMScheduler", EPS, {}, False),
    "ddim eta": ("ddim", {"eta": 0.6}, "DDIMScheduler", EPS, {"eta": 0.6}, False),
    "ddpm": ("ddpm", {}, "DDPMScheduler", EPS, {}, False),
    "euler": ("euler", {}, "EulerDiscreteScheduler", SIGMA, {}, True),
    "euler ancestral": ("euler_ancestral", {}, "EulerAncestralDiscreteScheduler", SIGMA, {}, True),
    "heun": ("heun", {}, "HeunDiscreteScheduler", SIGMA, {}, True),
    "lms": ("lms", {}, "LMSDiscreteScheduler", SIGMA, {}, True),
    "plms": ("plms", {}, "PNDMScheduler", dict(SD, timestep_spacing="trailing", skip_prk_steps=True,
                                                set_alpha_to_one=True), {}, False),
    "dpmpp 2m": ("dpmpp_2m", {}, "DPMSolverMultistepScheduler", MULTI, {}, False),
    "dpmpp 3m": ("dpmpp_3m", {"curvature": 0.5}, "DPMSolverMultistepScheduler", dict(MULTI, solver_order=3), {}, False),
    "dpmpp sde": ("dpmpp_sde", {}, "DPMSolverMultistepScheduler",
                  dict(MULTI, solver_order=1, algorithm_type="sde-dpmsolver++"), {}, False),
    "dpmpp 2m sde": ("dpmpp_2m_sde", {}, "DPMSolverMultistepScheduler",
                     dict(MULTI, algorithm_type="sde-dpmsolver++"), {}, False),
    "dpmpp 3m sde": ("dpmpp_3m_sde", {"curvature": 0.5}, "DPMSolverMultistepScheduler",
                     dict(MULTI, solver_order=3, algorithm_type="sde-dpmsolver++"), {}, False),
    "dpmpp 2s": ("dpmpp_2s", {}, "DPMSolverSinglestepScheduler",
                 dict(SD, final_sigmas_type="zero", lower_order_final=True), {}, False),
    "dpmpp 2s sde": ("dpmpp_2s_sde", {}, "DPMSolverSinglestepScheduler",
                     dict(SD, final_sigmas_type="zero", lower_order_final=True, algorithm_type="sde-dpmsolver++"),
                     {}, False),
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
    x = np.random.default_rng(steps).normal(size=SHAPE).astype(np.float32)
    a = np.append(np.asarray(DDPM.a(jnp.asarray(times[:-1])), np.float64), 1.0)
    start = x / a[0] if by_sigma else x
    theirs = theirs_trace(scheduler, start.astype(np.float32), noises(steps), by_sigma, keywords=keywords)
    twice = {"heun": slice(0, None, 2), "plms": [0, *range(2, len(theirs))]}.get(name, slice(None))
    theirs = theirs[twice] if name != "heun" else np.concatenate([theirs[:-1:2], theirs[-1:]])
    if by_sigma:
        theirs = theirs * a.reshape(-1, 1, 1, 1, 1)
    ours = ours_trace(name, DDPM, "eps", x, times, **options)
    assert len(ours) == len(theirs) == len(times)
    # diffusers lowers the order of its third-order solver two steps before the end, we do only at the last
    shared = slice(None, -2) if case == "unipc 3" else slice(None)
    assert_same(ours[shared], theirs[shared])


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
    "unipc": ("UniPCMultistepScheduler", FLOW_SIGMAS),
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
    x = np.random.default_rng(steps).normal(size=SHAPE).astype(np.float32)
    theirs = theirs_trace(scheduler, x, [], False)
    theirs = theirs if name != "heun" else np.concatenate([theirs[:-1:2], theirs[-1:]])
    assert_same(ours_trace(name, FLOW, "flow", x, times.astype(np.float32)), theirs)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_each_step_of_consistency_sampling_equals_diffusers(steps):
    scheduler = diffusers.SCMScheduler(sigma_data=1.0)
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    angles = scheduler.timesteps.numpy()
    x = np.random.default_rng(steps).normal(size=SHAPE).astype(np.float32)
    predict, mix = predictor(torch), torch.from_numpy(MIX)
    theirs, draws = [x], iter(noises(steps))
    for angle in scheduler.timesteps[:-1]:
        state = torch.from_numpy(theirs[-1])
        with _noise_of(draws):
            output = predict(state, float(angle) / (np.pi / 2), mix)
            theirs.append(scheduler.step(output, angle, state).prev_sample.numpy())
    process, times = gaussian.trigonometric(), (angles / (np.pi / 2)).astype(np.float32)
    assert_same(ours_trace("consistency", process, "v", x, times), np.stack(theirs))


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_each_step_of_edm_equals_diffusers(name, steps):
    cls = {"euler": diffusers.EDMEulerScheduler, "dpmpp_2m": diffusers.EDMDPMSolverMultistepScheduler}[name]
    scheduler, process = cls(), gaussian.edm()
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double().numpy()
    low, high = np.log(0.002), np.log(80)
    times = np.maximum((np.log(sigmas[:-1]) - low) / (high - low), 1e-7)  # sigma_min, which is not yet the data
    times = np.append(times, 0.0).astype(np.float32)
    x = np.random.default_rng(steps).normal(size=SHAPE).astype(np.float32) * 80
    inner, mix = predictor(torch), torch.from_numpy(MIX)
    state, theirs = torch.from_numpy(x), [x]
    for t, time in zip(scheduler.timesteps, times[:-1], strict=True):
        state = scheduler.step(inner(scheduler.scale_model_input(state, t), float(time), mix), t, state).prev_sample
        theirs.append(state.numpy())
    scaled = lambda x, t_B: _predict(gaussian.input_scale(process, t_B).reshape(-1, 1, 1, 1) * x, t_B)
    _, states = sampling.trace(sampling.solver(name), process, "edm", scaled, jnp.asarray(x), times)
    # step by step in units of each step's own noise level, which falls from 80 to 0.002
    for ours, wanted, unit in zip(states, theirs[1:], np.append(sigmas[1:-1], 1.0), strict=True):
        np.testing.assert_allclose(ours / max(unit, 1.0), wanted / max(unit, 1.0), atol=5e-5)

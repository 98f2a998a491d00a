"""Scheduler configurations against the schedulers that diffusers builds from them."""

import dataclasses
import inspect
import sys
import warnings

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lgm import sampling
from lgm.interop.schedulers import read_schedule, write_schedule

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
DDIM, DDPM, PNDM = diffusers.DDIMScheduler, diffusers.DDPMScheduler, diffusers.PNDMScheduler
EULER, ANCESTRAL = diffusers.EulerDiscreteScheduler, diffusers.EulerAncestralDiscreteScheduler
DPM, UNIPC = diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler
HEUN, LMS = diffusers.HeunDiscreteScheduler, diffusers.LMSDiscreteScheduler

CASES = {
    "sd15 ddim": (DDIM, dict(SD, steps_offset=1, clip_sample=False, set_alpha_to_one=False)),
    "sd2 v": (DDIM, dict(SD, steps_offset=1, clip_sample=False, prediction_type="v_prediction",
                         rescale_betas_zero_snr=True, timestep_spacing="trailing")),
    "ddim clipped": (DDIM, SD),
    "ddim of x": (DDIM, dict(SD, clip_sample=False, prediction_type="sample")),
    "ddim linspace": (DDIM, dict(SD, clip_sample=False, timestep_spacing="linspace")),
    "dit": (DDIM, dict(beta_schedule="linear", clip_sample=False)),
    "cosine": (DDIM, dict(beta_schedule="squaredcos_cap_v2", clip_sample=False)),
    "ddpm clipped": (DDPM, SD),
    "ddpm trailing": (DDPM, dict(SD, clip_sample=False, timestep_spacing="trailing")),
    "sd15": (PNDM, dict(SD, skip_prk_steps=True, steps_offset=1)),
    "pndm v": (PNDM, dict(SD, skip_prk_steps=True, prediction_type="v_prediction", set_alpha_to_one=True)),
    # as SDXL's file has it, with keys of the class that it was made from
    "sdxl": (EULER, dict(SD, steps_offset=1, timestep_spacing="leading", set_alpha_to_one=False, skip_prk_steps=True)),
    "euler linspace": (EULER, SD),
    "euler v": (EULER, dict(SD, prediction_type="v_prediction")),
    "euler karras": (EULER, dict(SD, use_karras_sigmas=True, timestep_spacing="trailing")),
    "euler exponential": (EULER, dict(SD, use_exponential_sigmas=True)),
    "euler ancestral": (ANCESTRAL, SD),
    "heun": (HEUN, SD),
    "heun karras clipped": (HEUN, dict(SD, use_karras_sigmas=True, clip_sample=True)),
    "lms": (LMS, SD),
    "dpm++": (DPM, SD),
    "dpm++ leading": (DPM, dict(SD, steps_offset=1, timestep_spacing="leading")),
    "dpm++ karras": (DPM, dict(SD, use_karras_sigmas=True)),
    "dpm++ lu, heun": (DPM, dict(SD, use_lu_lambdas=True, solver_type="heun")),
    "dpm++ 1 v": (DPM, dict(SD, solver_order=1, prediction_type="v_prediction")),
    "dpm++ 3 to the first entry": (DPM, dict(SD, solver_order=3, final_sigmas_type="sigma_min")),
    "dpm++ sde karras": (DPM, dict(SD, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)),
    "dpm++ cosine, clipped": (DPM, dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1)),
    "dpm++ of a flow": (DPM, dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)),
    "unipc": (UNIPC, dict(SD, timestep_spacing="trailing")),
    "unipc 3": (UNIPC, dict(SD, solver_order=3)),
    "unipc karras": (UNIPC, dict(SD, use_karras_sigmas=True)),
    "unipc of a flow": (UNIPC, dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)),
}  # fmt: skip


def network(x, t):
    """A curved field that no solver integrates exactly, of torch tensors or ours."""
    numbers = torch if isinstance(x, torch.Tensor) else jnp
    return numbers.tanh(0.7 * x * (1.3 - t)) + 0.3 * numbers.cos(3 * t + x)


def predict(x, t_B, arguments):
    return network(x, t_B.reshape(-1, 1, 1, 1))


def their_sample(theirs, noise, steps, monkeypatch):
    """diffusers' loop; its step noise is ours, a function of the step's number."""
    numbers = iter(range(1000))

    def randn(shape, **_):
        key = jax.random.fold_in(jax.random.key(0), next(numbers))
        draw = jax.random.normal(key, (shape[0], *shape[2:], shape[1]))
        return torch.from_numpy(np.asarray(draw).transpose(0, 3, 1, 2).copy())

    module = sys.modules[type(theirs).__module__]
    monkeypatch.setattr(module, "randn_tensor", randn, raising=False)
    theirs.set_timesteps(steps)
    x = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()) * theirs.init_noise_sigma
    for t in theirs.timesteps:
        told = torch.as_tensor(t).float() / 1000
        x = theirs.step(network(theirs.scale_model_input(x, t), told), t, x).prev_sample
    return x.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("case", CASES)
def test_what_is_sampled_equals_diffusers(case, monkeypatch):
    """At numbers of steps that divide 1000 and that do not, few and more than multistep solvers call few."""
    cls, options = CASES[case]
    theirs = cls(**{k: v for k, v in options.items() if k in inspect.signature(cls).parameters})
    schedule = read_schedule({**theirs.config, **options, "_class_name": cls.__name__})
    process = schedule.build()
    noise = np.random.default_rng(0).standard_normal((1, 2, 2, 3)).astype(np.float32)
    for steps in (4, 7, 20):
        expected = their_sample(theirs, noise, steps, monkeypatch)
        walk = schedule.walk(steps)
        start = noise * float(process.b(walk.times[0])) if schedule.scaled_start else noise
        method = schedule.method(walk.times)
        ours = sampling.loop(method, process, schedule.target, predict, start, walk, (), jax.random.key(0))
        error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
        # float32 tables of noise levels on either side, some of them interpolated; a wrong entry is at 1e-3
        assert error < 1e-4, (steps, error)


FLOWS = {
    "sd3": (dict(shift=3.0), False),
    "schnell": (dict(shift=1.0), True),
    "dev": (dict(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
                 max_image_seq_len=4096, shift=3.0), True),
    "sd3.5 dynamic": (dict(use_dynamic_shifting=True, time_shift_type="linear", shift=3.0), False),
    "terminal": (dict(shift=2.0, shift_terminal=0.1), True),
}  # fmt: skip


# a terminal shift of one single step is a division by zero in diffusers
@pytest.mark.parametrize("case, steps", [(c, n) for c in FLOWS for n in (1, 4, 28) if c != "terminal" or n > 1])
def test_times_of_flows_equal_diffusers(case, steps):
    options, even = FLOWS[case]
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    tokens = 1024
    mu = None
    if options.get("use_dynamic_shifting"):
        config = theirs.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
    sigmas = np.linspace(1.0, 1 / steps, steps) if even else None
    theirs.set_timesteps(steps, sigmas=sigmas, mu=mu)
    schedule = read_schedule(dict(theirs.config, _class_name="FlowMatchEulerDiscreteScheduler"))
    times = schedule.walk(steps, tokens, even).times
    np.testing.assert_allclose(times, theirs.sigmas.numpy(), atol=1e-6)
    np.testing.assert_allclose(times[:-1] * 1000, theirs.timesteps.numpy(), atol=1e-3)


@pytest.mark.parametrize("case", ["sd15 ddim", "sd2 v", "sdxl", "dit", "sd3", "dev"])
def test_what_is_written_is_read_back_and_accepted_by_diffusers(case):
    cls, options = CASES.get(case) or (diffusers.FlowMatchEulerDiscreteScheduler, FLOWS[case][0])
    options = {k: v for k, v in options.items() if k in inspect.signature(cls).parameters}
    schedule = read_schedule(dict(cls(**options).config, _class_name=cls.__name__))
    assert write_schedule(schedule) == schedule.config
    written = write_schedule(dataclasses.replace(schedule, config=None))
    theirs = getattr(diffusers, written["_class_name"]).from_config(written)
    again = read_schedule(dict(theirs.config, _class_name=written["_class_name"]))
    assert again.process == schedule.process and again.target == schedule.target
    np.testing.assert_array_equal(again.walk(10, 1024).times, schedule.walk(10, 1024).times)


def test_what_has_no_equal_is_one_line():
    with pytest.raises(ValueError, match="_class_name='DDIMSchedule' is not known; did you mean 'DDIMScheduler'"):
        read_schedule({"_class_name": "DDIMSchedule"})
    with pytest.raises(ValueError, match="prediction_type='noise' is not known"):
        read_schedule({"_class_name": "DDIMScheduler", "prediction_type": "noise"})
    with pytest.raises(ValueError, match="use_beta_sigmas=True is not supported"):
        read_schedule({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True})
    with pytest.raises(ValueError, match="scheduler_config.json: algorithm_type='dpmsolver' has no equal here"):
        read_schedule({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"})
    with pytest.raises(ValueError, match="num_train_timesteps=500 has no equal here; supported: 1000"):
        read_schedule({"_class_name": "DDIMScheduler", "num_train_timesteps": 500})
    schedule = read_schedule({"_class_name": "DDIMScheduler"})
    with pytest.raises(ValueError, match="steps=1001 must lie between 1 and the 1000 steps"):
        schedule.walk(1001)
    with pytest.raises(ValueError, match="give the number of tokens"):
        read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}).walk(4)


def test_a_solver_that_is_missing_is_replaced_with_a_warning(monkeypatch):
    monkeypatch.setattr("lgm.interop.schedulers.SOLVERS", {"euler": None, "ddim": None})
    with pytest.warns(UserWarning, match="no solver of PNDMScheduler; sampling with ddim"):
        assert read_schedule({"_class_name": "PNDMScheduler"}).solver == "ddim"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_schedule({"_class_name": "EulerDiscreteScheduler"}).solver == "euler"

"""Scheduler configurations against the schedulers that diffusers builds from them."""

import dataclasses
import warnings

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest

from lgm.interop.schedulers import read_schedule, write_schedule

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)

CASES = {
    "sd15 ddim": (diffusers.DDIMScheduler, dict(SD, steps_offset=1, clip_sample=False, set_alpha_to_one=False)),
    "sd2 v": (diffusers.DDIMScheduler, dict(SD, steps_offset=1, clip_sample=False, prediction_type="v_prediction",
                                            rescale_betas_zero_snr=True, timestep_spacing="trailing")),
    "sdxl": (diffusers.EulerDiscreteScheduler, dict(SD, steps_offset=1, timestep_spacing="leading")),
    "euler linspace": (diffusers.EulerDiscreteScheduler, SD),
    "euler karras": (diffusers.EulerDiscreteScheduler, dict(SD, use_karras_sigmas=True, timestep_spacing="trailing")),
    "euler exponential": (diffusers.EulerDiscreteScheduler, dict(SD, use_exponential_sigmas=True)),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, dict(SD)),
    "dpm++ leading": (diffusers.DPMSolverMultistepScheduler, dict(SD, steps_offset=1, timestep_spacing="leading")),
    "unipc": (diffusers.UniPCMultistepScheduler, dict(SD, timestep_spacing="trailing")),
    "euler ancestral": (diffusers.EulerAncestralDiscreteScheduler, SD),
    "dit": (diffusers.DDIMScheduler, dict(beta_schedule="linear", clip_sample=False)),
    "cosine": (diffusers.DDIMScheduler, dict(beta_schedule="squaredcos_cap_v2", clip_sample=False)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [4, 7, 50])
def test_steps_and_noise_levels_of_diffusion_equal_diffusers(case, steps):
    cls, options = CASES[case]
    theirs = cls(**options)
    theirs.set_timesteps(steps)
    schedule = read_schedule(dict(theirs.config, _class_name=cls.__name__))
    times = schedule.times(steps)
    assert len(times) == steps + 1
    np.testing.assert_allclose(times[:-1] * 1000, theirs.timesteps.numpy(), atol=2e-3)
    process = schedule.build()
    a, b = (np.asarray(f(jnp.asarray(times)), np.float64) for f in (process.a, process.b))
    if cls is diffusers.DDIMScheduler:
        alpha_bar = theirs.alphas_cumprod.double().numpy()[theirs.timesteps.numpy()]
        np.testing.assert_allclose(a[:-1] ** 2, alpha_bar, atol=2e-6)
        if options.get("set_alpha_to_one") is False:
            final = float(theirs.final_alpha_cumprod)
            np.testing.assert_allclose([a[-1] ** 2, b[-1] ** 2], [final, 1 - final], atol=1e-6)
        else:
            assert times[-1] == 0
    elif "Multistep" in cls.__name__:
        sigmas = theirs.sigmas.numpy()
        np.testing.assert_allclose((b / a)[:-1], sigmas[:-1], rtol=1e-3)
    else:
        # between the table's entries diffusers interpolates sigma, we log sigma
        tolerance = 3e-3 if schedule.spacing == "linspace" else 1e-3
        np.testing.assert_allclose((b / a)[:-1], theirs.sigmas.numpy()[:-1], rtol=tolerance)
        # the sample is theirs divided by sqrt(sigma^2 + 1)
        start = float(theirs.init_noise_sigma) / np.sqrt(float(theirs.sigmas[0]) ** 2 + 1)
        np.testing.assert_allclose(b[0] if schedule.scaled_start else 1.0, start, atol=1e-4)


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
    np.testing.assert_allclose(schedule.times(steps, tokens, even), theirs.sigmas.numpy(), atol=1e-6)
    np.testing.assert_allclose(schedule.times(steps, tokens, even)[:-1] * 1000, theirs.timesteps.numpy(), atol=1e-3)


@pytest.mark.parametrize("case", ["sd15 ddim", "sd2 v", "sdxl", "dit", "sd3", "dev"])
def test_what_is_written_is_read_back_and_accepted_by_diffusers(case):
    cls, options = CASES.get(case) or (diffusers.FlowMatchEulerDiscreteScheduler, FLOWS[case][0])
    schedule = read_schedule(dict(cls(**options).config, _class_name=cls.__name__))
    assert write_schedule(schedule) == schedule.config
    written = write_schedule(dataclasses.replace(schedule, config=None))
    theirs = getattr(diffusers, written["_class_name"]).from_config(written)
    again = read_schedule(dict(theirs.config, _class_name=written["_class_name"]))
    assert again.process == schedule.process and again.target == schedule.target
    np.testing.assert_array_equal(again.times(10, 1024), schedule.times(10, 1024))


def test_what_has_no_equal_is_one_line():
    with pytest.raises(ValueError, match="_class_name='DDIMSchedule' is not known; did you mean 'DDIMScheduler'"):
        read_schedule({"_class_name": "DDIMSchedule"})
    with pytest.raises(ValueError, match="prediction_type='noise' is not known"):
        read_schedule({"_class_name": "DDIMScheduler", "prediction_type": "noise"})
    with pytest.raises(ValueError, match="use_beta_sigmas=True is not supported"):
        read_schedule({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True})
    schedule = read_schedule({"_class_name": "DDIMScheduler"})
    with pytest.raises(ValueError, match="steps=1001 must lie between 1 and the 1000 steps"):
        schedule.times(1001)
    with pytest.raises(ValueError, match="give the number of tokens"):
        read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}).times(4)


def test_a_solver_that_is_missing_is_replaced_with_a_warning(monkeypatch):
    monkeypatch.setattr("lgm.interop.schedulers.SOLVERS", {"euler": None, "ddim": None})
    with pytest.warns(UserWarning, match="no solver of PNDMScheduler; sampling with ddim"):
        assert read_schedule({"_class_name": "PNDMScheduler"}).solver == "ddim"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_schedule({"_class_name": "EulerDiscreteScheduler"}).solver == "euler"

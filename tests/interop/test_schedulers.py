"""Scheduler configurations against the schedulers that diffusers builds from them."""

import dataclasses
import inspect
import random
import types

import diffusers
import numpy as np
import pytest
from toy_sampling import our_sample, predictor, relative_error, their_sample

from lgm import sampling
from lgm.drawing import _rounded_up
from lgm.interop.scheduler_keys import DEFAULTS
from lgm.interop.schedulers import read_schedule, write_schedule

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
DDIM, DDPM, PNDM = diffusers.DDIMScheduler, diffusers.DDPMScheduler, diffusers.PNDMScheduler
EULER, ANCESTRAL = diffusers.EulerDiscreteScheduler, diffusers.EulerAncestralDiscreteScheduler
DPM, UNIPC = diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler
LCM, TCD = diffusers.LCMScheduler, diffusers.TCDScheduler
KDPM2, KDPM2A = diffusers.KDPM2DiscreteScheduler, diffusers.KDPM2AncestralDiscreteScheduler
DEIS, SINGLESTEP = diffusers.DEISMultistepScheduler, diffusers.DPMSolverSinglestepScheduler
EDM, EDM_DPM = diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler
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
    "euler zero terminal": (EULER, dict(SD, prediction_type="v_prediction", rescale_betas_zero_snr=True,
                                        use_karras_sigmas=True, timestep_spacing="trailing")),
    "euler beta": (EULER, dict(SD, use_beta_sigmas=True, final_sigmas_type="sigma_min")),
    "heun": (HEUN, SD),
    "heun karras clipped": (HEUN, dict(SD, use_karras_sigmas=True, clip_sample=True)),
    "lms": (LMS, SD),
    "dpm 2 karras": (KDPM2, dict(SD, use_karras_sigmas=True)),
    "dpm 2 a": (KDPM2A, dict(SD, timestep_spacing="trailing")),
    "deis": (DEIS, dict(SD, solver_order=3)),
    "deis karras": (DEIS, dict(SD, use_karras_sigmas=True, prediction_type="v_prediction")),
    "dpm++ 2s": (SINGLESTEP, dict(SD, lower_order_final=True)),
    "dpm++ 2s sde karras": (SINGLESTEP, dict(SD, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)),
    "dpm++": (DPM, SD),
    "dpm++ leading": (DPM, dict(SD, steps_offset=1, timestep_spacing="leading")),
    "dpm++ karras": (DPM, dict(SD, use_karras_sigmas=True)),
    "dpm++ lu, heun": (DPM, dict(SD, use_lu_lambdas=True, solver_type="heun")),
    "dpm++ 1 v": (DPM, dict(SD, solver_order=1, prediction_type="v_prediction")),
    "dpm++ 3 to the first entry": (DPM, dict(SD, solver_order=3, final_sigmas_type="sigma_min")),
    "dpm++ sde karras": (DPM, dict(SD, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)),
    "dpm++ cosine, clipped": (DPM, dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1)),
    "dpm++ of a flow": (DPM, dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)),
    "dpm++ zero terminal": (DPM, dict(SD, prediction_type="v_prediction", rescale_betas_zero_snr=True,
                                      timestep_spacing="trailing")),
    "pndm of runge-kutta": (PNDM, dict(SD, steps_offset=1)),
    "pndm v of runge-kutta": (PNDM, dict(SD, prediction_type="v_prediction", set_alpha_to_one=True)),
    "unipc of noise": (UNIPC, dict(SD, predict_x0=False, final_sigmas_type="sigma_min")),
    "unipc to the end": (UNIPC, dict(SD, lower_order_final=False, final_sigmas_type="sigma_min")),
    "euler karras within bounds": (EULER, dict(SD, use_karras_sigmas=True, sigma_min=0.1, sigma_max=7.0)),
    "heun beta below": (HEUN, dict(SD, use_beta_sigmas=True, sigma_max=9.0)),  # which has no such key, and looks for it
    "dpm++ 2s to the first entry": (SINGLESTEP, dict(SD, final_sigmas_type="sigma_min", lower_order_final=True)),
    # Playground's and CosXL's
    "edm": (EDM, {}),
    "edm v": (EDM, dict(sigma_max=120.0, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction",
                        final_sigmas_type="sigma_min")),
    "edm dpm++": (EDM_DPM, dict(rho=5.0)),
    "edm dpm++ 3": (EDM_DPM, dict(solver_order=3, euler_at_final=True, prediction_type="v_prediction")),
    "edm dpm++ sde": (EDM_DPM, dict(algorithm_type="sde-dpmsolver++", solver_type="heun")),
    "lcm": (LCM, dict(SD, clip_sample=True)),
    "lcm v": (LCM, dict(SD, prediction_type="v_prediction", original_inference_steps=40, timestep_scaling=5.0)),
    "tcd": (TCD, SD),
    "tcd v": (TCD, dict(SD, prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=True)),
    "unipc": (UNIPC, dict(SD, timestep_spacing="trailing")),
    "unipc 3": (UNIPC, dict(SD, solver_order=3)),
    # to sigma_min, for diffusers' own last step to the data is inf x 0 under bh1
    "unipc bh1": (UNIPC, dict(SD, solver_type="bh1", final_sigmas_type="sigma_min")),
    "unipc not corrected": (UNIPC, dict(SD, disable_corrector=[0, 2, 99], solver_order=3)),
    "unipc karras": (UNIPC, dict(SD, use_karras_sigmas=True)),
    "unipc of a flow": (UNIPC, dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_sampled_equals_diffusers(case, monkeypatch):
    """At numbers of steps that divide 1000 and that do not, few and more than multistep solvers call few."""
    cls, options = CASES[case]
    theirs = cls.from_config(options | {"_class_name": cls.__name__})
    schedule = read_schedule({**theirs.config, **options, "_class_name": cls.__name__})
    for steps in (4, 7, 20):
        expected = their_sample(theirs, steps, monkeypatch)
        error = relative_error(our_sample(schedule, steps), expected)
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


def test_a_terminal_shift_of_one_step_is_refused():
    with pytest.raises(ValueError, match="shift_terminal=0.1 places the last of several"):
        read_schedule(dict(_class_name="FlowMatchEulerDiscreteScheduler", **FLOWS["terminal"][0])).timesteps(1)


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
    times = schedule.timesteps(steps, tokens, even).times
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
    np.testing.assert_array_equal(again.timesteps(10, 1024).times, schedule.timesteps(10, 1024).times)


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_class_has_the_keys_that_diffusers_has(name):
    """Their names and defaults; others in its file say nothing."""
    parameters = inspect.signature(getattr(diffusers, name)).parameters
    assert DEFAULTS[name].keys() == parameters.keys()
    for key, default in DEFAULTS[name].items():
        assert default == parameters[key].default, key
    foreign = {k: v for said in DEFAULTS.values() for k, v in said.items() if k not in parameters}
    foreign |= {k: True for k in foreign if k.startswith(("use_", "rescale", "thresh", "clip_s", "invert", "stoch"))}
    plain = {"_class_name": name, "skip_prk_steps": True}
    with_others = read_schedule({**foreign, **plain})
    assert with_others == read_schedule(plain)
    if not with_others.dynamic:
        np.testing.assert_array_equal(with_others.timesteps(8).times, read_schedule(plain).timesteps(8).times)


def test_a_ddim_file_made_from_one_of_dpm_keeps_its_own_timesteps():
    schedule = read_schedule({"_class_name": "DDIMScheduler", **SD, "use_karras_sigmas": True})
    np.testing.assert_allclose(schedule.timesteps(8).times[:3] * 1000, [875, 750, 625], atol=1e-3)


@pytest.mark.parametrize("cls, shift", [(UNIPC, 1.0), (UNIPC, 3.0), (DPM, 1.0), (DPM, 5.0)])
def test_a_flow_of_whole_timesteps_is_told_those_of_diffusers(cls, shift):
    """UniPC's first level is 1 - 1e-6, and what it tells is cut: 999."""
    options = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    theirs, schedule = cls(**options), read_schedule(dict(options, _class_name=cls.__name__))
    for steps in range(1, 60):
        theirs.set_timesteps(steps)
        walk = schedule.timesteps(steps)
        told = walk.times[:-1] if walk.inputs is None else walk.inputs
        np.testing.assert_array_equal(np.round(told * 1000), theirs.timesteps.numpy())
        np.testing.assert_allclose(walk.times, theirs.sigmas.numpy(), atol=1e-7)


def test_a_prediction_that_says_nothing_of_the_first_state_is_one_line():
    options = dict(SD, rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False)
    schedule = read_schedule(dict(options, _class_name="DDIMScheduler"))
    walk, process = schedule.timesteps(4), schedule.build()
    draw = lambda last: sampling.loop(schedule.method(walk.times), process, "eps", predictor(process),
                                      np.ones((1, 2, 2, 3)), walk, (), last=last)  # fmt: skip
    with pytest.raises(ValueError, match="target 'eps' says nothing of the data at t=0.999"):
        draw(None)
    assert np.isfinite(draw(2)).all()  # as an image may begin


def test_karras_levels_under_zero_terminal_snr_begin_at_4096():
    schedule = read_schedule(dict(SD, _class_name="EulerDiscreteScheduler", prediction_type="v_prediction",
                                  rescale_betas_zero_snr=True, use_karras_sigmas=True, timestep_spacing="trailing"))
    process, times = schedule.build(), schedule.timesteps(8).times
    sigma = np.asarray(process.b(times[:5]) / process.a(times[:5]))
    np.testing.assert_allclose(sigma, [4096, 1892, 794, 295, 93], rtol=6e-3)


LENGTHS = (1, 2, 3, 5, 8, 20, 50, 999, 1000)


@pytest.mark.parametrize("name", [n for n in DEFAULTS if not n.startswith(("FlowMatch", "EDM"))])
def test_every_grid_is_that_of_diffusers(name):
    """Timesteps and noise levels of every spacing and ramp, at seeded numbers of steps."""
    cls, draw = getattr(diffusers, name), random.Random(name)
    keys, compared = DEFAULTS[name], 0
    cases = 8 if name.startswith("KDPM2") else 25  # whose classes look each of 1,000 timesteps up when they are made
    for _ in range(cases):
        options = dict(SD, steps_offset=1, skip_prk_steps=True)
        options["timestep_spacing"] = draw.choice(["leading", "trailing", "linspace"])
        if name == "DPMSolverSinglestepScheduler":  # which has but one
            options["timestep_spacing"] = "linspace"
        options["prediction_type"] = draw.choice(["epsilon", "v_prediction"])
        options["rescale_betas_zero_snr"] = draw.random() < 0.4
        ramp = draw.choice([k for k in keys if k.startswith("use_") and "flow" not in k and "dyn" not in k] or [""])
        options |= {ramp: True} if draw.random() < 0.5 else {}
        steps = draw.choice(LENGTHS[:7] if ramp in options else LENGTHS)
        if steps >= 999 and options["timestep_spacing"] == "leading":
            options["steps_offset"] = 0  # or the first would lie beyond the table
        if name == "PNDMScheduler" and (options["timestep_spacing"] == "linspace" or 1000 % steps):
            options["timestep_spacing"] = "leading"
        theirs = cls(**{k: v for k, v in options.items() if k in keys})
        if steps > 50 and name in ("LCMScheduler", "TCDScheduler"):
            with pytest.raises(ValueError, match="at most the 50"):
                read_schedule(dict(options, _class_name=name)).timesteps(steps)
            continue
        theirs.set_timesteps(steps)
        told = theirs.timesteps.numpy().astype(float)
        halves = [0, *range(1, 2 * steps - 1, 2)]
        once = {"HeunDiscreteScheduler": halves, "PNDMScheduler": np.unique(told, True)[1][::-1]}
        pick = slice(None, None, 2) if name.startswith("KDPM2") else once.get(name, slice(None))
        of_sigmas = halves if name.startswith("KDPM2") else pick
        schedule = read_schedule({**theirs.config, **options, "_class_name": name})
        walk = schedule.timesteps(steps)
        ours = 1000 * (walk.times[:-1] if walk.inputs is None else walk.inputs)
        # to 5e-3 of an entry: theirs are found in float32 tables of 1 - alpha_bar; where they cut what they find to a
        # whole number, 998.99999 becomes 998
        atol = 1.001 if schedule.whole else 5e-3
        np.testing.assert_allclose(ours, told[pick], atol=atol, err_msg=str((steps, options)))
        if hasattr(theirs, "sigmas"):
            process = schedule.build()
            sigma = np.asarray(process.b(walk.times[:-1]) / process.a(walk.times[:-1]))
            np.testing.assert_allclose(sigma, theirs.sigmas.numpy()[:-1][of_sigmas], rtol=1e-3, err_msg=str(options))
        compared += 1
    assert compared > 0.4 * cases


def test_what_has_no_equal_is_one_line():
    with pytest.raises(ValueError, match="_class_name='DDIMSchedule' is not known; did you mean 'DDIMScheduler'"):
        read_schedule({"_class_name": "DDIMSchedule"})
    with pytest.raises(ValueError, match="prediction_type='noise' is not known"):
        read_schedule({"_class_name": "DDIMScheduler", "prediction_type": "noise"})
    with pytest.raises(ValueError, match="thresholding=True is not supported"):
        read_schedule({"_class_name": "DDIMScheduler", "thresholding": True})
    with pytest.raises(ValueError, match="use_karras_sigmas and use_beta_sigmas exclude each other"):
        read_schedule({"_class_name": "LMSDiscreteScheduler", "use_karras_sigmas": True, "use_beta_sigmas": True})
    with pytest.raises(ValueError, match="'IPNDMScheduler' is not known; (did you mean|there are) .*Scheduler"):
        read_schedule({"_class_name": "IPNDMScheduler"})
    with pytest.raises(ValueError, match="DPMSolverSDEScheduler' is not read; a KDPM2DiscreteScheduler with --solver"):
        read_schedule({"_class_name": "DPMSolverSDEScheduler"})
    for said in (dict(predict_x0=False), dict(lower_order_final=False)):  # diffusers' own result is NaN
        with pytest.raises(ValueError, match=f"{[*said][0]}=False of UniPC needs final_sigmas_type='sigma_min'"):
            read_schedule({"_class_name": "UniPCMultistepScheduler", **said})
    with pytest.raises(ValueError, match="sigma_max=-1 is not a finite number above 0 or null"):
        read_schedule({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "sigma_max": -1})
    wide = read_schedule({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "sigma_max": 500.0})
    with pytest.raises(ValueError, match="sigma_max=500 must lie between the 0.01.* and 157.* of the noise levels"):
        wide.timesteps(4)
    with pytest.raises(ValueError, match="steps=3 of PNDM's skip_prk_steps=False must be at least 4"):
        read_schedule({"_class_name": "PNDMScheduler"}).timesteps(3)
    with pytest.raises(ValueError, match="scheduler_config.json: shift=inf must be a finite number"):
        read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": float("inf")})
    with pytest.raises(ValueError, match="scheduler_config.json: algorithm_type='dpmsolver' has no equal here"):
        read_schedule({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"})
    with pytest.raises(ValueError, match="num_train_timesteps=500 has no equal here; supported: 1000"):
        read_schedule({"_class_name": "DDIMScheduler", "num_train_timesteps": 500})
    schedule = read_schedule({"_class_name": "DDIMScheduler"})
    with pytest.raises(ValueError, match="steps=1001 must lie between 1 and the 1000 steps"):
        schedule.timesteps(1001)
    with pytest.raises(ValueError, match="give the number of tokens"):
        read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}).timesteps(4)


BEGINNINGS = [("StableDiffusionImg2ImgPipeline", EULER, False), ("StableDiffusionXLImg2ImgPipeline", HEUN, False),
              ("StableDiffusion3Img2ImgPipeline", diffusers.FlowMatchEulerDiscreteScheduler, True),
              ("StableDiffusion3Img2ImgPipeline", diffusers.FlowMatchHeunDiscreteScheduler, True),
              ("FluxImg2ImgPipeline", diffusers.FlowMatchEulerDiscreteScheduler, True)]  # fmt: skip


@pytest.mark.parametrize("pipeline, scheduler, rounds_up", BEGINNINGS)
def test_an_image_starts_where_the_pipeline_has_it(pipeline, scheduler, rounds_up):
    """Its number of steps at every strength of two digits that makes one."""
    holder = types.SimpleNamespace(scheduler=scheduler())
    begin = getattr(diffusers, pipeline).get_timesteps
    for steps in (1, 3, 8, 28, 50):
        holder.scheduler.set_timesteps(steps)
        for strength in np.arange(1, 101) / 100:
            theirs = len(begin(holder, steps, float(strength), None)[0])
            theirs = (theirs + 1) // 2 if holder.scheduler.order == 2 else theirs
            wanted = _rounded_up(float(strength), steps) if rounds_up else float(strength)
            ours = len(sampling.last_part(np.linspace(1, 0, steps + 1), wanted)) - 1
            assert ours == max(theirs, 1), (steps, strength)

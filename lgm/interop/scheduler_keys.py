"""The keys of diffusers' schedulers and their defaults, by class.

A file often keeps keys of the class that it was made from, which its own class never reads: a class obeys its own.
"""

import math
from collections.abc import Mapping
from typing import Any

from lgm.bounds import is_finite

_TABLE = dict(num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", trained_betas=None,
              prediction_type="epsilon")  # fmt: skip
_NARROW = dict(beta_start=0.00085, beta_end=0.012)
_THRESHOLDING = dict(thresholding=False, dynamic_thresholding_ratio=0.995, sample_max_value=1.0)
_CLIPPING = dict(clip_sample=True, clip_sample_range=1.0)
_RAMPS = dict(use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False)
_RESCALED = dict(rescale_betas_zero_snr=False)
_DYNAMIC = dict(use_dynamic_shifting=False, time_shift_type="exponential")
_FLOW_SIGMAS = dict(use_flow_sigmas=False, flow_shift=1.0)


def _spaced(spacing: str) -> dict[str, Any]:
    return dict(timestep_spacing=spacing, steps_offset=0)


_KARRAS = _TABLE | _RAMPS | _spaced("linspace")
_MULTISTEP = _KARRAS | _THRESHOLDING | _FLOW_SIGMAS | _DYNAMIC | dict(solver_order=2, lower_order_final=True)
_CONSISTENCY = _TABLE | _NARROW | _THRESHOLDING | _CLIPPING | _RESCALED | _spaced("leading") | dict(
    beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True, original_inference_steps=50,
    timestep_scaling=10.0)  # fmt: skip
_EDM = dict(num_train_timesteps=1000, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, sigma_schedule="karras",
            prediction_type="epsilon", rho=7.0, final_sigmas_type="zero")  # fmt: skip

DEFAULTS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": _TABLE | _CLIPPING | _THRESHOLDING | _RESCALED | _spaced("leading") | dict(set_alpha_to_one=True),
    "DDPMScheduler": _TABLE | _CLIPPING | _THRESHOLDING | _RESCALED | _spaced("leading") | dict(
        variance_type="fixed_small"),
    "PNDMScheduler": _TABLE | _spaced("leading") | dict(skip_prk_steps=False, set_alpha_to_one=False),
    "EulerDiscreteScheduler": _KARRAS | _RESCALED | dict(
        interpolation_type="linear", sigma_min=None, sigma_max=None, timestep_type="discrete",
        final_sigmas_type="zero"),
    "EulerAncestralDiscreteScheduler": _TABLE | _RESCALED | _spaced("linspace"),
    "HeunDiscreteScheduler": _KARRAS | _NARROW | _CLIPPING | dict(clip_sample=False),
    "LMSDiscreteScheduler": _KARRAS,
    "KDPM2DiscreteScheduler": _KARRAS | _NARROW,
    "KDPM2AncestralDiscreteScheduler": _KARRAS | _NARROW,
    "DEISMultistepScheduler": _MULTISTEP | dict(algorithm_type="deis", solver_type="logrho"),
    "DPMSolverSinglestepScheduler": _TABLE | _RAMPS | _THRESHOLDING | _FLOW_SIGMAS | _DYNAMIC | dict(
        solver_order=2, algorithm_type="dpmsolver++", solver_type="midpoint", lower_order_final=False,
        final_sigmas_type="zero", lambda_min_clipped=-math.inf, variance_type=None),
    "DPMSolverMultistepScheduler": _MULTISTEP | _RESCALED | dict(
        algorithm_type="dpmsolver++", solver_type="midpoint", euler_at_final=False, use_lu_lambdas=False,
        final_sigmas_type="zero", lambda_min_clipped=-math.inf, variance_type=None),
    "UniPCMultistepScheduler": _MULTISTEP | _RESCALED | dict(
        predict_x0=True, solver_type="bh2", disable_corrector=[], solver_p=None, final_sigmas_type="zero",
        sigma_min=None, sigma_max=None, shift_terminal=None),
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM | _THRESHOLDING | dict(
        solver_order=2, algorithm_type="dpmsolver++", solver_type="midpoint", lower_order_final=True,
        euler_at_final=False),
    "LCMScheduler": _CONSISTENCY,
    "TCDScheduler": _CONSISTENCY,
    "FlowMatchEulerDiscreteScheduler": _RAMPS | _DYNAMIC | dict(
        num_train_timesteps=1000, shift=1.0, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
        max_image_seq_len=4096, invert_sigmas=False, shift_terminal=None, stochastic_sampling=False),
    "FlowMatchHeunDiscreteScheduler": dict(num_train_timesteps=1000, shift=1.0),
}  # fmt: skip


def obeyed(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a class of that name reads from a file: its own keys, at their defaults where the file has none.

    Raises ValueError, one line, for a number that is none or not finite.
    """
    said = {key: config.get(key, default) for key, default in DEFAULTS[name].items()}
    number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
    for key, default in DEFAULTS[name].items():
        if number(default) and said[key] != default and not (number(said[key]) and is_finite(said[key])):
            raise ValueError(f"scheduler_config.json: {key}={said[key]!r} must be a finite number")
    return said

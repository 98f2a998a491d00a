"""diffusers' scheduler_config.json as what it says: a process, a prediction target, a solver and a grid of times."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

from lgm import process as gaussian
from lgm.interop.fields import expect
from lgm.interop.schedules import FLOW_ENTRIES, Schedule
from lgm.parsing import near_miss
from lgm.sampling import SOLVERS

# our solver for each class of theirs; all share the process, so any other solver may be taken instead
SOLVER_OF = {
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "plms",
    "LMSDiscreteScheduler": "lms",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
}
TARGET_OF = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
BETAS_OF = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "squared_cosine"}
_SPACING_OF = {"linspace": "linspace", "leading": "leading", "trailing": "trailing"}
_BY_SIGMA = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
             "LMSDiscreteScheduler")  # fmt: skip
_LINSPACE = (*_BY_SIGMA, "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")  # by default
_CLIP_BY_DEFAULT = {"DDIMScheduler": True, "DDPMScheduler": True, "HeunDiscreteScheduler": False}
# what each class can do besides that has no equal here; keys of other classes stand in its files too and say nothing
_REFUSED = {
    "DDIMScheduler": ("thresholding",),
    "DDPMScheduler": ("thresholding",),
    "EulerDiscreteScheduler": ("sigma_min", "sigma_max"),
    "DPMSolverMultistepScheduler": ("thresholding", "variance_type", "use_dynamic_shifting"),
    "UniPCMultistepScheduler": ("thresholding", "solver_p", "disable_corrector", "use_dynamic_shifting",
                                "shift_terminal"),
    "FlowMatchEulerDiscreteScheduler": ("use_karras_sigmas", "use_exponential_sigmas", "stochastic_sampling",
                                        "invert_sigmas"),
}  # fmt: skip
_FIXED = {
    "DDPMScheduler": {"variance_type": ("fixed_small",)},
    "PNDMScheduler": {"skip_prk_steps": (True,)},
    "EulerDiscreteScheduler": {"interpolation_type": ("linear",), "timestep_type": ("discrete",)},
    "DPMSolverMultistepScheduler": {"algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
                                    "solver_type": ("midpoint", "heun"), "solver_order": (2, 1, 3)},
    "UniPCMultistepScheduler": {"solver_type": ("bh2",), "predict_x0": (True,), "solver_order": (2, 1, 3),
                                "lower_order_final": (True,)},
}  # fmt: skip


def read_schedule(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a scheduler_config.json describes.

    Raises ValueError, one line, for a scheduler or an option that has no equal here. A solver that is not here is
    replaced by a first-order one, with a warning.
    """
    name = config.get("_class_name", "")
    if name not in SOLVER_OF:
        raise ValueError(f"scheduler_config.json: _class_name={name!r} is not known{near_miss(name, SOLVER_OF)}")
    solver = SOLVER_OF[name]
    if solver not in SOLVERS:
        warnings.warn(f"there is no solver of {name}; sampling with ddim instead", stacklevel=2)
        solver = "ddim"
    for key in ("use_beta_sigmas", "trained_betas", *_REFUSED.get(name, ())):
        if config.get(key):
            raise ValueError(f"scheduler_config.json: {key}={config[key]!r} is not supported; only without it")
    for key, allowed in _FIXED.get(name, {}).items():
        _expect(config, key, *allowed)
    _expect(config, "num_train_timesteps", FLOW_ENTRIES)  # what the networks count in
    if name.startswith("FlowMatch"):
        return _flow(config, solver)
    if config.get("use_flow_sigmas") and "Multistep" in name or config.get("prediction_type") == "flow_prediction":
        return _flow_levels(config, solver)
    return _diffusion(config, name, solver)


def _flow(config: Mapping[str, Any], solver: str) -> Schedule:
    ends = (config.get("base_image_seq_len", 256), config.get("base_shift", 0.5)), (
        config.get("max_image_seq_len", 4096), config.get("max_shift", 1.15))  # fmt: skip
    return Schedule(
        process={"name": "rectified_flow"},
        target="flow",
        solver=solver,
        spacing="flow",
        shift=config.get("shift", 1.0),
        dynamic=ends if config.get("use_dynamic_shifting") else None,
        dynamic_kind=config.get("time_shift_type", "exponential"),
        terminal=config.get("shift_terminal"),
        config=dict(config),
    )


def _flow_levels(config: Mapping[str, Any], solver: str) -> Schedule:
    """A multistep scheduler of diffusion put to a flow's noise levels."""
    if solver not in ("dpmpp_2m", "unipc") or not config.get("use_flow_sigmas"):
        raise ValueError("scheduler_config.json: prediction_type='flow_prediction' needs use_flow_sigmas=True of a "
                         "DPMSolverMultistepScheduler or UniPCMultistepScheduler, or a FlowMatchEulerDiscreteScheduler")
    _expect(config, "prediction_type", "flow_prediction")
    _expect(config, "final_sigmas_type", "zero")
    for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas"):
        _expect(config, key, False)
    return Schedule(
        process={"name": "rectified_flow"},
        target="flow",
        spacing="flow_levels",
        shift=config.get("flow_shift", 1.0),
        whole="cut",
        config=dict(config),
        **_multistep(config, solver),
    )


def _multistep(config: Mapping[str, Any], solver: str) -> dict[str, Any]:
    """The solver of a multistep scheduler, as fields of Schedule."""
    order = config.get("solver_order", 2)
    if solver == "dpmpp_2m":
        stochastic = config.get("algorithm_type") == "sde-dpmsolver++"
        if stochastic and order == 3:
            raise ValueError("scheduler_config.json: solver_order=3 of sde-dpmsolver++ is not supported; 1 or 2 is")
        names = {1: "dpmpp_sde", 2: "dpmpp_2m_sde"} if stochastic else {1: "ddim", 2: "dpmpp_2m", 3: "dpmpp_3m"}
        solver = names[order]
    return dict(
        solver=solver,
        order=order,
        exact=config.get("solver_type") == "heun",
        lower_at_end=bool(config.get("lower_order_final", True)),
        euler_at_end=bool(config.get("euler_at_final", False)),
    )


def _diffusion(config: Mapping[str, Any], name: str, solver: str) -> Schedule:
    process = {
        "name": "ddpm",
        "schedule": _named(config, "beta_schedule", "linear", BETAS_OF),
        "beta_start": config.get("beta_start", 1e-4),
        "beta_end": config.get("beta_end", 0.02),
        "steps": config.get("num_train_timesteps", FLOW_ENTRIES),
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
    }
    by_sigma, multistep, dpm = name in _BY_SIGMA, "Multistep" in name, name == "DPMSolverMultistepScheduler"
    spacing = _named(config, "timestep_spacing", "linspace" if name in _LINSPACE else "leading", _SPACING_OF)
    levels = next((k for k, v in _LEVELS.items() if config.get(v) and (k != "lu" or dpm)), "table")
    if name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        to_first = _expect(config, "final_sigmas_type", "zero", "sigma_min") == "sigma_min"
    else:
        to_first = name in ("DDIMScheduler", "PNDMScheduler") and config.get("set_alpha_to_one") is False
    if name == "UniPCMultistepScheduler" and to_first and levels != "table":
        raise ValueError(f"scheduler_config.json: {_LEVELS[levels]}=True of UniPC needs final_sigmas_type='zero'")
    if name == "PNDMScheduler" and spacing == "linspace":
        raise ValueError("scheduler_config.json: timestep_spacing='linspace' of PNDM is not supported; 'leading' is")
    clips = name in _CLIP_BY_DEFAULT and config.get("clip_sample", _CLIP_BY_DEFAULT[name])
    rounded = levels == "karras" and multistep or levels == "lu"
    if dpm and process["schedule"] == "squared_cosine":
        rounded = False
    return Schedule(
        process=process,
        target=_named(config, "prediction_type", "epsilon", TARGET_OF),
        spacing=spacing,
        offset=config.get("steps_offset", 0),
        levels=levels,
        between=by_sigma,
        open_end=multistep,
        stride=name == "DDIMScheduler",
        lowest_lambda=float(config.get("lambda_min_clipped", -math.inf)) if dpm else -math.inf,
        last="first" if to_first else "data",
        scaled_start=by_sigma and spacing in ("linspace", "trailing"),
        whole=("rounded" if rounded else "cut") if multistep and levels != "table" else None,
        clip=float(config.get("clip_sample_range", 1.0)) if clips else None,
        config=dict(config),
        **(_multistep(config, solver) if multistep else dict(solver=solver)),
    )


_LEVELS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "lu": "use_lu_lambdas"}


def write_schedule(schedule: Schedule) -> dict[str, Any]:
    """The scheduler_config.json of a schedule: what it was read from, else DDIM for diffusion and Euler for a flow."""
    if schedule.config is not None:
        return dict(schedule.config)
    if schedule.process["name"] == "rectified_flow":
        name = "FlowMatchEulerDiscreteScheduler"
        config = {"_class_name": name, "num_train_timesteps": 1000, "shift": schedule.shift}
        if schedule.dynamic is not None:
            (base, base_shift), (most, most_shift) = schedule.dynamic
            config |= {"use_dynamic_shifting": True, "time_shift_type": schedule.dynamic_kind}
            config |= {"base_image_seq_len": base, "base_shift": base_shift}
            config |= {"max_image_seq_len": most, "max_shift": most_shift}
        return config | ({"shift_terminal": schedule.terminal} if schedule.terminal else {})
    if schedule.process["name"] != "ddpm" or schedule.target not in TARGET_OF.values():
        described = f"process {schedule.process['name']!r} with target {schedule.target!r}"
        raise ValueError(f"diffusers has no scheduler for {described}; it has them for ddpm (eps, x, v) and flows")
    inverse = lambda table, value: next(k for k, v in table.items() if v == value)
    defaults = inspect.signature(gaussian.ddpm).parameters
    process = {name: schedule.process.get(name, option.default) for name, option in defaults.items()}
    if process["steps"] != FLOW_ENTRIES:
        raise ValueError(f"diffusers' networks count {FLOW_ENTRIES} timesteps, which config.process.steps="
                         f"{process['steps']} are not")
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": process["steps"],
        "beta_schedule": inverse(BETAS_OF, process["schedule"]),
        "beta_start": process["beta_start"],
        "beta_end": process["beta_end"],
        "rescale_betas_zero_snr": process["zero_terminal_snr"],
        "prediction_type": inverse(TARGET_OF, schedule.target),
        "timestep_spacing": schedule.spacing,
        "steps_offset": schedule.offset,
        "set_alpha_to_one": schedule.last == "data",
        "clip_sample": False,
    }


def _named(config: Mapping[str, Any], key: str, default: str, table: Mapping[str, str]) -> str:
    value = config.get(key, default)
    if value not in table:
        raise ValueError(f"scheduler_config.json: {key}={value!r} is not known{near_miss(value, table)}")
    return table[value]


def _expect(config: Mapping[str, Any], key: str, *allowed: Any) -> Any:
    try:
        return expect(config, key, *allowed)
    except ValueError as error:
        raise ValueError(f"scheduler_{error}") from None

"""diffusers' scheduler_config.json as what it says: a process, a prediction target, a solver and a grid of times."""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any

from lgm import gaussian
from lgm.interop.fields import POSITIVE_OR_NONE, expect
from lgm.interop.scheduler_keys import obeyed
from lgm.interop.schedules import FLOW_ENTRIES, Schedule
from lgm.parsing import near_miss
from lgm.untrusted import shown

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
    "KDPM2DiscreteScheduler": "dpm_2",
    "KDPM2AncestralDiscreteScheduler": "dpm_2_ancestral",
    "DEISMultistepScheduler": "deis",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
    "EDMEulerScheduler": "euler",
    "EDMDPMSolverMultistepScheduler": "dpmpp_2m",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
}
TARGET_OF = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
BETAS_OF = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "squared_cosine"}
_SPACING_OF = {"linspace": "linspace", "leading": "leading", "trailing": "trailing"}
_BY_SIGMA = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
             "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")  # fmt: skip
# whose last entry under zero terminal SNR keeps so much signal, sigma = 4096, because they divide by it
_KEEPING = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
            "UniPCMultistepScheduler")  # fmt: skip
_KEPT = 2.0**-12
_OPEN = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler",
         "DEISMultistepScheduler")  # fmt: skip
_UNLIKE = {
    "DPMSolverSDEScheduler": "is not read; a KDPM2DiscreteScheduler with --solver=dpmpp_sde draws like it",
}
_LEVELS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas",
           "lu": "use_lu_lambdas"}  # fmt: skip
VARIANCES = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "learned_range": "learned"}
# what a class can do besides that has no equal here
_REFUSED = ("trained_betas", "thresholding", "solver_p", "invert_sigmas")
_FIXED: dict[str, dict[str, tuple]] = {
    "DDPMScheduler": {"variance_type": tuple(VARIANCES)},
    "EulerDiscreteScheduler": {"interpolation_type": ("linear",), "timestep_type": ("discrete",)},
    "DEISMultistepScheduler": {"solver_order": (2, 1, 3), "use_flow_sigmas": (False,)},
    "DPMSolverSinglestepScheduler": {"algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "solver_order": (2, 1),
                                     "solver_type": ("midpoint",),
                                     "use_flow_sigmas": (False,), "variance_type": (None,)},
    "DPMSolverMultistepScheduler": {"algorithm_type": ("dpmsolver++", "deis", "sde-dpmsolver++"),
                                    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
                                    "solver_order": (2, 1, 3), "use_dynamic_shifting": (False,),
                                    "variance_type": (None,)},
    "EDMDPMSolverMultistepScheduler": {"algorithm_type": ("dpmsolver++", "deis", "sde-dpmsolver++"),
                                       "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
                                       "solver_order": (2, 1, 3)},
    "UniPCMultistepScheduler": {"solver_type": ("bh2", "bh1", "midpoint", "heun", "logrho"),
                                "predict_x0": (True, False), "solver_order": (2, 1, 3),
                                "lower_order_final": (True, False), "use_dynamic_shifting": (False,),
                                "shift_terminal": (None,)},
}  # fmt: skip


def read_schedule(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a scheduler_config.json describes: by the keys that its class has, and by no others.

    Raises ValueError, one line, for a scheduler or an option that has no equal here.
    """
    name = config.get("_class_name", "")
    if name in _UNLIKE:
        raise ValueError(f"scheduler_config.json: _class_name={name!r} {_UNLIKE[name]}")
    if name not in SOLVER_OF:
        hint = near_miss(name, SOLVER_OF) or f"; there are {', '.join(SOLVER_OF)}"
        raise ValueError(f"scheduler_config.json: _class_name={name!r} is not known{hint}")
    said = obeyed(name, config)
    for key in _REFUSED:
        if said.get(key):
            raise ValueError(f"scheduler_config.json: {key}={said[key]!r} is not supported; only without it")
    for key, allowed in _FIXED.get(name, {}).items():
        _expect(said, key, *allowed)
    if not name.startswith("EDM"):
        _expect(said, "num_train_timesteps", FLOW_ENTRIES)  # what the networks count in
    given = [key for key in _LEVELS.values() if said.get(key)]
    if len(given) > 1 and "use_lu_lambdas" not in given:
        raise ValueError(f"scheduler_config.json: {given[0]} and {given[1]} exclude each other; give one")
    if name.startswith("FlowMatch"):
        schedule = _flow(said, SOLVER_OF[name])
    elif name.startswith("EDM"):
        schedule = _preconditioned(said, SOLVER_OF[name])
    elif said.get("use_flow_sigmas") or said["prediction_type"] == "flow_prediction":
        schedule = _flow_levels(said, SOLVER_OF[name])
    else:
        schedule = _diffusion(said, name, SOLVER_OF[name])
    respaced = schedule.levels not in ("table", "lu") and (name, schedule.levels) != ("LMSDiscreteScheduler", "karras")
    if respaced and not name.startswith("EDM"):
        # diffusers looks for these where noise levels are respaced, whether the class has such keys or not
        bounds = tuple(_bound(config, key) for key in ("sigma_min", "sigma_max"))
        schedule = dataclasses.replace(schedule, bounds=bounds)
    return dataclasses.replace(schedule, config=dict(config))


def _bound(config: Mapping[str, Any], key: str) -> float | None:
    value = config.get(key)
    if not POSITIVE_OR_NONE.holds(value):
        raise ValueError(f"scheduler_config.json: {key}={shown(value)} is not {POSITIVE_OR_NONE.words}")
    return value


def _preconditioned(said: Mapping[str, Any], solver: str) -> Schedule:
    """EDM's process, whose networks are given scaled input and log(sigma) / 4 (Karras et al. 2022, 2206.00364)."""
    low, high = said["sigma_min"], said["sigma_max"]
    return Schedule(
        process={"name": "edm", "sigma_min": low, "sigma_max": high, "sigma_data": said["sigma_data"]},
        target=_named(said, "prediction_type", {"epsilon": "edm", "v_prediction": "edm_v"}),
        spacing="edm",
        levels=_named(said, "sigma_schedule", {"karras": "karras", "exponential": "exponential"}),
        rho=said["rho"],
        last="first" if _expect(said, "final_sigmas_type", "zero", "sigma_min") == "sigma_min" else "data",
        start=math.sqrt(high**2 + 1.0),
        **(dict(solver=solver) if solver == "euler" else _multistep(said, solver)),
    )


def _flow(said: Mapping[str, Any], solver: str) -> Schedule:
    dynamic = None
    if said.get("use_dynamic_shifting"):
        dynamic = ((said["base_image_seq_len"], said["base_shift"]), (said["max_image_seq_len"], said["max_shift"]))
    return Schedule(
        process={"name": "rectified_flow"},
        target="flow",
        solver="consistency" if said.get("stochastic_sampling") else solver,
        spacing="flow",
        shift=said["shift"],
        levels=_levels_of(said),
        dynamic=dynamic,
        dynamic_kind=said.get("time_shift_type", "exponential"),
        terminal=said.get("shift_terminal"),
    )


def _flow_levels(said: Mapping[str, Any], solver: str) -> Schedule:
    """A multistep scheduler of diffusion put to a flow's noise levels."""
    if solver not in ("dpmpp_2m", "unipc") or not said.get("use_flow_sigmas"):
        raise ValueError("scheduler_config.json: prediction_type='flow_prediction' needs use_flow_sigmas=True of a "
                         "DPMSolverMultistepScheduler or UniPCMultistepScheduler, or a FlowMatchEulerDiscreteScheduler")
    _expect(said, "prediction_type", "flow_prediction")
    _expect(said, "final_sigmas_type", "zero")
    if solver == "unipc":
        _ends_at_data(said)
    for key in _LEVELS.values():
        _expect(said, key, False)
    return Schedule(
        process={"name": "rectified_flow"},
        target="flow",
        spacing="flow_levels",
        shift=said["flow_shift"],
        whole="cut",
        **_multistep(said, solver),
    )


def _ends_at_data(said: Mapping[str, Any]) -> None:
    """Refuse what UniPC cannot do in a step to the data, which is of infinite width: diffusers' result is NaN."""
    for key in ("predict_x0", "lower_order_final"):
        if not said[key] and (key == "predict_x0" or said["solver_order"] > 1):
            raise ValueError(f"scheduler_config.json: {key}=False of UniPC needs final_sigmas_type='sigma_min', and no "
                             "flow")


def _levels_of(said: Mapping[str, Any]) -> str:
    return next((level for level, key in _LEVELS.items() if said.get(key)), "table")


def _multistep(said: Mapping[str, Any], solver: str) -> dict[str, Any]:
    """The solver of a multistep scheduler, as fields of Schedule."""
    order = said["solver_order"]
    if solver == "dpmpp_2s":
        stochastic = said["algorithm_type"] == "sde-dpmsolver++"
        names = {1: "ddpm", 2: "dpmpp_2s_sde"} if stochastic else {1: "ddim", 2: "dpmpp_2s"}
        return dict(solver=names[order], lower_at_end=bool(said["lower_order_final"]))
    if solver == "dpmpp_2m":
        stochastic = said["algorithm_type"] == "sde-dpmsolver++"
        if stochastic and order == 3:
            # diffusers has the half in the curvature's weight with the wrong sign; k-diffusion has the formula
            raise ValueError("scheduler_config.json: solver_order=3 of sde-dpmsolver++ is not supported; 1 or 2 is, or "
                             "--solver=dpmpp_3m_sde")
        names = {1: "ddpm", 2: "dpmpp_2m_sde"} if stochastic else {1: "ddim", 2: "dpmpp_2m", 3: "dpmpp_3m"}
        solver = names[order]
    numbers = said.get("disable_corrector", [])
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise ValueError(f"scheduler_config.json: disable_corrector={shown(numbers)} should list numbers of steps")
    return dict(
        solver=solver,
        order=order,
        exact=said["solver_type"] == "heun",
        variant="bh1" if said["solver_type"] == "bh1" and solver == "unipc" else "bh2",
        uncorrected=tuple(number for number in numbers if number >= 0),
        of_noise=not said.get("predict_x0", True),
        lower_at_end=bool(said["lower_order_final"]),
        euler_at_end=bool(said.get("euler_at_final")),
    )


def _diffusion(said: Mapping[str, Any], name: str, solver: str) -> Schedule:
    rescaled = bool(said.get("rescale_betas_zero_snr"))
    process = {
        "name": "ddpm",
        "schedule": _named(said, "beta_schedule", BETAS_OF),
        "beta_start": said["beta_start"],
        "beta_end": said["beta_end"],
        "steps": said["num_train_timesteps"],
        "zero_terminal_snr": rescaled,
    }
    if rescaled and name in _KEEPING:
        process["kept"] = _KEPT
    by_sigma, multistep, dpm = name in _BY_SIGMA, name in _OPEN, name.startswith("DPMSolver")
    said = {"timestep_spacing": "linspace", "steps_offset": 0, **said}  # of the class that has but one
    spacing, levels = _named(said, "timestep_spacing", _SPACING_OF), _levels_of(said)
    if "final_sigmas_type" in said:
        to_first = _expect(said, "final_sigmas_type", "zero", "sigma_min") == "sigma_min"
    else:
        to_first = name in ("TCDScheduler", "DEISMultistepScheduler") or (
            name != "LCMScheduler" and said.get("set_alpha_to_one") is False)
    if name == "UniPCMultistepScheduler" and to_first and levels != "table":
        # where diffusers divides by the last step's width, which is none
        raise ValueError(f"scheduler_config.json: {_LEVELS[levels]}=True of UniPC needs final_sigmas_type='zero'")
    if name == "UniPCMultistepScheduler" and not to_first:
        _ends_at_data(said)
    if name == "PNDMScheduler" and spacing == "linspace":
        raise ValueError("scheduler_config.json: timestep_spacing='linspace' of PNDM is not supported; 'leading' is")
    variance = VARIANCES[said["variance_type"]] if name == "DDPMScheduler" else "small"
    if variance != "small" and (spacing == "trailing" or spacing == "leading" and said["steps_offset"]):
        raise ValueError(f"scheduler_config.json: variance_type={said['variance_type']!r} with timestep_spacing="
                         f"{spacing!r} and steps_offset={said['steps_offset']} leaves noise in the result; 'leading' "
                         "without an offset, or 'linspace', end without")
    clips = name != "TCDScheduler" and said.get("clip_sample")  # which has the key and does not use it
    rounded = levels == "karras" and (multistep or name.startswith("KDPM2")) or levels == "lu"
    if name == "DPMSolverMultistepScheduler" and process["schedule"] == "squared_cosine":
        rounded = False
    return Schedule(
        process=process,
        target=_named(said, "prediction_type", TARGET_OF),
        spacing="distilled" if name in ("LCMScheduler", "TCDScheduler") else spacing,
        offset=said["steps_offset"],
        levels=levels,
        between=by_sigma,
        open_end=multistep,
        stride=name in ("DDIMScheduler", "PNDMScheduler"),
        lowest_lambda=float(said["lambda_min_clipped"]) if dpm else -math.inf,
        last="first" if to_first else "data",
        start=None if by_sigma and spacing in ("linspace", "trailing") else 1.0,
        scaled_end=by_sigma and to_first,
        whole="rounded" if rounded else "cut" if multistep and levels != "table" else None,
        clip=float(said["clip_sample_range"]) if clips else None,
        variance=variance,
        distilled=said.get("original_inference_steps", 50),
        scaling=float(said.get("timestep_scaling", 10.0)),
        runge_kutta=said.get("skip_prk_steps") is False,
        **(_multistep(said, solver) if multistep else dict(solver=solver)),
    )


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


def _named(said: Mapping[str, Any], key: str, table: Mapping[str, str]) -> str:
    value = said[key]
    if value not in table:
        raise ValueError(f"scheduler_config.json: {key}={value!r} is not known{near_miss(value, table)}")
    return table[value]


def _expect(config: Mapping[str, Any], key: str, *allowed: Any) -> Any:
    try:
        return expect(config, key, *allowed)
    except ValueError as error:
        raise ValueError(f"scheduler_{error}") from None

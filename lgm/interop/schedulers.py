"""diffusers' scheduler_config.json as what it says: a process, a prediction target, a solver and a grid of times."""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from lgm import process as gaussian
from lgm.parsing import near_miss
from lgm.process import Process, shift_time
from lgm.sampling import SOLVERS

# our solver for each class of theirs; all share the process, so any other solver may be taken instead
SOLVER_OF = {
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "plms",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
}
TARGET_OF = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
BETAS_OF = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "squared_cosine"}
TINY_TIME = 1e-7  # above 0, so that the last step keeps the noise of the table's first entry


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a released model is sampled.

    process: options of `lgm.process.build`. target: what the network predicts. spacing: where in the table (or in
    [0, 1] of a flow) the steps lie, moved up by `offset` entries; `sigmas` respaces them by noise level. between: steps
    may lie between two entries. open_end: entries are spaced for one more step, which would be at the first entry
    (multistep solvers). last: the sampler ends at the data, or at the table's first entry. scaled_start: x_T is b(T)
    noise rather than noise. A flow's times are moved by `shift` or, with `dynamic`, by the number of image tokens:
    (tokens, shift) at either end of a straight line. config: the scheduler_config.json that all this was read from.
    """

    process: dict[str, Any]
    target: str
    solver: str
    spacing: Literal["leading", "trailing", "linspace", "flow"]
    offset: int = 0
    sigmas: Literal["table", "karras", "exponential"] = "table"
    between: bool = False
    open_end: bool = False
    last: Literal["data", "first"] = "data"
    scaled_start: bool = False
    shift: float = 1.0
    dynamic: tuple[tuple[int, float], tuple[int, float]] | None = None
    dynamic_kind: Literal["exponential", "linear"] = "exponential"
    terminal: float | None = None
    config: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False)

    def build(self) -> Process:
        """The process."""
        options = dict(self.process)
        return gaussian.build(options.pop("name"), **options)

    def times(self, steps: int, tokens: int | None = None, even: bool = False) -> np.ndarray:
        """[steps + 1] falling times. A dynamic flow needs the number of image `tokens`.

        `even` spaces a flow's times evenly from 1 to 1 / steps before they are shifted (Flux's pipeline), instead of to
        the scheduler's own lowest noise level (SD3's). Raises ValueError for a number of steps that cannot be.
        """
        if self.spacing == "flow":
            return self._flow_times(steps, tokens, even)
        entries = self.process["steps"]
        if not 0 < steps <= entries:
            raise ValueError(f"steps={steps} must lie between 1 and the {entries} steps that the model was trained on")
        k = self._table_entries(steps, entries)
        last = 0.0 if self.last == "data" else TINY_TIME
        return np.append(k / entries, last).astype(np.float32)

    def _table_entries(self, steps: int, entries: int) -> np.ndarray:
        count = steps + self.open_end
        if self.spacing == "linspace":
            k = np.linspace(0, entries - 1, count)[::-1][:steps]
            k = k if self.between else k.round()
        elif self.spacing == "trailing":
            k = np.arange(entries, 0, -entries / steps).round() - 1
        else:
            k = (np.arange(count) * (entries // count))[::-1][:steps] + self.offset
        if self.sigmas == "table":
            return np.minimum(k, entries - 1)
        process = self.build()
        table = np.asarray(-0.5 * process.log_snr(np.arange(entries) / entries), np.float64)  # log sigma
        low, high = table[[0, -1]] if self.open_end else np.interp(k[[-1, 0]], np.arange(entries), table)
        ramp = np.linspace(0, 1, steps)
        if self.sigmas == "karras":  # Karras et al. 2022, 2206.00364, eq. 5
            levels = 7 * np.log(np.exp(high / 7) + ramp * (np.exp(low / 7) - np.exp(high / 7)))
        else:
            levels = high + ramp * (low - high)
        return np.interp(levels, table, np.arange(entries))

    def _flow_times(self, steps: int, tokens: int | None, even: bool) -> np.ndarray:
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        lowest = 1 / 1000 if self.dynamic else shift_time(1 / 1000, self.shift)
        t = np.linspace(1.0, 1 / steps if even else lowest, steps)
        if self.dynamic is None:
            t = shift_time(t, self.shift)
        else:
            if tokens is None:
                raise ValueError("the times of this schedule depend on the image's size; give the number of tokens")
            (base, base_shift), (most, most_shift) = self.dynamic
            mu = base_shift + (most_shift - base_shift) * (tokens - base) / (most - base)
            t = shift_time(t, math.exp(mu) if self.dynamic_kind == "exponential" else mu)
        if self.terminal:
            t = 1.0 - (1.0 - t) * (1.0 - self.terminal) / (1.0 - t[-1])
        return np.append(t, 0.0).astype(np.float32)


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
    _refuse(config, "use_beta_sigmas", "invert_sigmas", "trained_betas", "thresholding", "stochastic_sampling")
    if name.startswith("FlowMatch"):
        _refuse(config, "use_karras_sigmas", "use_exponential_sigmas")
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
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        raise ValueError("scheduler_config.json: use_flow_sigmas needs a FlowMatchEulerDiscreteScheduler instead")
    process = {
        "name": "ddpm",
        "schedule": _named(config, "beta_schedule", "linear", BETAS_OF),
        "beta_start": config.get("beta_start", 1e-4),
        "beta_end": config.get("beta_end", 0.02),
        "steps": config.get("num_train_timesteps", 1000),
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
    }
    by_sigma = name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler")
    spacing = config.get("timestep_spacing", "linspace" if by_sigma or "Multistep" in name else "leading")
    to_first = config.get("final_sigmas_type") == "sigma_min" or config.get("set_alpha_to_one") is False
    return Schedule(
        process=process,
        target=_named(config, "prediction_type", "epsilon", TARGET_OF),
        solver=solver,
        spacing=spacing,
        offset=config.get("steps_offset", 0),
        sigmas=next((s for s in ("karras", "exponential") if config.get(f"use_{s}_sigmas")), "table"),
        between=by_sigma,
        open_end="Multistep" in name,
        last="first" if to_first else "data",
        scaled_start=by_sigma and spacing in ("linspace", "trailing"),
        config=dict(config),
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


def _refuse(config: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if config.get(key):
            raise ValueError(f"scheduler_config.json: {key}={config[key]!r} is not supported; only without it")

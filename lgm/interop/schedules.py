"""How a released model is sampled: the times of its steps, what the network is told at them, and the solver.

diffusers' schedulers keep noise levels and the network's timesteps in two tables. Here time alone says both; where the
two disagree (levels between two entries, timesteps rounded), the network is told another time than the solver's.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from lgm import gaussian, sampling
from lgm.gaussian import Process, shift_time
from lgm.registry import section
from lgm.sampling import Timesteps, grids, multistep, singlestep, unipc
from lgm.sampling.clipping import bounded
from lgm.sampling.steps import Solver

TINY_TIME = 1e-7  # above 0, so that the last step keeps the noise of the table's first entry
END_TIME = 0.5 * TINY_TIME  # the same level, seen from a step's beginning
FEW = 15  # below so many steps, multistep solvers may end at a lower order
FLOW_ENTRIES = 1000
LogShift = Callable[[int, int], float]  # (image tokens, steps) -> log of the shift of a dynamic flow's times


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a released model is sampled.

    process: options of `lgm.gaussian.build`. target: what the network predicts. solver: its name; `order`, `exact`
    (the slope's exponential integral in full at order 2), `lower_at_end` and `euler_at_end` qualify a multistep
    one, `uncorrected`, numbers of steps, `variant` and `of_noise` UniPC, `runge_kutta` PLMS, `variance` DDPM's
    (`posterior`), `clip` bounds the data that a prediction implies. spacing: where in the table (or in [0, 1] of a
    flow) the steps lie, moved up by `offset` entries; `levels` respaces them, by `rho` where they are Karras',
    between the noise levels at both ends or the `bounds` (lowest, highest) that are given. between: steps may lie
    between two entries, where sigma is linear. open_end: entries are spaced for one more step, which would be at
    the first entry. stride: each step ends N // steps entries below its start, wherever the next begins.
    lowest_lambda: entries of less log(a / b) are left out. last: the sampler ends at the data, or at the table's
    first entry. start: x_T is N(0, I) times so much, or times b(T) where that is None; scaled_end: what is left at
    the first entry is divided by a. distilled: a model of consistency was distilled on so many entries, evenly
    apart, and is told of its time by `scaling`. A flow's times are moved by `shift` or, with `dynamic`, by the
    number of image tokens: (tokens, shift) at either end of a straight line. whole: the network is told whole
    timesteps. config: the scheduler_config.json all this is from.
    """

    process: dict[str, Any]
    target: str
    solver: str
    spacing: Literal["leading", "trailing", "linspace", "distilled", "flow", "flow_levels", "edm"]
    order: int = 2
    exact: bool = False
    variant: Literal["bh2", "bh1"] = "bh2"
    uncorrected: tuple[int, ...] = ()
    of_noise: bool = False
    runge_kutta: bool = False
    variance: Literal["small", "large", "learned"] = "small"
    lower_at_end: bool = False
    euler_at_end: bool = False
    clip: float | None = None
    offset: int = 0
    levels: Literal["table", "karras", "exponential", "beta", "lu"] = "table"
    rho: float = 7.0
    bounds: tuple[float | None, float | None] = (None, None)
    between: bool = False
    open_end: bool = False
    stride: bool = False
    lowest_lambda: float = -math.inf
    last: Literal["data", "first"] = "data"
    start: float | None = 1.0
    scaled_end: bool = False
    distilled: int = 50
    scaling: float = 10.0
    whole: Literal["rounded", "cut"] | None = None
    shift: float = 1.0
    dynamic: tuple[tuple[int, float], tuple[int, float]] | None = None
    dynamic_kind: Literal["exponential", "linear"] = "exponential"
    terminal: float | None = None
    config: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False)

    def build(self) -> Process:
        """The process."""
        options = dict(self.process)
        return gaussian.build(options.pop("name"), **options)

    def unlike(self, process: Mapping[str, Any]) -> str | None:
        """The first option in which the schedule's process is not the `process` of a config, if there is one."""
        mine, theirs = (_options(section) for section in (self.process, process))
        return next((key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)), None)

    def method(self, times: np.ndarray, other: str | Mapping[str, Any] | None = None) -> Solver:
        """The solver for steps over all of `times`; `other` is one to take instead, a name or a section."""
        if other not in (None, self.solver):
            return sampling.solver(**section(other, "solver"))
        few = self.lower_at_end and len(times) - 1 < FEW
        limits = []
        lower = self.lower_at_end and self.solver in ("unipc", "dpmpp_2s", "dpmpp_2s_sde")
        if self.solver in ("dpmpp_3m", "deis") and few or lower and self.solver == "unipc" and self.order == 3:
            limits += [(float(times[-3]), 2)] if len(times) > 2 else []
        if self.last == "first" and (few or self.euler_at_end or lower):
            limits += [(float(times[-2]), 1)]
        # PLMS begins with two evaluations where there is a second step
        name = "ddim" if self.solver == "plms" and len(times) == 2 else self.solver
        if name == "unipc":
            kept = tuple(float(times[i]) for i in self.uncorrected if i < len(times) - 1)
            return _unipc(self.order, tuple(limits), self.variant, kept, self.of_noise)
        if self.runge_kutta:
            return _plms(self.target == "v", self.process["steps"])
        parity = (len(times) - 1) % 2 if name in ("dpmpp_2s", "dpmpp_2s_sde") else 0
        return _method(name, self.order, self.exact, self.variance, tuple(limits), self.clip, self.stride,
                       self.target == "v", self.scaling, self.scaled_end, parity)

    def noise_scale(self, process: Process, times: np.ndarray) -> float:
        """What N(0, I) is multiplied by to be x_T of steps over all of `times`."""
        return float(process.b(times[0])) if self.start is None else self.start

    def part(self, timesteps: Timesteps, steps: int) -> Timesteps:
        """The last `steps` of them, by which a picture that is started from is drawn anew.

        diffusers' list of PNDM's timesteps has the second one twice, and its pipelines cut the list: they begin a step
        earlier, and leave out the step after the first.
        """
        count = len(timesteps.times) - 1
        rows = np.arange(count - steps, count)
        if self.solver == "plms" and not self.runge_kutta and steps < count - 1:
            rows = np.append(rows[0] - 1, rows[1:])
        ends = (timesteps.times[1:] if timesteps.ends is None else timesteps.ends)[rows]
        times = np.append(timesteps.times[rows], timesteps.times[-1])
        inputs = None if timesteps.inputs is None else timesteps.inputs[rows]
        return Timesteps(times, inputs, None if (ends == times[1:]).all() else ends)

    def timesteps(self, steps: int, tokens: int | None = None, even: bool = False,
                  log_shift: LogShift | None = None) -> Timesteps:
        """`steps` falling times and where they end. A dynamic flow needs the number of image `tokens`.

        `even` spaces a flow's times evenly from 1 to 1 / steps before they are shifted (Flux's pipeline), instead of to
        the scheduler's own lowest noise level (SD3's); `log_shift` stands in the place of the scheduler's own line, if
        that is dynamic. Raises ValueError for a number of steps that cannot be.
        """
        if self.spacing in ("flow", "flow_levels"):
            return self._flow_timesteps(steps, tokens, even, log_shift)
        if self.spacing == "edm":
            return self._edm_timesteps(steps)
        entries = self.process["steps"]
        if not 0 < steps <= entries:
            raise ValueError(f"steps={steps} must lie between 1 and the {entries} steps that the model was trained on")
        if self.solver == "plms" and entries % steps and self.spacing != "leading":
            raise ValueError(f"steps={steps} of PNDM's timestep_spacing={self.spacing!r} must divide {entries}, or a "
                             "step ends where none begins; 'leading' takes any number")
        if self.runge_kutta and steps < 4:
            raise ValueError(f"steps={steps} of PNDM's skip_prk_steps=False must be at least 4")
        last = 0.0 if self.last == "data" else END_TIME
        inputs, k = self._entries(steps, entries)
        # the first entry has noise; time 0 is the data
        times = np.append(np.maximum(k / entries, TINY_TIME), last).astype(np.float32)
        ends = None
        if self.stride:
            ends = inputs - entries // steps
            ends = np.where(ends < 0, last, np.maximum(ends / entries, TINY_TIME)).astype(np.float32)
            ends = None if np.abs(ends - times[1:]).max() < 0.1 / entries else ends
        return Timesteps(times, _apart(inputs / entries, times), ends)

    def _entries(self, steps: int, entries: int) -> tuple[np.ndarray, np.ndarray]:
        """(the timesteps that the network is told, the places of the noise levels in the table)."""
        numbers = np.arange(entries)
        log_sigma = np.asarray(-0.5 * self.build().log_snr(numbers / entries), np.float64)
        used = int((log_sigma <= -self.lowest_lambda).sum())
        k = self._spaced(steps, entries, used)
        levels = np.log(np.interp(k, numbers, np.exp(log_sigma)))
        if self.levels == "table":
            return k, np.interp(levels, log_sigma, numbers) if self.between else k
        low, high = np.exp(log_sigma[[0, -1]] if self.open_end else levels[[-1, 0]])
        place = np.interp(np.log(self._ramp(steps, high, low, np.exp(log_sigma[[0, -1]]))), log_sigma, numbers)
        inputs = {None: place, "rounded": place.round(), "cut": np.floor(place + 1e-4)}[self.whole]
        return inputs, place

    def _ramp(self, steps: int, first: float, last: float, range: tuple[float, float]) -> np.ndarray:
        """Levels from `first` to `last`, or between the `bounds`, which must lie in the process's `range`."""
        low, high = (given or own for given, own in zip(self.bounds, (last, first), strict=True))
        if not range[0] * (1 - 1e-5) <= low <= high <= range[1] * (1 + 1e-5):
            raise ValueError(f"scheduler_config.json: sigma_min={low:g} and sigma_max={high:g} must lie between the "
                             f"{range[0]:g} and {range[1]:g} of the noise levels that the model was trained on")
        ramps = {"karras": lambda: grids.karras(self.rho), "beta": grids.beta}  # lu: even steps of lambda
        return ramps.get(self.levels, grids.exponential)()(steps, high, low)

    def _edm_timesteps(self, steps: int) -> Timesteps:
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        low, high = self.process["sigma_min"], self.process["sigma_max"]
        times = np.log(self._ramp(steps, high, low, (low, high)) / low) / math.log(high / low)
        last = 0.0 if self.last == "data" else END_TIME
        return Timesteps(np.append(np.clip(times, TINY_TIME, 1.0), last).astype(np.float32))

    def _spaced(self, steps: int, entries: int, used: int) -> np.ndarray:
        count = steps + self.open_end
        if self.spacing == "distilled":
            if steps > self.distilled:
                raise ValueError(f"steps={steps} must be at most the {self.distilled} that the model was distilled on")
            places = np.floor(np.linspace(0, self.distilled, steps, endpoint=False)).astype(int)
            return (np.arange(self.distilled, 0, -1)[places] * (entries // self.distilled) - 1).astype(np.float64)
        if self.spacing == "linspace":
            k = np.linspace(0, used - 1, count)[::-1][:steps]
            k = k if self.between else k.round()
        elif self.spacing == "trailing":
            k = np.arange(used, 0, -entries / steps).round()[:steps] - 1
        else:
            k = (np.arange(count) * (used // count))[::-1][:steps] + self.offset
        return np.minimum(k, entries - 1).astype(np.float64)

    def _flow_timesteps(self, steps: int, tokens: int | None, even: bool, log_shift: LogShift | None) -> Timesteps:
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        if self.spacing == "flow_levels" and not even:  # of one step more, without the last
            t = np.linspace(1.0, 1 / FLOW_ENTRIES, steps + 1)  # in their arithmetic: what is cut below may be 666.9999
            t = t[:-1] if self.solver == "unipc" else (1.0 - t)[:0:-1]
        else:
            lowest = 1 / FLOW_ENTRIES if self.dynamic else shift_time(1 / FLOW_ENTRIES, self.shift)
            t = np.linspace(1.0, 1 / steps if even else lowest, steps)
        if self.dynamic is None:
            t = shift_time(t, self.shift)
        else:
            if tokens is None:
                raise ValueError("the times of this schedule depend on the image's size; give the number of tokens")
            (base, base_shift), (most, most_shift) = self.dynamic
            mu = base_shift + (most_shift - base_shift) * (tokens - base) / (most - base)
            mu = mu if log_shift is None else log_shift(tokens, steps)
            t = shift_time(t, math.exp(mu) if self.dynamic_kind == "exponential" else mu)
        if self.terminal and steps == 1:
            raise ValueError(f"steps=1: a scheduler of shift_terminal={self.terminal} places the last of several; give "
                             "2 or more")
        if self.terminal:
            t = 1.0 - (1.0 - t) * (1.0 - self.terminal) / (1.0 - t[-1])
        if self.levels != "table":
            t = self._ramp(steps, t[0], t[-1], (0.0, 1.0))
        if self.spacing == "flow_levels" and t[0] > 1.0 - 1e-6:
            t[0] -= 1e-6  # as UniPC's has it, whose network is told 999
        times = np.append(t, 0.0).astype(np.float32)
        inputs = np.floor(t * FLOW_ENTRIES) / FLOW_ENTRIES if self.whole else t
        return Timesteps(times, _apart(inputs, times))


def _options(process: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a process that decide anything, with their defaults; `kept` is the scheduler class' own."""
    defaults = inspect.signature(gaussian.PROCESSES[process["name"]]).parameters
    options = {key: option.default for key, option in defaults.items()} | dict(process)
    idle = {"kept", "beta_start", "beta_end"} if options.get("schedule") == "squared_cosine" else {"kept"}
    return {key: options[key] for key in ["name", *options] if key not in idle}


def _apart(inputs: np.ndarray, times: np.ndarray) -> np.ndarray | None:
    """`inputs` as float32, or None where it is what the solver's times say."""
    inputs = inputs.astype(np.float32)
    return None if np.abs(inputs - times[:-1]).max() < 1e-6 else inputs


# one object a solver, so that a compiled step is found again
_unipc, _plms = functools.cache(unipc.unipc), functools.cache(multistep.plms)


@functools.cache
def _method(name: str, order: int, exact: bool, variance: str, limits: tuple, clip: float | None, keep_noise: bool,
            velocity: bool, scaling: float, scaled_end: bool, parity: int) -> Solver:
    if name in ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m"):
        # the curvature of diffusers' third order is half of the polynomial's
        found = multistep.dpmpp(order, eta=float(name.endswith("sde")), curvature=0.5, exact=exact, limits=limits)
    elif name == "deis":
        found = multistep.deis(order, limits)
    elif name in ("dpmpp_2s", "dpmpp_2s_sde"):
        found = singlestep.dpmpp_2s(name.endswith("sde"), limits, parity)
    elif name == "plms":
        found = multistep.plms(velocity)
    elif name == "ddpm":
        found = sampling.solver(name, variance=variance)
    elif name == "lcm":
        found = sampling.solver(name, timestep_scaling=scaling)
    else:
        found = sampling.solver(name)
    found = found if clip is None else bounded(found, clip, keep_noise)
    return _divided_at_end(found) if scaled_end else found


def _divided_at_end(method: Solver) -> Solver:
    """`method`, whose last state is x / a: a scheduler of x / a leaves it so at the table's first entry."""

    def step(process, denoise, x, memory, t, s, key):
        x, memory = method.step(process, denoise, x, memory, t, s, key)
        return x / jnp.where(s <= END_TIME, process.a(s), 1.0), memory

    return method._replace(step=step)

"""Grids of times of a solver's steps, from noise to data.

Where a spacing speaks of noise levels, they are `singlestep.ode`'s coordinate: b / a, or b / (a + b), a rectified
flow's own t, on a process that ends in pure noise.
"""

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from lgm import registry
from lgm.gaussian import Process, shift_time, singular_at
from lgm.sampling.singlestep import ends_in_noise, lowest_time

Ramp = Callable[[int, float, float], np.ndarray]  # (points, first, last) -> points falling values


def karras(rho: float = 7.0) -> Ramp:
    """Even steps of level^(1 / rho) (Karras et al. 2022, 2206.00364, eq. 5)."""
    if rho <= 0:
        raise ValueError(f"option rho={rho} of spacing 'karras' must be above 0")
    return lambda count, first, last: np.linspace(first ** (1 / rho), last ** (1 / rho), count) ** rho


def exponential() -> Ramp:
    """Even steps of log level."""
    return lambda count, first, last: np.exp(np.linspace(np.log(first), np.log(last), count))


def beta(alpha: float = 0.6, beta: float = 0.6) -> Ramp:
    """Levels at the quantiles of Beta(alpha, beta): below 1 both ends get more steps (Lee et al. 2024, 2407.12173)."""
    if alpha <= 0 or beta <= 0:
        raise ValueError(f"options alpha={alpha} and beta={beta} of spacing 'beta' must be above 0")

    def ramp(count: int, first: float, last: float) -> np.ndarray:
        from scipy import stats  # a third of a second to import

        return last + stats.beta.ppf(1.0 - np.linspace(0.0, 1.0, count), alpha, beta) * (first - last)

    return ramp


def _even(power: int, process: Process, steps: int) -> np.ndarray:
    """Even steps of t^(1 / power): 1, or 2 (DDIM, 2010.02502, appendix D.2)."""
    return np.linspace(_noisiest(process) ** (1 / power), 0.0, steps + 1) ** power


# entries of a table of so many, falling
ENTRIES: dict[str, Callable[[int, int], np.ndarray]] = {
    # N - 1, N - 1 - N / steps, ..., rounded: the noisiest is always among them (2305.08891)
    "trailing": lambda entries, steps: (np.arange(entries, 0, -entries / steps).round() - 1)[:steps],
    # 0, N // steps, 2 (N // steps), ..., taken backwards: the noisiest is left out
    "leading": lambda entries, steps: (np.arange(steps) * (entries // steps))[::-1],
    # from the last to the first, rounded: both ends are among them
    "linspace": lambda entries, steps: np.linspace(0, entries - 1, steps).round()[::-1],
}


def _of_entries(name: str, process: Process, steps: int) -> np.ndarray:
    """Their times, then the data. Entry 0 has noise, of which the last step rids x: its time lies above 0, the data."""
    if process.steps is None:
        raise ValueError(f"spacing {name!r} counts a table's entries; process {process.name!r} has none; use 'even'")
    if steps > process.steps:
        raise ValueError(f"steps={steps} must lie between 1 and the table's {process.steps} entries")
    return np.append(np.maximum(ENTRIES[name](process.steps, steps) / process.steps, 1e-7), 0.0)


def _log_snr(process: Process, steps: int) -> np.ndarray:
    """Even steps of the log signal-to-noise ratio between t = 0.999 and t = 0.001, then the data."""
    first, last = (float(process.log_snr(jnp.float32(t))) for t in (min(0.999, _noisiest(process)), 0.001))
    return np.append(_times_at(process, np.linspace(first, last, steps)), 0.0)


def _by_level(ramp: Ramp) -> Callable[[Process, int], np.ndarray]:
    def spacing(process: Process, steps: int) -> np.ndarray:
        straight = ends_in_noise(process)
        lowest = lowest_time(process)
        level = lambda t: float(process.b(t) / (process.a(t) + process.b(t) if straight else process.a(t)))
        levels = ramp(steps, *(level(jnp.float32(t)) for t in (_noisiest(process), lowest)))
        signal = np.maximum(1.0 - levels, 1e-9) if straight else 1.0
        times = _times_at(process, 2.0 * np.log(signal / levels))
        times[[0, -1]] = _noisiest(process), max(lowest, 1e-9)  # above 0, which would be the data
        return np.append(times, 0.0)

    return spacing


def _even_to(last: float) -> Callable[[Process, int], np.ndarray]:
    """Even but for the last step, which is made from the time `last` (SiT's sampler by an SDE, 2401.08740)."""
    if not 0.0 < last < 1.0:
        raise ValueError(f"spacing option last={last} must lie between 0 and 1")
    return lambda process, steps: np.append(np.linspace(_noisiest(process), last, steps), 0.0)


SPACINGS: dict[str, Callable[..., Callable[[Process, int], np.ndarray]]] = {
    "even": lambda: functools.partial(_even, 1),
    "even_to": lambda last=0.04: _even_to(last),
    "trailing": lambda: functools.partial(_of_entries, "trailing"),
    "leading": lambda: functools.partial(_of_entries, "leading"),
    "linspace": lambda: functools.partial(_of_entries, "linspace"),
    "quadratic": lambda: functools.partial(_even, 2),
    "log_snr": lambda: _log_snr,
    "karras": lambda rho=7.0: _by_level(karras(rho)),
    "exponential": lambda: _by_level(exponential()),
    "beta": lambda alpha=0.6, beta=0.6: _by_level(_beta(alpha, beta)),
}
_beta: Callable = beta


def times(process: Process, steps: int, spacing: str = "even", shift: float = 1.0, **options) -> np.ndarray:
    """`steps` + 1 falling float32 times from noise to t = 0, moved towards noise by `shift`.

    spacing: "even", "even_to" (last), "quadratic" or "log_snr" in t; "karras" (rho), "exponential" or "beta" (alpha,
    beta) in noise level; "trailing", "leading" or "linspace" on a table's entries. A process with a table starts at its
    last entry, t = (N - 1) / N; the others at t = 1. Raises ValueError, one line, for what cannot be.
    """
    if not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ValueError(f"steps={steps!r} must be at least 1, and whole")
    if not isinstance(shift, (int, float)) or not 0 < shift < math.inf:
        raise ValueError(f"shift={shift!r} must be above 0")
    grid = registry.make("spacing", SPACINGS, spacing, options)(process, steps)
    return shift_time(grid, shift).astype(np.float32)


def informative(process: Process, target: str, times: np.ndarray) -> np.ndarray:
    """The grid with a start that is pure noise, where the target "eps" leaves the data open, moved down to where it
    tells them: by 0.001, an entry of a table of 1000, or halfway to the next time. Any other grid as it is."""
    if not singular_at(process, target, float(times[0])):
        return times
    first = max(times[0] - 1e-3, 0.5 * (times[0] + times[1]))
    return np.concatenate([np.array([first], np.float32), times[1:]])


def last_part(times: np.ndarray, strength: float) -> np.ndarray:
    """The last int(strength x steps) steps of a grid, at least one: where a start from an image begins."""
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength={strength} must lie in (0, 1]")
    steps = len(times) - 1
    return times[steps - max(1, min(int(steps * strength), steps)) :]


def _times_at(process: Process, log_snr: np.ndarray) -> np.ndarray:
    """The times of those log signal-to-noise ratios, one by one, so that one compiled bisection serves any number."""
    return np.array([float(process.time_at_log_snr(np.float32(value))) for value in log_snr])


def _noisiest(process: Process) -> float:
    return 1.0 if process.steps is None else (process.steps - 1) / process.steps

"""Gaussian processes x_t = a(t) x + b(t) eps, and what a network may predict of them.

t runs in [0, 1]; t = 0 is data and t = 1 noise. Every prediction target is linear in (x, eps), so a prediction at x_t
gives x, eps, velocity and score by one 2 x 2 solve. Losses, samplers and conversions all rest on that one fact.

    process            a(t)              b(t)                    target   p(t)    q(t)
    DDPM (VP)          sqrt(alpha_bar)   sqrt(1 - alpha_bar)     eps      0       1
    rectified flow     1 - t             t                       x        1       0
    EDM (VE)           1                 sigma(t)                v        -b      a
    trigonometric      cos(pi t / 2)     sin(pi t / 2)           flow     a'(t)   b'(t)

and "edm", the output F of Karras et al. 2022 (2206.00364, eq. 7): with sigma = b / a, data of standard deviation s and
r = sqrt(sigma^2 + s^2), p = sigma / (s r) and q = -s / r; for s = 1 it is -v of a variance-preserving process. "edm_v"
is -F, as diffusers' EDM schedulers call "v_prediction".

A table of N steps (DDPM) puts its index k at t = k / N, as the released networks count (t x 1000 is their timestep);
between the table's points the log signal-to-noise ratio is linear in t, beyond its last it goes on in a straight line.

Here and in `sampling` all is computed in JAX's default float: float32 whatever a network computes in, float64 under
`jax.enable_x64`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lgm import registry
from lgm.parsing import near_miss

TARGETS = ("eps", "x", "v", "flow", "edm", "edm_v")


@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """A path from data to noise; `a` and `b` map an array of t in [0, 1] to arrays of its shape.

    `steps` is N for a process defined by a table of N steps. `data_std` is the data's standard deviation as the target
    "edm" and its input scaling assume it. Hashed by identity, so it may be a static argument; the constructors return
    one object for the same call.
    """

    name: str
    a: Callable[[jax.Array], jax.Array]
    b: Callable[[jax.Array], jax.Array]
    steps: int | None = None
    data_std: float = 1.0

    def __post_init__(self):
        # outside a trace each is one program for a shape, not a dozen
        for name in ("a", "b"):
            object.__setattr__(self, name, jax.jit(getattr(self, name), inline=True))

    def da(self, t: jax.Array) -> jax.Array:
        """da/dt, elementwise."""
        return _derivative(self.a, t)

    def db(self, t: jax.Array) -> jax.Array:
        """db/dt, elementwise."""
        return _derivative(self.b, t)

    def sigma(self, t: jax.Array) -> jax.Array:
        """The noise level b / a of x_t / a, in units of the data; infinite where a = 0."""
        return self.b(t) / self.a(t)

    def log_snr(self, t: jax.Array) -> jax.Array:
        """log(a^2 / b^2), falling in t; infinite where a or b is 0."""
        return 2.0 * (jnp.log(self.a(t)) - jnp.log(self.b(t)))

    @functools.partial(jax.jit, static_argnums=0)
    def time_at_log_snr(self, log_snr: jax.Array) -> jax.Array:
        """The t whose log_snr is given, to float32 accuracy by bisection; 0 or 1 beyond the process's range."""
        log_snr = jnp.asarray(log_snr, float)

        def halve(_, bounds):
            low, high = bounds
            middle = 0.5 * (low + high)
            noisier = self.log_snr(middle) > log_snr  # too little noise: t lies above
            return jnp.where(noisier, middle, low), jnp.where(noisier, high, middle)

        low, high = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(log_snr), jnp.ones_like(log_snr)))
        return 0.5 * (low + high)


def _derivative(function, t):
    t = jnp.asarray(t, float)
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


@functools.cache
def ddpm(schedule: str = "scaled_linear", beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000,
         zero_terminal_snr: bool = False, kept: float = 1e-8) -> Process:
    """Discrete variance-preserving diffusion (Ho et al. 2020, 2006.11239).

    schedule: "linear" (beta linear), "scaled_linear" (sqrt(beta) linear: SD), "squared_cosine" (Nichol & Dhariwal
    2021, 2102.09672; the betas are not used). zero_terminal_snr rescales sqrt(alpha_bar) so that the last step is pure
    noise (Lin et al. 2023, 2305.08891, algorithm 1); of the signal `kept` is left there, so that its log is finite.
    """
    schedules = {
        "linear": lambda: np.linspace(beta_start, beta_end, steps),
        "scaled_linear": lambda: np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2,
        "squared_cosine": lambda: _cosine_betas(steps),
    }
    if steps < 2:
        raise ValueError(f"process 'ddpm': steps={steps} must be at least 2")
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"process 'ddpm': beta_start={beta_start} must lie above 0 and at most {beta_end=}, below 1")
    if not 0 < kept < 1e-2:
        raise ValueError(f"process 'ddpm': kept={kept} must lie above 0 and below 0.01")
    betas = registry.make("schedule of betas", schedules, schedule, {})
    root = np.sqrt(np.cumprod(1.0 - betas))
    if zero_terminal_snr:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    root[-1] = max(root[-1], kept)
    return Process("ddpm", *_vp_of_table(root), steps)


def _vp_of_table(a_K: np.ndarray) -> tuple[Callable, Callable]:
    """a and b that are the table's a and sqrt(1 - a^2) at its own points, to the last bit.

    With d the rise of log(b / a) since the point before, b / a there is B / A e^d, hence a = A / r and b = B e^d / r
    with r^2 = A^2 + B^2 e^(2 d) = 1 + B^2 expm1(2 d), which is 1 at the point itself.
    """
    steps = len(a_K)
    b_K = np.sqrt(-np.expm1(2 * np.log(a_K)))
    rises = np.diff(np.log(b_K / a_K))
    rises = np.append(rises, rises[-1])  # t = 1 is on the line through the last two points

    def at(t):
        """(A, B, d), each of t's shape."""
        place = jnp.clip(jnp.asarray(t, float), 0.0, 1.0) * steps
        point = jnp.round(place)
        # k / N times N is k up to a few roundings; what is that near is meant to be the point
        beside = jnp.where(jnp.abs(place - point) <= 2 * jnp.finfo(place.dtype).eps * point, place - point, 0.0)
        place -= jax.lax.stop_gradient(beside)
        low = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, steps - 1)
        of_point = lambda values_K: jnp.asarray(values_K, float)[low]
        return of_point(a_K), of_point(b_K), of_point(rises) * (place - low)

    def a(t):
        a, b, d = at(t)
        return a / jnp.sqrt(1.0 + jnp.square(b) * jnp.expm1(2.0 * d))

    def b(t):
        a, b, d = at(t)
        return b * jnp.exp(d) / jnp.sqrt(1.0 + jnp.square(b) * jnp.expm1(2.0 * d))

    return a, b


def _cosine_betas(steps: int) -> np.ndarray:
    alpha_bar = lambda u: np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    u = np.arange(steps) / steps
    return np.minimum(1.0 - alpha_bar(u + 1.0 / steps) / alpha_bar(u), 0.999)


@functools.cache
def continuous_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """The VP SDE with linear beta(t) (Song et al. 2021, 2011.13456): a = exp(-(beta_min t + (beta_max - beta_min) t^2
    / 2) / 2), b^2 = 1 - a^2."""
    if not 0 < beta_min <= beta_max:
        raise ValueError(f"process 'continuous_vp': beta_min={beta_min} must lie above 0 and at most {beta_max=}")
    integral = lambda t: beta_min * t + 0.5 * (beta_max - beta_min) * jnp.square(t)
    a = lambda t: jnp.exp(-0.5 * integral(jnp.asarray(t, float)))
    b = lambda t: jnp.sqrt(-jnp.expm1(-integral(jnp.maximum(jnp.asarray(t, float), 1e-8))))
    return Process("continuous_vp", a, b)


@functools.cache
def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5) -> Process:
    """Variance exploding in the parametrisation of Karras et al. 2022 (2206.00364); log sigma is linear in t.

    t = 0 is sigma_min. Solvers that land at t = 0 land at sigma = 0.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"process 'edm': sigma_min={sigma_min} must lie above 0 and below {sigma_max=}")
    if sigma_data <= 0:
        raise ValueError(f"process 'edm': sigma_data={sigma_data} must be above 0")
    low, high = math.log(sigma_min), math.log(sigma_max)
    a = lambda t: jnp.ones_like(jnp.asarray(t, float))
    b = lambda t: jnp.exp(low + (high - low) * jnp.asarray(t, float))
    return Process("edm", a, b, data_std=sigma_data)


@functools.cache
def trigonometric() -> Process:
    """a = cos(pi t / 2), b = sin(pi t / 2): the cosine schedule in continuous time (Salimans & Ho 2022, 2202.00512) and
    TrigFlow on unit data (Lu & Song 2024, 2410.11081), whose angle is pi t / 2 and whose F is the target "v"."""
    # the cosine as a sine of the rest, which is 0 and not -4e-8 at t = 1
    a = lambda t: jnp.sin(0.5 * math.pi * (1.0 - jnp.asarray(t, float)))
    b = lambda t: jnp.sin(0.5 * math.pi * jnp.asarray(t, float))
    return Process("trigonometric", a, b)


@functools.cache
def rectified_flow(shift: float = 1.0) -> Process:
    """Straight lines from data to noise (Liu et al. 2023, 2209.03003).

    `shift` reparametrises the process's own clock, so that a network and its target "flow" live in shifted time. SD3
    and Flux do not do that: they keep the clock and move the times at which they train and sample, the `shift` of
    `losses.density` and `sampling.times`.
    """
    if shift <= 0:
        raise ValueError(f"process 'rectified_flow': shift={shift} must be above 0")
    time = lambda t: shift_time(jnp.asarray(t, float), shift) if shift != 1.0 else jnp.asarray(t, float)
    return Process("rectified_flow", lambda t: 1.0 - time(t), lambda t: time(t))


def shift_time(t: jax.Array, shift: float) -> jax.Array:
    """shift t / (1 + (shift - 1) t) (SD3, 2403.03206, eq. 23): the noise level that an image of shift^2 times as many
    pixels needs to look as noisy."""
    return shift * t / (1.0 + (shift - 1.0) * t)


def resolution_shift(pixels: float, base_pixels: float) -> float:
    """SD3's shift sqrt(m / n) from images of n pixels to images of m (2403.03206, section 5.3.2)."""
    if not (pixels > 0 and base_pixels > 0):
        raise ValueError(f"pixels={pixels} and base_pixels={base_pixels} must be above 0")
    return math.sqrt(pixels / base_pixels)


def token_shift(tokens: float, base: tuple[float, float] = (256, 0.5), most: tuple[float, float] = (4096, 1.15)):
    """Flux's shift exp(mu), a float; mu is on the straight line through two points (image tokens, mu)."""
    if not (tokens > 0 and base[0] != most[0]):
        raise ValueError(f"tokens={tokens} must be above 0, and the line's two points {base} and {most} apart")
    mu = base[1] + (most[1] - base[1]) * (tokens - base[0]) / (most[0] - base[0])
    return math.exp(mu)


PROCESSES = {
    "ddpm": ddpm,
    "continuous_vp": continuous_vp,
    "edm": edm,
    "trigonometric": trigonometric,
    "rectified_flow": rectified_flow,
}


def build(name: str, **options) -> Process:
    """The process of that name; ValueError, one line, for a name or option there is not."""
    return registry.make("process", PROCESSES, name, options)


def input_scale(process: Process, t: jax.Array) -> jax.Array:
    """1 / sqrt(a^2 s^2 + b^2): brings x_t of data with standard deviation s to unit variance (EDM's c_in, eq. 7)."""
    return jax.lax.rsqrt(jnp.square(process.a(t) * process.data_std) + jnp.square(process.b(t)))


def network_input(process: Process, x_t: jax.Array, t_B: jax.Array) -> jax.Array:
    """x_t as a network is given it: EDM's noise, which reaches 80, by `input_scale`; all else as it is."""
    return wide(input_scale(process, t_B), x_t) * x_t if process.name == "edm" else x_t


def pure_noise(process: Process, noise: jax.Array, t: float | jax.Array = 1.0) -> jax.Array:
    """x_T to sample from at the time t: the given N(0, I) with the deviation that x_t of the data has there."""
    return noise / input_scale(process, jnp.asarray(t, float))


def add_noise(process: Process, x: jax.Array, eps: jax.Array, t_B: jax.Array) -> jax.Array:
    """x_t = a(t) x + b(t) eps for x [B, ...] and t [B]."""
    return wide(process.a(t_B), x) * x + wide(process.b(t_B), x) * eps


def coefficients(process: Process, kind: str, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(p, q) of a prediction target p(t) x + q(t) eps."""
    t = jnp.asarray(t, float)
    if kind == "eps":
        return jnp.zeros_like(t), jnp.ones_like(t)
    if kind == "x":
        return jnp.ones_like(t), jnp.zeros_like(t)
    if kind == "v":
        return -process.b(t), process.a(t)
    if kind == "flow":
        return process.da(t), process.db(t)
    if kind in ("edm", "edm_v"):
        a, b, std = process.a(t), process.b(t), process.data_std
        scale = jax.lax.rsqrt(jnp.square(b) + jnp.square(a * std)) * (1.0 if kind == "edm" else -1.0)
        return b * scale / std, -a * std * scale
    raise ValueError(f"unknown prediction target {kind!r}{near_miss(kind, TARGETS)}")


def singular_at(process: Process, kind: str, t: float) -> bool:
    """Whether a prediction at time t leaves the data open: eps where x_t is nothing but noise."""
    with jax.ensure_compile_time_eval():  # asked inside a traced function, too
        t = jnp.asarray(t, float)
        p, q = coefficients(process, kind, t)
        a, b = process.a(t), process.b(t)
        return bool(jnp.abs(a * q - b * p) < 1e-6 * b)


def check_tells_data(process: Process, kind: str, t: float, hint: str) -> None:
    """Raise ValueError, one line with a hint on what would do, for a target that is `singular_at` t."""
    if singular_at(process, kind, t):
        raise ValueError(f"target {kind!r} says nothing of the data at t={t:g}, which is pure noise under process "
                         f"{process.name!r}; {hint}")


def target(process: Process, kind: str, x: jax.Array, eps: jax.Array, t_B: jax.Array) -> jax.Array:
    """What a network of that kind should predict at (x, eps, t)."""
    p, q = coefficients(process, kind, t_B)
    return wide(p, x) * x + wide(q, x) * eps


class Endpoints(NamedTuple):
    """The data and the noise that a prediction at x_t implies."""

    x: jax.Array
    eps: jax.Array


def endpoints(process: Process, kind: str, prediction: jax.Array, x_t: jax.Array, t_B: jax.Array) -> Endpoints:
    """Solve  a x + b eps = x_t,  p x + q eps = prediction  for (x, eps), in JAX's default float.

    Singular where the target says nothing new: eps at b = 1 (a = 0) and x at b = 0.
    """
    a, b = process.a(t_B), process.b(t_B)
    p, q = coefficients(process, kind, t_B)
    determinant = a * q - b * p
    a, b, p, q, determinant = (wide(c, x_t) for c in (a, b, p, q, determinant))
    x_t, prediction = x_t.astype(float), prediction.astype(float)
    return Endpoints((q * x_t - b * prediction) / determinant, (a * prediction - p * x_t) / determinant)


def convert(process: Process, kind: str, to: str, prediction: jax.Array, x_t: jax.Array, t_B: jax.Array) -> jax.Array:
    """A prediction of one kind as another of TARGETS, or as "score", the gradient of log p_t at x_t."""
    x, eps = endpoints(process, kind, prediction, x_t, t_B)
    if to == "score":
        return -eps / wide(process.b(t_B), x)
    return target(process, to, x, eps, t_B)


def wide(c_B: jax.Array, like: jax.Array) -> jax.Array:
    """A factor an example, [B] or [], as one that multiplies [B, ...]."""
    c = jnp.asarray(c_B)
    return c.reshape(c.shape + (1,) * (like.ndim - c.ndim)) if c.ndim else c

"""Where in t a network is trained: each density is `draw(key, shape) -> t` in [0, 1].

A weighting may be traded for a density: the expectation of w(t) e(t) under p is that of w(t) p(t) / q(t) e(t) under q.
`weightings.importance` has that ratio for two densities, `weightings.traded` for a density made of a weighting.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from lgm import registry
from lgm.gaussian import shift_time

Density = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def _stratified(key, shape):
    """One draw in each of n equal intervals, in random order: each is U(0, 1), together they are even."""
    n = math.prod(shape)
    order_key, place_key = jax.random.split(key)
    return ((jax.random.permutation(order_key, n) + jax.random.uniform(place_key, (n,))) / n).reshape(shape)


def _antithetic(key, shape):
    """Draws in pairs u, 1 - u."""
    n = math.prod(shape)
    u = jax.random.uniform(key, ((n + 1) // 2,))
    return jnp.concatenate([u, 1.0 - u])[:n].reshape(shape)


UNIFORMS = {"independent": jax.random.uniform, "stratified": _stratified, "antithetic": _antithetic}


def by_quantile(quantile: Callable[[jax.Array], jax.Array], draws: str = "independent") -> Density:
    """t = quantile(u), u ~ U(0, 1), drawn in one of UNIFORMS' ways."""
    if draws not in UNIFORMS:
        raise ValueError(f"density option draws={draws!r} must be one of {', '.join(UNIFORMS)}")
    return lambda key, shape: jnp.clip(quantile(UNIFORMS[draws](key, shape)), 0.0, 1.0)


def _normal_quantile(u: jax.Array) -> jax.Array:
    return norm.ppf(jnp.clip(u, 1e-7, 1.0 - 1e-7))


def _spread(std: float) -> None:
    if std <= 0:
        raise ValueError(f"density option std={std} must be above 0")


def uniform(draws: str = "independent") -> Density:
    """t ~ U(0, 1)."""
    return by_quantile(lambda u: u, draws)


def discrete(steps: int = 1000, draws: str = "independent") -> Density:
    """t = k / steps with k uniform in 0 .. steps - 1: the times of a table."""
    if steps < 1:
        raise ValueError(f"density option steps={steps} must be at least 1")
    return by_quantile(lambda u: jnp.minimum(jnp.floor(u * steps), steps - 1) / steps, draws)


def logit_normal(mean: float = 0.0, std: float = 1.0, draws: str = "independent") -> Density:
    """t = sigmoid(mean + std n), n ~ N(0, 1) (SD3, 2403.03206, eq. 19)."""
    _spread(std)
    return by_quantile(lambda u: jax.nn.sigmoid(mean + std * _normal_quantile(u)), draws)


def mode(scale: float = 1.29, draws: str = "independent") -> Density:
    """t = 1 - u - scale (cos^2(pi u / 2) - 1 + u), u ~ U(0, 1) (2403.03206, eq. 20): heavy in the middle for scale > 0.

    ValueError where the map would not be monotone: outside -1 <= scale <= 2 / (pi - 2).
    """
    _monotone(scale)
    return by_quantile(lambda u: 1.0 - u - scale * (jnp.square(jnp.cos(0.5 * math.pi * u)) - 1.0 + u), draws)


def _monotone(scale: float) -> None:
    if not -1.0 <= scale <= 2.0 / (math.pi - 2.0):
        raise ValueError(f"density option scale={scale} of 'mode' must lie between -1 and 2 / (pi - 2) = 1.7519")


def cosmap(draws: str = "independent") -> Density:
    """t = 1 - 1 / (tan(pi u / 2) + 1), u ~ U(0, 1) (2403.03206, eq. 21): the cosine schedule's log-SNR."""
    # sin / (sin + cos) is the same and finite at u = 1
    halves = lambda u: (jnp.sin(0.5 * math.pi * u), jnp.cos(0.5 * math.pi * u))
    return by_quantile(lambda u: halves(u)[0] / sum(halves(u)), draws)


def edm_log_normal(mean: float = -1.2, std: float = 1.2, sigma_min: float = 0.002, sigma_max: float = 80.0,
                   draws: str = "independent") -> Density:
    """log sigma ~ N(mean, std^2) (Karras et al. 2022, 2206.00364, table 1) as times of the EDM process with these ends,
    beyond which it is cut off."""
    _spread(std)
    low, high = _log_ends(sigma_min, sigma_max)
    return by_quantile(lambda u: (mean + std * _normal_quantile(u) - low) / (high - low), draws)


def _log_ends(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"density option sigma_min={sigma_min} must lie above 0 and below {sigma_max=}")
    return math.log(sigma_min), math.log(sigma_max)


def log_tangent(mean: float = -1.0, std: float = 1.4, draws: str = "independent") -> Density:
    """log tan(pi t / 2) ~ N(mean, std^2): the log noise level of the trigonometric process on unit data (sCM, Lu & Song
    2025, 2410.11081, section 5)."""
    _spread(std)
    return by_quantile(lambda u: 2.0 / math.pi * jnp.arctan(jnp.exp(mean + std * _normal_quantile(u))), draws)


DENSITIES: dict[str, Callable] = {
    "uniform": uniform,
    "discrete": discrete,
    "logit_normal": logit_normal,
    "mode": mode,
    "cosmap": cosmap,
    "edm_log_normal": edm_log_normal,
    "log_tangent": log_tangent,
}


def density(name: str, shift: float = 1.0, **options) -> Density:
    """The density of that name, its times then moved by `process.shift_time`, as SD3 trains at high resolution.

    ValueError, one line, for a name or option there is not.
    """
    draw = registry.make("density of t", DENSITIES, name, options)
    if _shifted(shift):
        return lambda key, shape: shift_time(draw(key, shape), shift)
    return draw


def _shifted(shift: float) -> bool:
    if not isinstance(shift, (int, float)) or not 0 < shift < math.inf:
        raise ValueError(f"density option shift={shift!r} must be a number above 0")
    return shift != 1.0


def _logit_normal_pdf(mean: float = 0.0, std: float = 1.0):
    _spread(std)

    def pdf(t):
        z = (jnp.log(t) - jnp.log1p(-t) - mean) / std
        return jnp.exp(-0.5 * jnp.square(z)) / (std * math.sqrt(2.0 * math.pi) * t * (1.0 - t))

    return pdf


def _edm_pdf(mean: float = -1.2, std: float = 1.2, sigma_min: float = 0.002, sigma_max: float = 80.0):
    _spread(std)
    low, high = _log_ends(sigma_min, sigma_max)
    return lambda t: norm.pdf(low + (high - low) * t, mean, std) * (high - low)


def _log_tangent_pdf(mean: float = -1.0, std: float = 1.4):
    _spread(std)

    def pdf(t):
        angle = 0.5 * math.pi * t
        rate = math.pi / jnp.sin(2.0 * angle)  # d log tan(pi t / 2) / dt
        return norm.pdf(jnp.log(jnp.tan(angle)), mean, std) * rate

    return pdf


def _mode_pdf(scale: float = 1.29):
    """1 / |dt/du| at the u that gives t, found by bisection."""
    _monotone(scale)

    def pdf(t):
        value = lambda u: 1.0 - u - scale * (jnp.square(jnp.cos(0.5 * math.pi * u)) - 1.0 + u)

        def halve(_, bounds):
            low, high = bounds
            middle = 0.5 * (low + high)
            later = value(middle) > t
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        u, _ = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(t), jnp.ones_like(t)))
        return 1.0 / (1.0 + scale * (1.0 - 0.5 * math.pi * jnp.sin(math.pi * u)))

    return pdf


PDFS = {
    "uniform": lambda: jnp.ones_like,
    "logit_normal": _logit_normal_pdf,
    "mode": _mode_pdf,
    "cosmap": lambda: lambda t: 2.0 / (math.pi * (1.0 - 2.0 * t + 2.0 * jnp.square(t))),
    "edm_log_normal": _edm_pdf,
    "log_tangent": _log_tangent_pdf,
}


def pdf(name: str, shift: float = 1.0, **options) -> Callable[[jax.Array], jax.Array]:
    """p(t) of the density of that name and options, on 0 < t < 1. ValueError for one that has no pdf ("discrete")."""
    of_unshifted = registry.make("density with a pdf", PDFS, name, options)
    if not _shifted(shift):
        return of_unshifted
    back = 1.0 / shift
    return lambda t: of_unshifted(shift_time(t, back)) * back / jnp.square(1.0 + (back - 1.0) * t)

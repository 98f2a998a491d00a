"""How errors at different t count: each weighting is `w(process, target, t_B) -> [B]`, a factor of the target's error.

The squared errors of all targets at one x_t are multiples of each other, since x_t ties x to eps: with D the 2 x 2
determinant a q - b p, error(target) = (D / b)^2 error(x) = (D / a)^2 error(eps). So a weighting that a paper states on
the x-error or the eps-error holds here for every process and target.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lgm import gaussian, registry
from lgm.gaussian import Process
from lgm.losses.densities import Density, by_quantile, pdf

Weighting = Callable[[Process, str, jax.Array], jax.Array]
SNR_LIMIT = 1e6  # of the signal-to-noise ratio and its inverse: keeps weights finite at both ends of t


def per_x_error(process: Process, target: str, t: jax.Array) -> jax.Array:
    """(error of the target) / (error of x) = ((a q - b p) / b)^2, limited where b or a is 0."""
    p, q = gaussian.coefficients(process, target, t)
    b = jnp.maximum(process.b(t), SNR_LIMIT**-0.5)
    return jnp.maximum(jnp.square((process.a(t) * q - b * p) / b), 1.0 / SNR_LIMIT)


def snr_of(process: Process, t: jax.Array) -> jax.Array:
    """a^2 / b^2, within [1 / SNR_LIMIT, SNR_LIMIT]."""
    return jnp.exp(jnp.clip(process.log_snr(t), -math.log(SNR_LIMIT), math.log(SNR_LIMIT)))


def _on_x(weight: Callable[[Process, jax.Array], jax.Array]) -> Weighting:
    """A weighting stated on the x-error."""
    return lambda process, target, t: weight(process, t) / per_x_error(process, target, t)


def _above_zero(**options: float) -> None:
    for name, value in options.items():
        if value <= 0:
            raise ValueError(f"weighting option {name}={value} must be above 0")


def constant() -> Weighting:
    """Every t counts alike in the network's own target."""
    return lambda process, target, t: jnp.ones_like(t)


def snr() -> Weighting:
    """SNR on the x-error: DDPM's simple loss, constant on eps, for any target (2006.11239, eq. 14)."""
    return _on_x(snr_of)


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on the x-error (Hang et al. 2023, 2303.09556)."""
    _above_zero(gamma=gamma)
    return _on_x(lambda process, t: jnp.minimum(snr_of(process, t), gamma))


def truncated_snr() -> Weighting:
    """max(SNR, 1) on the x-error (Salimans & Ho 2022, 2202.00512, eq. 9)."""
    return _on_x(lambda process, t: jnp.maximum(snr_of(process, t), 1.0))


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """1 / (k + SNR)^gamma on the eps-error (Choi et al. 2022, 2204.00227, eq. 8)."""
    if gamma < 0:
        raise ValueError(f"weighting option gamma={gamma} must be at least 0")
    _above_zero(k=k)
    return _on_x(lambda process, t: snr_of(process, t) / (k + snr_of(process, t)) ** gamma)


def edm(sigma_data: float = 0.5) -> Weighting:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on the x-error (Karras et al. 2022, 2206.00364, table 1): the
    error of an untrained network counts 1 at every t."""
    _above_zero(sigma_data=sigma_data)
    return _on_x(lambda process, t: snr_of(process, t) + sigma_data**-2)


def sigmoid(bias: float = 2.0) -> Weighting:
    """sigmoid(bias - log SNR) on the eps-error (VDM++, Kingma & Gao 2023, 2303.00848; bias -1 to 3 in later work)."""
    return _on_x(lambda process, t: snr_of(process, t) * jax.nn.sigmoid(bias - jnp.log(snr_of(process, t))))


def _log_snr_rate(process: Process, t: jax.Array) -> jax.Array:
    """-d log SNR / dt = 2 (b' / b - a' / a), finite at the ends."""
    a, b = (jnp.maximum(c(t), SNR_LIMIT**-0.5) for c in (process.a, process.b))
    return 2.0 * (process.db(t) / b - process.da(t) / a)


def vlb() -> Weighting:
    """-1/2 d log SNR / dt on the eps-error: the expectation over uniform t is the diffusion part of the variational
    bound in nats (Kingma et al. 2021, 2107.00630, eq. 14), on one scale for all processes. See `evaluate.snr_grid`."""
    return _on_x(lambda process, t: 0.5 * _log_snr_rate(process, t) * snr_of(process, t))


def flow() -> Weighting:
    """Flow matching's own: constant on the flow target, for a network of any target (2403.03206, section 2)."""
    return _on_x(lambda process, t: per_x_error(process, "flow", t))


def sd3(density: str = "logit_normal", mean: float = 0.0, std: float = 1.0, scale: float = 1.29,
        shift: float = 1.0) -> Weighting:
    """SD3's density of t as a weighting under uniform t: pi(t) on the flow target (2403.03206, section 3.1). Any of
    `densities.PDFS`; mean and std are those of "logit_normal", scale that of "mode"."""
    options = {"logit_normal": {"mean": mean, "std": std}, "mode": {"scale": scale}}.get(density, {})
    p = pdf(density, shift, **options)
    return _on_x(lambda process, t: p(_inside(t)) * per_x_error(process, "flow", t))


def _inside(t: jax.Array) -> jax.Array:
    return jnp.clip(t, 1e-6, 1.0 - 1e-6)


def importance(target: Callable[[jax.Array], jax.Array], drawn: Callable[[jax.Array], jax.Array]) -> Weighting:
    """target(t) / drawn(t): makes an expectation under t ~ drawn that under t ~ target (both from `densities.pdf`)."""
    return lambda process, kind, t: target(_inside(t)) / drawn(_inside(t))


def traded(process: Process, target: str, weighting: Weighting, draws: str = "independent",
           bins: int = 1024, floor: float = 1e-3) -> tuple[Density, Weighting]:
    """(density, weighting) with the expectation of `weighting` under uniform t, but t drawn in proportion to it.

    The density p is constant over each of `bins` intervals of t and at least `floor`; what is left of the weighting is
    w(t) / p(t), which is near the mean of w, so the two expectations are the same whatever the bins' width, and the
    variance is that of an unweighted loss.
    """
    edges = jnp.linspace(0.0, 1.0, 4 * bins + 1)
    with jax.ensure_compile_time_eval():
        middle = 0.5 * (edges[1:] + edges[:-1])
        mass = jnp.maximum(weighting(process, target, middle).reshape(bins, 4).mean(1), 0.0)
        share = (1.0 - floor) * mass / jnp.sum(mass) + floor / bins
        total = jnp.concatenate([jnp.zeros(1), jnp.cumsum(share)])
        total = total / total[-1]
    quantile = lambda u: jnp.interp(u, total, jnp.linspace(0.0, 1.0, bins + 1))
    bin_of = lambda t: jnp.clip(jnp.floor(t * bins).astype(jnp.int32), 0, bins - 1)
    # the density that is drawn from is the interpolated table's, rounding included
    pdf_of = lambda t: bins * (total[1:] - total[:-1])[bin_of(t)]
    return by_quantile(quantile, draws), lambda process, kind, t: weighting(process, kind, t) / pdf_of(t)


WEIGHTINGS = {
    "constant": constant,
    "snr": snr,
    "min_snr": min_snr,
    "truncated_snr": truncated_snr,
    "p2": p2,
    "edm": edm,
    "sigmoid": sigmoid,
    "vlb": vlb,
    "flow": flow,
    "sd3": sd3,
}


def weighting(name: str, **options) -> Weighting:
    """The weighting of that name; ValueError, one line, for a name or option there is not."""
    return registry.make("weighting", WEIGHTINGS, name, options)

"""Held-out error on one grid of log signal-to-noise ratios: the figure by which runs of all processes compare.

Every process passes through the same mixtures of data and noise up to a factor, and the errors of all targets at one
mixture are multiples of each other. So whatever a network predicts and wherever in t it was trained, its error can be
stated as that of v of a variance-preserving process at a given log SNR; and the error of eps, integrated over log SNR,
is the variational bound (`vlb_bits`). A network that knows nothing errs by about 1 in v, but one of eps by
1 + 1 / SNR where noise is high: what is left of its error there is what its samples start from.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lgm import gaussian
from lgm.parallel import even, in_batches, spread
from lgm.parsing import ConfigError
from lgm.system import System

GOLDEN = 0.5 * (5**0.5 - 1)  # its multiples fill [0, 1) evenly, however many are taken


def check_range(system: System) -> None:
    """Raise ConfigError, one line, where the process does not reach `config.evaluation.log_snr`."""
    low, high = system.config.evaluation.log_snr
    noisy, clean = (float(system.process.log_snr(jnp.float32(t))) for t in (1.0, 0.0))
    if not noisy <= low < high <= clean:
        raise ConfigError(f"config.evaluation.log_snr=({low:g}, {high:g}) must rise within what process "
                          f"{system.process.name!r} reaches, {noisy:.3g} to {clean:.3g}")


def snr_errors(system: System, params, latents: np.ndarray, tokens: np.ndarray, mask: np.ndarray,
               micro: np.ndarray | None = None) -> dict[str, float]:
    """Errors of the weights over images [N, ...] and `config.evaluation.levels` strata of log SNR.

    Returns `v_loss`, the mean squared error of v over log SNR; `vlb_bits`, the bound's part between the ends of the
    grid in bits an element (Kingma et al. 2021, 2107.00630, eq. 14); and `v_loss_snrS`, the mean of the stratum whose
    middle is S. {} for an empty set or no levels. Where in its stratum an image is measured, and under which noise,
    depends on the image's row and the stratum alone: the figures move with the weights and with nothing else.
    """
    options, count = system.config.evaluation, len(latents)
    if not (count and options.levels):
        return {}
    check_range(system)
    low, high = options.log_snr
    width = (high - low) / options.levels
    rows, levels = (a.ravel() for a in np.meshgrid(np.arange(count), np.arange(options.levels), indexing="ij"))
    ratios = (low + width * (levels + (0.5 + GOLDEN * (rows + 1)) % 1.0)).astype(np.float32)

    def errors_at(places):
        row = rows[places]
        told = spread(system.layout, latents[row], tokens[row], mask[row], ratios[places], row, levels[places])
        return _v_errors(system, params, *told, None if micro is None else spread(system.layout, micro[row])[0])

    size = even(system.layout, min(options.batch_size, len(rows)))
    errors = in_batches(errors_at, len(rows), size).astype(np.float64)
    by_level = errors.reshape(count, options.levels).mean(0)
    eps_errors = errors / (1.0 + np.exp(-ratios.astype(np.float64)))  # that of v times a^2
    middles = low + width * (np.arange(options.levels) + 0.5)
    return {
        "v_loss": float(by_level.mean()),
        "vlb_bits": float(0.5 * (high - low) * eps_errors.mean() / np.log(2.0)),
    } | {f"v_loss_snr{middle:+.2f}": float(error) for middle, error in zip(middles, by_level, strict=True)}


@functools.partial(jax.jit, static_argnums=0)
def _v_errors(system: System, params, latents, tokens, mask, ratio_B, rows_B, levels_B, micro):
    """[B] mean squared error of v at one log SNR an image."""
    cond = system.condition(params, tokens, mask, micro)
    key = lambda row, level: jax.random.fold_in(jax.random.fold_in(jax.random.key(1), level), row)
    eps = jax.vmap(lambda *at: jax.random.normal(key(*at), latents.shape[1:], jnp.float32))(rows_B, levels_B)
    t_B = system.process.time_at_log_snr(ratio_B)
    x_t = gaussian.add_noise(system.process, latents, eps, t_B)
    prediction = system.denoise(params, x_t, t_B, cond)
    x = gaussian.endpoints(system.process, system.config.loss.target, prediction, x_t, t_B).x
    # a x + b eps is known, so an error of x is one of v by the factor 1 / b at unit variance
    x_error_B = jnp.mean(jnp.square(x - latents), axis=tuple(range(1, x.ndim)))
    return x_error_B * (1.0 + jnp.exp(ratio_B))

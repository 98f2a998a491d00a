"""Held-out loss at fixed times and fixed noise: the number by which runs are compared."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lgm import losses
from lgm.parallel import even, fetch, spread
from lgm.parallel.options import quick_options
from lgm.system import System


def times(count: int) -> np.ndarray:
    """`count` equidistant t in (0, 1), ends left out: at t = 1 every flow model errs alike (2403.03206, section 5)."""
    return (np.arange(count, dtype=np.float32) + 0.5) / count


def heldout_loss(system: System, params, latents: np.ndarray, tokens: np.ndarray, mask: np.ndarray,
                 micro: np.ndarray | None = None, of: np.ndarray | None = None) -> dict[str, float]:
    """Mean error of the network's own target over images, times and noises, and the error at each time.

    The noise of image i is a function of i alone, so the figure moves with the weights and with nothing else. With
    `of`, the number of each image's source in a mixture, also the mean over each source's images, by its name.
    Returns {} for an empty set.
    """
    options = system.config.evaluation
    if not len(latents):
        return {}
    grid = times(options.times)
    totals, by_image = np.zeros(len(grid)), np.zeros(len(latents))
    size = even(system.layout, min(options.batch_size, len(latents)))
    condition, errors_of = (_program(function, size >= len(latents)) for function in (_condition, _errors))
    for start in range(0, len(latents), size):
        rows = np.arange(start, start + size)
        real = rows < len(latents)
        rows = np.where(real, rows, 0)
        told = spread(system.layout, latents[rows], tokens[rows], mask[rows], rows)
        sizes = None if micro is None else spread(system.layout, micro[rows])[0]
        cond = condition(system, params, *told[1:3], sizes)
        for noise in range(options.noises):
            errors_TB = [errors_of(system, params, told[0], cond, told[3], noise, t) for t in grid]
            errors = np.stack([fetch(errors_B) for errors_B in errors_TB])[:, real]
            totals += errors.sum(1)
            by_image[rows[real]] += errors.mean(0) / options.noises
    by_time = totals / (len(latents) * options.noises)
    sources = {} if of is None else {
        f"heldout_loss_{system.config.data.source[part].name}": float(by_image[of == part].mean())
        for part in np.unique(of)
    }
    return {"heldout_loss": float(by_time.mean())} | sources | {
        f"heldout_loss_t{t:.4f}": float(v) for t, v in zip(grid, by_time, strict=True)
    }


@functools.cache
def _program(function: Callable, few: bool) -> Callable:
    """`jax.jit` of one of the two below; a `few` images, of one batch, are sooner measured than code is optimized."""
    return jax.jit(function, static_argnums=0, compiler_options=quick_options() if few else None)


def _condition(system: System, params, tokens, mask, micro):
    return system.condition(params, tokens, mask, micro)


def _errors(system: System, params, latents, cond, rows, noise, t):
    """[B] mean squared error of the prediction target at the time t, one program for all."""
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), noise), row))(rows)
    eps = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:], jnp.float32))(keys)
    predict = functools.partial(system.denoise, params)
    return losses.denoising_at(
        system.process, system.config.loss.target, predict, latents, cond, jnp.full(len(latents), t), eps
    )

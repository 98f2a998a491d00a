"""Log densities by the probability-flow ODE, with the trace of its Jacobian estimated by Skilling and Hutchinson.

Along dx/dt = v(x, t), the velocity that a prediction implies, d log p_t(x_t) / dt = -div v: so the density of data is
that of the noise they flow to, plus the divergence met on the way (Song et al. 2021, 2011.13456, section 4.3 and eq. 39
to 40; FFJORD, 1810.01367; SiT, 2401.08740, has it for straight paths).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lgm import gaussian
from lgm.gaussian import Process, singular_at
from lgm.parallel import even, in_batches, spread
from lgm.parsing import ConfigError
from lgm.system import System

ENDS = (1e-3, 1.0)  # of t: the data's density has no bound where they lie on less than all dimensions


def log_density(process: Process, target: str, predict: Callable, x: jax.Array, probes: jax.Array,
                steps: int = 64, ends: tuple[float, float] = ENDS) -> jax.Array:
    """[B] log p(x) in nats for x [B, ...], taken to be x_t at `ends[0]`.

    `predict(x_t, t_B)` is a network's output of the kind `target`. `probes` [K, B, ...] are what the divergence is
    estimated with: the mean of K products e . J e, unbiased for e of mean 0 and covariance I (signs, of least
    variance). Classic Runge-Kutta of fourth order, `steps` of them, their lengths growing in t as a square does, four
    evaluations with K gradients each. Raises ValueError for ends that do not rise in [0, 1], or where the prediction
    says nothing of the data.
    """
    low, high = ends
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(f"ends={ends} must rise within [0, 1]")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    for t in ends:
        if singular_at(process, target, t):
            raise ValueError(f"target {target!r} says nothing of the data at t={t:g} under process {process.name!r}; "
                             "let the ends lie inside")
    axes = tuple(range(1, x.ndim))

    def velocity(x, t):
        t_B = jnp.full(x.shape[:1], t)
        found = gaussian.endpoints(process, target, predict(x, t_B), x, t_B)
        return gaussian.target(process, "flow", found.x, found.eps, t_B)

    def slope(x, t):
        value, back = jax.vjp(lambda x: velocity(x, t), x)
        traces_KB = jax.lax.map(lambda e: jnp.sum(e * back(e.astype(value.dtype))[0], axes), probes)
        return value, traces_KB.mean(0)

    def step(carry, bounds):
        (x, total_B), (t, s) = carry, bounds
        h = s - t
        first = slope(x, t)
        second = slope(x + 0.5 * h * first[0], t + 0.5 * h)
        third = slope(x + 0.5 * h * second[0], t + 0.5 * h)
        fourth = slope(x + h * third[0], s)
        mean = lambda a, b, c, d: h * (a + 2.0 * b + 2.0 * c + d) / 6.0
        return (x + mean(first[0], second[0], third[0], fourth[0]),
                total_B + mean(first[1], second[1], third[1], fourth[1])), None

    times = jnp.asarray(low + (high - low) * np.linspace(0.0, 1.0, steps + 1) ** 2, float)
    start = jnp.asarray(x, float), jnp.zeros(x.shape[:1], float)
    (x_T, divergence_B), _ = jax.lax.scan(step, start, (times[:-1], times[1:]))
    deviation = gaussian.pure_noise(process, jnp.asarray(1.0, float), high)
    size = math.prod(x.shape[1:])
    noise_B = -0.5 * jnp.sum(jnp.square(x_T / deviation), axes) - size * (0.5 * math.log(2 * math.pi)
                                                                          + jnp.log(deviation))
    return noise_B + divergence_B


def likelihood(system: System, params, latents: np.ndarray, tokens: np.ndarray, mask: np.ndarray, steps: int,
               probes: int = 1) -> dict[str, float]:
    """`latent_bits`, -log2 p a value of images' standardised latents [N, ...] given their captions, without guidance;
    and its standard error over images, `latent_bits_error`.

    Latents are continuous: this is a density, which may lie below 0, and compares runs on one autoencoder alone. The
    probes of image i are a function of i. {} for an empty set. Raises ConfigError where the process's last t is silent
    under the target.
    """
    if not (count := len(latents)):
        return {}
    ends = ENDS if not singular_at(system.process, system.config.loss.target, 1.0) else (ENDS[0], 0.999)
    given = lambda rows: spread(system.layout, latents[rows], tokens[rows], mask[rows], rows)
    try:
        found = in_batches(lambda rows: _densities(system, steps, probes, ends, params, *given(rows)), count,
                           even(system.layout, min(system.config.evaluation.batch_size, count)))
    except ValueError as error:
        raise ConfigError(f"the likelihood cannot be taken: {error}") from None
    bits = -found.astype(np.float64) / (math.log(2.0) * latents[0].size)
    error = bits.std(ddof=1) / math.sqrt(count) if count > 1 else math.inf
    return {"latent_bits": float(bits.mean()), "latent_bits_error": float(error)}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _densities(system: System, steps: int, probes: int, ends, params, latents, tokens, mask, rows):
    cond = system.condition(params, tokens, mask)
    signs = lambda row: jax.random.rademacher(jax.random.fold_in(jax.random.key(2), row), (probes, *latents.shape[1:]),
                                              jnp.float32)
    predict = lambda x, t_B: system.denoise(params, x, t_B, cond)
    return log_density(system.process, system.config.loss.target, predict, latents,
                       jnp.moveaxis(jax.vmap(signs)(rows), 1, 0), steps, ends)

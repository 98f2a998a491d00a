"""The variational bound of a denoiser in bits: one scale for every process and prediction target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lgm import gaussian
from lgm.gaussian import Process


def bits_per_dimension(process: Process, target: str, predict: Callable, x: jax.Array, cond, key: jax.Array,
                       log_snr: Sequence[float] = (-8.0, 8.0), levels: int = 32) -> jax.Array:
    """[B] the diffusion part of the bound between two log signal-to-noise ratios, in bits an element of x [B, ...].

    1/2 the integral of E (eps - eps_hat)^2 over log SNR (Kingma et al. 2021, 2107.00630, eq. 14 with the change of
    variables of section 5.1), whose value depends on the network and the two ends but not on the path between them: so
    runs of different processes compare. `levels` strata of equal width, one draw in each. `predict(x_t, t_B, cond)`.
    Raises ValueError where the process does not reach an end.
    """
    low, high = log_snr
    with jax.ensure_compile_time_eval():  # the ends are checked when it is traced, too
        reached = [float(process.log_snr(jnp.float32(t))) for t in (1.0, 0.0)]
    if not reached[0] <= low < high <= reached[1]:
        raise ValueError(
            f"log_snr={tuple(log_snr)} must rise within what process {process.name!r} reaches, "
            f"{reached[0]:.3g} to {reached[1]:.3g}"
        )
    place_key, noise_key = jax.random.split(key)
    edges = np.linspace(low, high, levels, endpoint=False)

    def at(total_B, inputs):
        edge, place_key, noise_key = inputs
        ratio_B = edge + (high - low) / levels * jax.random.uniform(place_key, x.shape[:1])
        t_B = process.time_at_log_snr(ratio_B)
        eps = jax.random.normal(noise_key, x.shape, jnp.float32)
        x_t = gaussian.add_noise(process, x, eps, t_B)
        eps_hat = gaussian.endpoints(process, target, predict(x_t, t_B, cond), x_t, t_B).eps
        error_B = jnp.mean(jnp.square(eps - eps_hat), axis=tuple(range(1, x.ndim)))
        return total_B + error_B, None

    inputs = jnp.asarray(edges, jnp.float32), jax.random.split(place_key, levels), jax.random.split(noise_key, levels)
    total_B, _ = jax.lax.scan(at, jnp.zeros(x.shape[:1]), inputs)
    return 0.5 * (high - low) / levels * total_B / np.log(2.0)

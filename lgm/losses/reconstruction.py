"""The autoencoder's objective: reconstruction, a gradient term and KL to the unit Gaussian."""

import jax
import jax.numpy as jnp


def gradient_l1(x_BHWC: jax.Array, y_BHWC: jax.Array) -> jax.Array:
    """Mean absolute difference of neighbouring-pixel differences: edges where they belong, without a network."""
    error = (x_BHWC - y_BHWC).astype(jnp.float32)
    across = jnp.abs(error[:, :, 1:] - error[:, :, :-1])
    down = jnp.abs(error[:, 1:] - error[:, :-1])
    return across.mean() + down.mean()


def kl_to_unit_gaussian(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, averaged over every latent element."""
    mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
    return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def psnr(x_BHWC: jax.Array, y_BHWC: jax.Array) -> jax.Array:
    """[B] peak signal-to-noise ratio in dB of images in [-1, 1]; `y` is clipped to that range first."""
    error = jnp.square(x_BHWC.astype(jnp.float32) - jnp.clip(y_BHWC.astype(jnp.float32), -1.0, 1.0))
    return 10.0 * jnp.log10(4.0 / jnp.maximum(error.mean((1, 2, 3)), 1e-10))

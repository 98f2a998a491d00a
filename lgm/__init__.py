"""lgm: latent generative models in JAX. Train, scale, compare and evaluate latent image generators."""

from lgm.registry import register

__version__ = "0.1.0"
__all__ = ["register"]

"""lgm: latent generative models in JAX. Train, scale, compare and evaluate latent image generators."""

__version__ = "0.1.0"

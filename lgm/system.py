"""A text-to-image system: autoencoder, text encoder, denoiser, process and tokenizer, put together from a config.

Training, sampling, evaluation and export all speak to this one object; only `denoiser` and `text` are trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgm import losses, process, sampling
from lgm.config import Config
from lgm.models import Conditioning, Model, Params, build
from lgm.models.autoencoder import standardize, unstandardize
from lgm.parsing import ConfigError
from lgm.weights import load_autoencoder


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: a static argument of compiled functions
class System:
    """The parts of a run. `params` are {"denoiser": ..., "text": ...}; the autoencoder's stay apart, frozen."""

    config: Config
    denoiser: Model
    text: Model | None
    autoencoder: Model
    process: process.Process
    tokenizer: Any

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters of all that is trained."""
        denoiser, text = jax.random.split(key)
        params = {"denoiser": self.denoiser.init(denoiser)}
        return params | ({"text": self.text.init(text)} if self.text else {})

    def logical_axes(self) -> Params:
        """Logical axes of every trained parameter."""
        axes = {"denoiser": self.denoiser.logical_axes()}
        return axes | ({"text": self.text.logical_axes()} if self.text else {})

    def condition(self, params: Params, tokens_BL: jax.Array, mask_BL: jax.Array) -> Conditioning:
        """What the denoiser is told of captions."""
        if self.text is None:
            return Conditioning()
        hidden_BLD, pooled_BP = self.text.apply(params["text"], tokens_BL, mask_BL)
        return Conditioning(text=hidden_BLD, text_mask=mask_BL, pooled=pooled_BP)

    def tokenize(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids [B, L] int32, mask [B, L] bool), L being the text encoder's length. Raises on one that does not fit."""
        if self.text is None:
            return np.zeros((len(captions), 1), np.int32), np.ones((len(captions), 1), bool)
        return self.tokenizer.encode(captions)

    def unconditional(self, count: int) -> tuple[jax.Array, jax.Array]:
        """Tokens and mask that stand for no caption, [count, L]."""
        ids, mask = self.tokenizer.unconditional if self.text else (np.zeros((1,), np.int32), np.ones((1,), bool))
        return jnp.tile(jnp.asarray(ids), (count, 1)), jnp.tile(jnp.asarray(mask), (count, 1))

    def denoise(self, params: Params, x_BHWC: jax.Array, t_B: jax.Array, cond: Conditioning) -> jax.Array:
        """The network's raw output, of the config's target kind."""
        return self.denoiser.apply(params["denoiser"], x_BHWC, t_B, cond)

    def encode(self, frozen: Params, images_BHWC: jax.Array) -> jax.Array:
        """Latents of uint8 images: the posterior's mean, standardised."""
        mean, _ = self.autoencoder.apply(frozen, images_BHWC.astype(jnp.float32) / 127.5 - 1.0, method="encode")
        return standardize(self.autoencoder.config, mean)

    def decode(self, frozen: Params, latents_BHWC: jax.Array) -> jax.Array:
        """uint8 images of standardised latents."""
        x = self.autoencoder.apply(frozen, unstandardize(self.autoencoder.config, latents_BHWC), method="decode")
        return jnp.clip(jnp.round((x + 1.0) * 127.5), 0, 255).astype(jnp.uint8)

    def latent_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of a latent at the config's resolution."""
        c = self.autoencoder.config
        side = self.config.data.resolution // c.factor
        return side, side, c.latent_channels


def build_system(config: Config) -> tuple[System, Params]:
    """(system, the frozen autoencoder's parameters) of a config."""
    from lgm.data import Tokenizer

    autoencoder, frozen = load_autoencoder(config.autoencoder)
    text = build(config.text.encoder) if config.text else None
    tokenizer = Tokenizer(config.text.tokenizer, max_length=config.text.encoder.max_length) if config.text else None
    if text and text.config.vocab_size < tokenizer.vocab_size:
        raise ConfigError(f"config.text.encoder.vocab_size={text.config.vocab_size} is too small for the "
                          f"{tokenizer.vocab_size} entries of config.text.tokenizer={config.text.tokenizer!r}")
    gaussian = named(process.build, config.process, "config.process")
    sampling.solver(config.sampling.solver)  # a name that is not there is refused before anything is trained
    sampling.times(gaussian, config.sampling.steps, **config.sampling.schedule)
    return System(config, build(config.model), text, autoencoder, gaussian, tokenizer), frozen


def named(make, section: Mapping[str, Any], key: str):
    """`make(name, **options)` of a config section {"name": ..., **options}; errors name the section's key."""
    options = dict(section)
    if "name" not in options:
        raise ConfigError(f"{key}.name is missing; a section says what it is by name and gives that its options")
    try:
        return make(options.pop("name"), **options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key}: {error}") from None


def build_loss(config: Config, gaussian: process.Process):
    """The denoising loss of a config: `loss(predict, x, cond, key) -> (scalar, metrics)`."""
    density = named(losses.density, config.loss.density, "config.loss.density")
    weighting = named(losses.weighting, config.loss.weighting, "config.loss.weighting")
    return losses.denoising(gaussian, config.loss.target, density, weighting)

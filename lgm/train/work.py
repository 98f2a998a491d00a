"""FLOPs of training on one image: three forward passes of what is trained, one of what is frozen in the step."""

from typing import Any

import jax
import jax.numpy as jnp

from lgm.models.flops import count_flops
from lgm.system import System


def training_flops(system: System, frozen: Any, executed: bool = False) -> float:
    """FLOPs of a train step on one image, by the models' standard counts or, with `executed`, of what is computed.

    The denoiser, and a text encoder that is trained with it, count three times: a backward pass is twice a forward one.
    """
    frozen = _abstract(frozen)
    tokens, mask = _abstract(system.unconditional(1))
    text = {"text": system.text.abstract()} if system.text else {"text": frozen.get("text")}
    cond = jax.eval_shape(system.condition, text, tokens, mask)
    x = jax.ShapeDtypeStruct((1, *system.latent_shape()), jnp.float32)
    flops = system.denoiser.flops(x, jax.ShapeDtypeStruct((1,), jnp.float32), cond, executed=executed)
    if system.text and not system.config.lora:
        flops += system.text.flops(tokens, mask, executed=executed)
    return 3.0 * flops + frozen_flops(system, frozen, executed)


def frozen_flops(system: System, frozen: Any, executed: bool = False) -> float:
    """FLOPs of what a train step computes of one image without training it: the autoencoder's encoder where latents are
    not kept, and text encoders that are frozen, where what they say is not. `frozen` are arrays or shapes."""
    frozen, config = _abstract(frozen), system.config
    tokens, mask = _abstract(system.unconditional(1))
    flops = 0.0
    if config.data.latents == "step":
        image = jax.ShapeDtypeStruct((1, *config.data.size, 3), jnp.float32)
        flops += system.autoencoder.flops(image, method="encode", executed=executed)
    if system.folder is not None and "text" in frozen:
        flops += count_flops(system.folder.condition, frozen["text"], tokens, mask, executed=executed)
    elif system.text and config.lora:
        flops += system.text.flops(tokens, mask, executed=executed)
    return flops


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

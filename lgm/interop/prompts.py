"""What each released system tells its denoiser of a prompt: which encoders, how padded, how joined."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lgm.interop.diffusers_dir import Pipeline
from lgm.models import Conditioning, Model, Params

T5_TOKENS = {"StableDiffusion3Pipeline": 256, "FluxPipeline": 512}


def condition(
    pipeline: Pipeline,
    params: Mapping[str, Params],
    prompts: Sequence[str],
    size: tuple[int, int],
    *,
    guidance: float = 1.0,
    t5_tokens: int | None = None,
) -> Conditioning:
    """The conditioning of `prompts` for images of `size` (height, width) in pixels.

    `guidance` goes to a denoiser that was distilled with it (Flux.1-dev) and is ignored by the others; `t5_tokens` is
    the length that texts are padded to for T5 (256 in SD3, 512 in Flux).
    """
    count = len(prompts)
    encode = lambda place, length=None: _encode(pipeline, params, place, prompts, length)
    t5_tokens = t5_tokens or T5_TOKENS.get(pipeline.name)
    if pipeline.name == "StableDiffusionPipeline":
        return Conditioning(text=encode("text_encoder")[0])
    if pipeline.name == "StableDiffusionXLPipeline":
        (first, _), (second, pooled) = encode("text_encoder"), encode("text_encoder_2")
        ids = jnp.asarray([*size, 0, 0, *size], jnp.float32)  # original size, crop's corner, target size
        return Conditioning(text=jnp.concatenate([first, second], -1), pooled=pooled, micro=jnp.tile(ids, (count, 1)))
    if pipeline.name == "StableDiffusion3Pipeline":
        (first, pooled), (second, pooled_2) = encode("text_encoder"), encode("text_encoder_2")
        clip = jnp.concatenate([first, second], -1)
        width = pipeline.denoiser.config.text_dim
        clip = jnp.pad(clip, ((0, 0), (0, 0), (0, width - clip.shape[-1])))
        if "text_encoder_3" in pipeline.models:
            t5 = encode("text_encoder_3", t5_tokens)
        else:
            t5 = jnp.zeros((count, t5_tokens, width), clip.dtype)
        pooled = jnp.concatenate([pooled, pooled_2], -1)
        return Conditioning(text=jnp.concatenate([clip, t5.astype(clip.dtype)], 1), pooled=pooled)
    _, pooled = encode("text_encoder")
    scale = jnp.full(count, guidance, jnp.float32) if pipeline.denoiser.config.guidance else None
    return Conditioning(text=encode("text_encoder_2", t5_tokens), pooled=pooled, guidance=scale)


def unconditional(
    pipeline: Pipeline,
    params: Mapping[str, Params],
    count: int,
    size: tuple[int, int],
    negative: str | None = None,
    t5_tokens: int | None = None,
) -> Conditioning:
    """What guidance extrapolates from: the conditioning of `negative`, or of no prompt at all.

    SDXL's folder may ask that no prompt be zeros instead of the encoding of an empty text.
    """
    cond = condition(pipeline, params, [negative or ""] * count, size, t5_tokens=t5_tokens)
    if negative is None and pipeline.options.get("force_zeros_for_empty_prompt"):
        return Conditioning(text=jnp.zeros_like(cond.text), pooled=jnp.zeros_like(cond.pooled), micro=cond.micro)
    return cond


def _encode(pipeline: Pipeline, params, place: str, prompts: Sequence[str], length: int | None):
    """What the text encoder at `place` gives; no mask, padding counts, as in all four systems."""
    ids, _ = pipeline.tokenizers[place].encode(prompts, length)
    return _apply(pipeline.models[place], params[place], np.asarray(ids))


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Model, params: Params, ids_BL):
    return model.apply(params, ids_BL)

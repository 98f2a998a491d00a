"""What each released system tells its denoiser of a prompt: which encoders, how padded, how joined."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lgm.data.class_names import ClassNames
from lgm.interop.diffusers_dir import SCORES, Pipeline
from lgm.models import Conditioning, Model, Params

Ids = Mapping[str, np.ndarray]  # place of a text encoder -> token ids [B, L]


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
    the length that texts are padded to for T5 (`t5_length`).
    """
    return encode(pipeline, params, tokenize(pipeline, prompts, t5_tokens), size, guidance)


def unconditional(
    pipeline: Pipeline,
    params: Mapping[str, Params],
    count: int,
    size: tuple[int, int],
    negative: str | None = None,
    t5_tokens: int | None = None,
    guidance: float = 1.0,
) -> Conditioning:
    """What guidance extrapolates from: the conditioning of `negative`, or of no prompt at all.

    SDXL's folder may ask that no prompt be zeros instead of the encoding of an empty text.
    """
    ids = nothing(pipeline, count, t5_tokens) if negative is None else tokenize(pipeline, [negative] * count, t5_tokens)
    cond = encode(pipeline, params, ids, size, guidance, SCORES[1])
    return zeroed(cond) if negative is None and zeros_for_nothing(pipeline) else cond


def tokenize(pipeline: Pipeline, prompts: Sequence[str], t5_tokens: int | None = None) -> Ids:
    """The ids [B, L] of `prompts` for every text encoder by its place; of a class-conditional system their labels."""
    if pipeline.name == "DiTPipeline":
        return {"label": class_names_of(pipeline).encode(prompts)[0]}
    t5 = t5_tokens or t5_length(pipeline)
    length = lambda place: t5 if pipeline.classes[place] == "T5EncoderModel" else None
    ids = {place: part.encode(prompts, length(place))[0] for place, part in pipeline.tokenizers.items()}
    if pipeline.name == "StableDiffusion3Pipeline" and "text_encoder_3" not in ids:
        ids["text_encoder_3"] = np.zeros((len(prompts), t5), np.int32)  # for `encode` to fill with zeros
    return ids


def t5_length(pipeline: Pipeline) -> int:
    """The length that a system's own program pads texts to for T5: 256 in SD3 and Flux.1-schnell, 512 in Flux.1-dev."""
    return 512 if pipeline.told.guidance else 256


def nothing(pipeline: Pipeline, count: int, t5_tokens: int | None = None) -> Ids:
    """The ids of no prompt."""
    if pipeline.name == "DiTPipeline":
        return {"label": np.full((count, 1), pipeline.denoiser.config.classes, np.int32)}
    return tokenize(pipeline, [""] * count, t5_tokens)


def zeros_for_nothing(pipeline: Pipeline) -> bool:
    """Whether no prompt is told by zeros."""
    return bool(pipeline.options.get("force_zeros_for_empty_prompt"))


def zeroed(cond: Conditioning) -> Conditioning:
    """`cond` without its text."""
    return dataclasses.replace(cond, text=jnp.zeros_like(cond.text), pooled=jnp.zeros_like(cond.pooled))


def encode(
    pipeline: Pipeline, params: Mapping[str, Params], ids: Ids, size: tuple[int, int], guidance: float = 1.0,
    score: float = SCORES[0],
) -> Conditioning:
    """The conditioning of what `tokenize` gives; no mask, padding counts, as in all these systems. `score` is what
    SDXL's refiner is told of the picture."""
    count = len(next(iter(ids.values())))
    run = lambda place: _apply(pipeline.models[place], params[place], ids[place])
    if pipeline.name == "DiTPipeline":
        return Conditioning(label=jnp.asarray(ids["label"])[:, 0])
    if pipeline.name == "StableDiffusionPipeline":
        return Conditioning(text=run("text_encoder")[0])
    if pipeline.name == "StableDiffusionXLPipeline":
        second, pooled = run("text_encoder_2")
        text = jnp.concatenate([run("text_encoder")[0], second], -1) if "text_encoder" in pipeline.models else second
        # original size, crop's corner, target size
        micro = jnp.asarray([*size, 0, 0, *((score,) if pipeline.scored else size)], jnp.float32)
        return Conditioning(text=text, pooled=pooled, micro=jnp.tile(micro, (count, 1)))
    if pipeline.name == "StableDiffusion3Pipeline":
        (first, pooled), (second, pooled_2) = run("text_encoder"), run("text_encoder_2")
        clip = jnp.concatenate([first, second], -1)
        width = pipeline.denoiser.config.text_dim
        clip = jnp.pad(clip, ((0, 0), (0, 0), (0, width - clip.shape[-1])))
        if "text_encoder_3" in pipeline.models:
            t5 = run("text_encoder_3")
        else:
            t5 = jnp.zeros((*ids["text_encoder_3"].shape, width), clip.dtype)
        pooled = jnp.concatenate([pooled, pooled_2], -1)
        return Conditioning(text=jnp.concatenate([clip, t5.astype(clip.dtype)], 1), pooled=pooled)
    _, pooled = run("text_encoder")
    scale = jnp.full(count, guidance, jnp.float32) if pipeline.denoiser.config.guidance else None
    return Conditioning(text=run("text_encoder_2"), pooled=pooled, guidance=scale)


def class_names_of(pipeline: Pipeline) -> ClassNames:
    """The classes of a class-conditional system, with the names of the folder's id2label."""
    labels = pipeline.options.get("id2label") or {}
    names = {name.strip().lower(): int(key) for key, value in labels.items() for name in value.split(",")}
    return ClassNames(pipeline.denoiser.config.classes, names)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Model, params: Params, ids_BL):
    return model.apply(params, ids_BL)

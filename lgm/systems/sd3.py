"""SD3 and SD3.5: an MMDiT told two CLIP encoders' features, side by side and padded with zeros to T5's width, then
T5's, and both vectors. Without T5 zeros stand for its features."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from lgm.models import Conditioning
from lgm.systems.release import COMFY_TEXT, Defaults, Ids, Pipeline, Released, Run, texts


def tokenize(pipeline: Pipeline, prompts: Sequence[str], t5_tokens: int) -> Ids:
    ids = texts(pipeline, prompts, t5_tokens)
    if "text_encoder_3" not in ids:
        ids["text_encoder_3"] = np.zeros((len(prompts), t5_tokens), np.int32)  # for `encode` to fill with zeros
    return ids


def encode(pipeline: Pipeline, run: Run, ids: Ids, size: tuple[int, int], score: float) -> Conditioning:
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


SD3 = Released(
    "StableDiffusion3Pipeline", "mmdit", "transformer", "SD3Transformer2DModel",
    encode=encode,
    defaults=lambda pipeline: Defaults(28, 7.0),
    autoencoder=("autoencoder", "sd3"),
    tokenizer_of={"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"},
    needed=("text_encoder",),
    encoder_options=dict.fromkeys(("text_encoder", "text_encoder_2"), {"hidden": "penultimate"}),
    optional=("text_encoder_3", "tokenizer_3", "feature_extractor", "image_encoder"),
    tokenize=tokenize,
    rounds_up=True,
    standardizes="shift",
    whole=lambda configs: {"transformer": "model.diffusion_model.", "vae": "first_stage_model.", **COMFY_TEXT},
    encoders=lambda config: {"text_encoder": ("clip_text", "clip_l_sd3"),
                             "text_encoder_2": ("clip_text", "open_clip_bigg"),
                             "text_encoder_3": ("t5", "t5_v1_1_xxl")},
)  # fmt: skip

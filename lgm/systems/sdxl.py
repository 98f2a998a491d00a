"""SDXL: a U-Net told two CLIP encoders' features, side by side, a vector, sizes and crop; its refiner the second's
alone and, in the place of the target size, an aesthetic score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from lgm.models import Conditioning
from lgm.systems.release import Defaults, Ids, Pipeline, Released, Run, micro


def encode(pipeline: Pipeline, run: Run, ids: Ids, size: tuple[int, int], score: float) -> Conditioning:
    second, pooled = run("text_encoder_2")
    text = jnp.concatenate([run("text_encoder")[0], second], -1) if "text_encoder" in pipeline.models else second
    return Conditioning(text=text, pooled=pooled, micro=micro(size, (score,) if pipeline.scored else size, len(text)))


def check(configs: Mapping[str, Any], folder: Path) -> None:
    """The U-Net takes the widths that the text encoders give."""
    unet, width = configs["unet"], sum(config.width for place, config in configs.items() if place.startswith("text_"))
    path = folder / "unet" / "config.json"
    if unet.text_dim != width:
        raise ValueError(f"{path}: cross_attention_dim={unet.text_dim}, but the text encoders that model_index.json "
                         f"names give {width}")
    if unet.pooled_dim != (pooled := configs["text_encoder_2"].projection_dim):
        raise ValueError(f"{path}: projection_class_embeddings_input_dim leaves {unet.pooled_dim} for the text's "
                         f"vector, which has {pooled}; does requires_aesthetics_score in model_index.json fit it?")


def whole(configs: Mapping[str, Any]) -> Mapping[str, str]:
    """The prefixes of a single file; the refiner has one text encoder, as its first."""
    second = "conditioner.embedders.1.model." if "text_encoder" in configs else "conditioner.embedders.0.model."
    return {"unet": "model.diffusion_model.", "vae": "first_stage_model.",
            "text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": second}  # fmt: skip


SDXL = Released(
    "StableDiffusionXLPipeline", "unet", "unet", "UNet2DConditionModel",
    encode=encode,
    defaults=lambda pipeline: Defaults(50, 5.0),
    autoencoder=("autoencoder", "sdxl"),
    member=lambda config: config.added_dim > 0,
    tokenizer_of={"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
    needed=("text_encoder_2",),  # all that the refiner has
    encoder_options=dict.fromkeys(("text_encoder", "text_encoder_2"), {"hidden": "penultimate"}),
    optional=("text_encoder", "tokenizer", "feature_extractor", "image_encoder"),
    scored=True,
    whole=whole,
    standardizes="means",
    check=check,
    encoders=lambda config: {"text_encoder": ("clip_text", "clip_l_sdxl"),
                             "text_encoder_2": ("clip_text", "open_clip_bigg")},
)  # fmt: skip

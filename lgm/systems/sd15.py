"""Stable Diffusion 1 and 2: a U-Net told the features of one CLIP encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lgm.models import Conditioning
from lgm.systems.release import Defaults, Released


def open_clip(configs: Mapping[str, Any]) -> bool:
    """Whether the text encoder is OpenCLIP's, as Stable Diffusion 2 has it, in whose layout its files are."""
    return configs["text_encoder"].activation == "gelu"


SD15 = Released(
    "StableDiffusionPipeline", "unet", "unet", "UNet2DConditionModel",
    encode=lambda pipeline, run, ids, size, score: Conditioning(text=run("text_encoder")[0]),
    defaults=lambda pipeline: Defaults(50, 7.5),
    autoencoder=("autoencoder", "sd15"),
    member=lambda config: not config.added_dim,
    tokenizer_of={"text_encoder": "tokenizer"},
    needed=("text_encoder",),
    optional=("safety_checker", "feature_extractor", "image_encoder"),
    corrected={**dict.fromkeys(("", "Img2Img"), {"steps_offset": 1, "clip_sample": False}),
               "Inpaint": {"steps_offset": 1, "skip_prk_steps": True}},
    kohya="diffusers",
    kohya_text={"text_encoder": "lora_te_"},
    whole=lambda configs: {"unet": "model.diffusion_model.", "vae": "first_stage_model.",
                           "text_encoder": f"cond_stage_model.{'model.' if open_clip(configs) else 'transformer.'}"},
    encoders=lambda config: {"text_encoder": ("clip_text", "clip_l")},
)  # fmt: skip

"""Stable Diffusion 1 and 2: a U-Net told the features of one CLIP encoder."""

from lgm.models import Conditioning
from lgm.systems.release import Defaults, Released

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
    encoders=lambda config: {"text_encoder": ("clip_text", "clip_l")},
)  # fmt: skip

"""Flux.1: told T5's features, CLIP's vector and, as Flux.1-dev is distilled from guidance, its scale. Flux.1-schnell is
distilled to few steps and takes none."""

from __future__ import annotations

from lgm.models import Conditioning
from lgm.systems.release import Defaults, Ids, Pipeline, Released, Run


def encode(pipeline: Pipeline, run: Run, ids: Ids, size: tuple[int, int], score: float) -> Conditioning:
    _, pooled = run("text_encoder")
    return Conditioning(text=run("text_encoder_2"), pooled=pooled)


COMFY_TEXT = {"text_encoder": "text_encoders.clip_l.transformer.", "text_encoder_2": "text_encoders.t5xxl.transformer."}

FLUX = Released(
    "FluxPipeline", "flux", "transformer", "FluxTransformer2DModel",
    encode=encode,
    defaults=lambda pipeline: Defaults(28, 3.5) if pipeline.conditioning.guidance else Defaults(4, 1.0),
    autoencoder=("autoencoder", "flux"),
    tokenizer_of={"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
    needed=("text_encoder",),
    optional=("feature_extractor", "image_encoder"),
    t5_tokens=lambda spec: 512 if spec.guidance else 256,
    extrapolates=lambda pipeline: False,
    even=True,
    rounds_up=True,
    standardizes="shift",
    kohya_text={"text_encoder": "lora_te1_", "text_encoder_2": "lora_te3_"},  # T5's number is SD3's
    comfy_text=COMFY_TEXT,
    whole=lambda configs: {"transformer": "model.diffusion_model.", "vae": "vae.", **COMFY_TEXT},
    default_size=128,  # its transformer's configuration does not say
    encoders=lambda config: {"text_encoder": ("clip_text", "clip_l"), "text_encoder_2": ("t5", "t5_v1_1_xxl")},
)  # fmt: skip

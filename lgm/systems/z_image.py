"""Z-Image: told the last hidden states but one of a language model that reads the prompt as a user's words.

diffusers counts its guidance scale from 0: what is 5 there is 6 here, where 1 is the conditional prediction alone. That
alone is what Z-Image-Turbo, which is distilled to eight steps, is drawn by.
"""

from __future__ import annotations

from collections.abc import Sequence

from lgm.models import Conditioning
from lgm.systems.release import Defaults, Ids, Pipeline, Released, Run, within

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def tokenize(pipeline: Pipeline, prompts: Sequence[str], tokens: int) -> Ids:
    return within(TEMPLATE, pipeline, prompts, tokens)


def encode(pipeline: Pipeline, run: Run, ids: Ids, size: tuple[int, int], score: float) -> Conditioning:
    return Conditioning(text=run("text_encoder"), text_mask=ids["text_encoder"] >= 0)


Z_IMAGE = Released(
    "ZImagePipeline", "z_image", "transformer", "ZImageTransformer2DModel",
    encode=encode,
    defaults=lambda pipeline: Defaults(50, 6.0, strength=0.6),
    autoencoder=("autoencoder", "flux"),
    tokenizer_of={"text_encoder": "tokenizer"},
    needed=("text_encoder",),
    encoder_options={"text_encoder": {"hidden": (-2,)}},
    tokenize=tokenize,
    t5_tokens=lambda spec: 512,
    words=("<|im_start|>", "<|im_end|>"),
    even=True,
    rounds_up=True,
    standardizes="shift",
    default_size=128,  # its transformer's configuration does not say
    kohya="diffusers",
    encoders=lambda config: {"text_encoder": ("causal_text", "qwen3_4b")},
)  # fmt: skip

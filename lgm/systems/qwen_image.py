"""Qwen-Image: told the last hidden states of a language model that is asked to describe the image, less those of the
question itself. No prompt is a space.

Guidance brings each token's norm back to that of the conditional prediction (`sampling.token_rescaled`).
"""

from __future__ import annotations

from collections.abc import Sequence

from lgm.models import Conditioning
from lgm.systems.release import Defaults, Ids, Pipeline, Released, Run, within

TEMPLATE = ("<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
            "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
            "<|im_start|>assistant\n")  # fmt: skip
QUESTION = 34  # tokens of it before the prompt, by Qwen's vocabulary


def tokenize(pipeline: Pipeline, prompts: Sequence[str], tokens: int) -> Ids:
    return within(TEMPLATE, pipeline, prompts, QUESTION + tokens)


def encode(pipeline: Pipeline, run: Run, ids: Ids, size: tuple[int, int], score: float) -> Conditioning:
    return Conditioning(text=run("text_encoder")[:, QUESTION:], text_mask=ids["text_encoder"][:, QUESTION:] >= 0)


QWEN_IMAGE = Released(
    "QwenImagePipeline", "qwen_image", "transformer", "QwenImageTransformer2DModel",
    encode=encode,
    defaults=lambda pipeline: Defaults(50, 4.0, strength=0.6, rule="token_rescaled"),
    autoencoder=("frame_autoencoder", "qwen_image"),
    tokenizer_of={"text_encoder": "tokenizer"},
    needed=("text_encoder",),
    tokenize=tokenize,
    nothing=lambda pipeline, count, tokens: tokenize(pipeline, [" "] * count, tokens),
    t5_tokens=lambda spec: 512,
    words=("<|im_start|>", "<|im_end|>"),
    even=True,
    rounds_up=True,
    standardizes="means",
    default_size=128,  # its transformer's configuration does not say
    kohya="diffusers",
    encoders=lambda config: {"text_encoder": ("causal_text", "qwen25_7b")},
)  # fmt: skip

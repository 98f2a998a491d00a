"""Flux.2: told three hidden states of a language model, of padding too, which its network attends to.

Flux.2-dev reads the prompt with Mistral Small 3 as a user's words to a system that describes pictures, and is distilled
from guidance. Klein reads it with Qwen3, which is not to think; it is guided or, where its folder says that it is
distilled, to four steps, is not. Both shift their times by a rule of their own, for steps and tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgm.models import Conditioning
from lgm.systems.release import Defaults, Ids, Pipeline, Released, Run, within

DEV = ("<s>[SYSTEM_PROMPT]You are an AI that reasons about image descriptions. You give structured responses focusing "
       "on object relationships, object\nattribution and actions without speculation.[/SYSTEM_PROMPT][INST]{}[/INST]")
KLEIN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
PICTURE = "[IMG]"  # the mark of a picture, which no prompt may have
MANY = 4300  # tokens beyond which the number of steps has no part in the shift


def tokenize_dev(pipeline: Pipeline, prompts: Sequence[str], tokens: int) -> Ids:
    return within(DEV, pipeline, [prompt.replace(PICTURE, "") for prompt in prompts], tokens)


def tokenize_klein(pipeline: Pipeline, prompts: Sequence[str], tokens: int) -> Ids:
    return within(KLEIN, pipeline, prompts, tokens)


def encode(pipeline: Pipeline, run: Run, ids: Ids, size: tuple[int, int], score: float) -> Conditioning:
    return Conditioning(text=run("text_encoder"))


def log_shift(tokens: int, steps: int) -> float:
    """The log of the shift of times: on the line through those of 10 and of 200 steps, which are lines in tokens."""
    few, many = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    return many if tokens > MANY else many + (many - few) / 190 * (steps - 200)


def check(configs: Mapping[str, Any], folder: Path) -> None:
    """The network takes the widths of the three states together."""
    network, encoder = configs["transformer"], configs["text_encoder"]
    if network.text_dim != (width := encoder.width * len(encoder.hidden)):
        raise ValueError(f"{folder / 'transformer' / 'config.json'}: joint_attention_dim={network.text_dim}, but "
                         f"{len(encoder.hidden)} states of the text encoder are {width} wide")


_BOTH = dict(
    encode=encode,
    tokenizer_of={"text_encoder": "tokenizer"},
    needed=("text_encoder",),
    autoencoder=("autoencoder", "flux2"),
    t5_tokens=lambda spec: 512,
    even=True,
    log_shift=log_shift,
    rounds_up=True,
    standardizes="patches",
    default_size=128,  # its transformer's configuration does not say
    check=check,
)

FLUX2 = Released(
    "Flux2Pipeline", "flux2", "transformer", "Flux2Transformer2DModel", **_BOTH,
    member=lambda config: config.guidance,
    defaults=lambda pipeline: Defaults(50, 4.0),
    extrapolates=lambda pipeline: False,
    tokenize=tokenize_dev,
    encoder_options={"text_encoder": {"hidden": (10, 20, 30)}},
    words=("<s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"),
    encoders=lambda config: {"text_encoder": ("causal_text", "mistral_small_3")},
)  # fmt: skip

FLUX2_KLEIN = Released(
    "Flux2KleinPipeline", "flux2", "transformer", "Flux2Transformer2DModel", **_BOTH,
    member=lambda config: not config.guidance,
    defaults=lambda pipeline: Defaults(50, 4.0) if pipeline.extrapolates else Defaults(4, 1.0),
    extrapolates=lambda pipeline: not pipeline.options.get("is_distilled"),
    tokenize=tokenize_klein,
    encoder_options={"text_encoder": {"hidden": (9, 18, 27)}},
    words=("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    encoders=lambda config: {"text_encoder": ("causal_text", "qwen3_4b" if config.width < 4096 else "qwen3_8b")},
)  # fmt: skip

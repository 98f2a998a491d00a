"""Key maps of the text encoders, in the layout of transformers' CLIPTextModel, T5EncoderModel and BertModel."""

from __future__ import annotations

from lgm.interop.keymap import Extra, Rule, linear, norm, prefixed
from lgm.interop.weights import Weights
from lgm.models.clip_text import CLIPTextConfig


def clip_text(config: CLIPTextConfig) -> list[Rule | Extra]:
    """CLIPTextModel or, with a projection, CLIPTextModelWithProjection, as all released checkpoints name them."""
    layer = "encoder.layers.{layer}."
    inside = [
        Rule("tokens/table", "embeddings.token_embedding.weight"),
        Rule("positions/table", "embeddings.position_embedding.weight"),
        Extra("embeddings.position_ids"),  # 0, 1, 2, ...: a buffer that older versions saved
        *norm("blocks/norm1", f"{layer}layer_norm1"),
        *linear("blocks/attn/qkv", tuple(f"{layer}self_attn.{part}_proj" for part in "qkv")),
        *linear("blocks/attn/out", f"{layer}self_attn.out_proj"),
        *norm("blocks/norm2", f"{layer}layer_norm2"),
        *linear("blocks/fc1", f"{layer}mlp.fc1"),
        *linear("blocks/fc2", f"{layer}mlp.fc2"),
        *norm("norm", "final_layer_norm"),
    ]
    projection = linear("projection", "text_projection", bias=False) if config.projection_dim else []
    return prefixed(inside, theirs="text_model.") + projection


def clip_text_weights(weights: Weights) -> Weights:
    """`weights` under the names of the released checkpoints; transformers 5 saves CLIPTextModel without the prefix."""
    known = ("text_model.", "text_projection.")
    return weights.renamed(lambda name: name if name.startswith(known) else f"text_model.{name}")

"""Key maps of the text encoders, in the layout of transformers' CLIPTextModel, T5EncoderModel and BertModel."""

from __future__ import annotations

from lgm.interop.keymap import Extra, Rule, linear, norm, prefixed
from lgm.interop.tensor_files import Weights
from lgm.models.bert import BERTConfig
from lgm.models.clip_text import CLIPTextConfig
from lgm.models.t5 import T5Config


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


def t5(config: T5Config) -> list[Rule | Extra]:
    """T5EncoderModel."""
    attn, mlp = "encoder.block.{layer}.layer.0.", "encoder.block.{layer}.layer.1."
    wi = ("wi_0", "wi_1") if config.gated else ("wi",)
    return [
        Rule("tokens/table", "shared.weight"),
        Extra("encoder.embed_tokens.weight"),  # the same table once more
        # only the first block of theirs holds the bias that all use
        Rule("relative_bias/table", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        *norm("blocks/norm1", f"{attn}layer_norm", bias=False),
        *linear("blocks/attn/qkv", tuple(f"{attn}SelfAttention.{part}" for part in "qkv"), bias=False),
        *linear("blocks/attn/out", f"{attn}SelfAttention.o", bias=False),
        *norm("blocks/norm2", f"{mlp}layer_norm", bias=False),
        *linear("blocks/wi", tuple(f"{mlp}DenseReluDense.{part}" for part in wi), bias=False),
        *linear("blocks/wo", f"{mlp}DenseReluDense.wo", bias=False),
        *norm("norm", "encoder.final_layer_norm", bias=False),
    ]


def t5_weights(weights: Weights) -> Weights:
    """`weights` without a decoder, and with the embedding under the name that T5EncoderModel gives it."""
    tied = "encoder.embed_tokens.weight"
    table = "shared.weight" if "shared.weight" not in weights.names else None  # the same once more
    rename = lambda name: table if name == tied else name
    return weights.renamed(lambda name: None if name.startswith(("decoder.", "lm_head.")) else rename(name))


def bert(config: BERTConfig) -> list[Rule | Extra]:
    """BertModel."""
    layer = "encoder.layer.{layer}."
    qkv = tuple(f"{layer}attention.self.{part}" for part in ("query", "key", "value"))
    pooler = linear("pooler", "pooler.dense") if config.pooler else []
    return [
        Rule("tokens/table", "embeddings.word_embeddings.weight"),
        Rule("positions/table", "embeddings.position_embeddings.weight"),
        Rule("types/table", "embeddings.token_type_embeddings.weight"),
        Extra("embeddings.position_ids"),
        *norm("norm", "embeddings.LayerNorm"),
        *linear("blocks/attn/qkv", qkv),
        *linear("blocks/attn/out", f"{layer}attention.output.dense"),
        *norm("blocks/norm1", f"{layer}attention.output.LayerNorm"),
        *linear("blocks/fc1", f"{layer}intermediate.dense"),
        *linear("blocks/fc2", f"{layer}output.dense"),
        *norm("blocks/norm2", f"{layer}output.LayerNorm"),
        *pooler,
    ]

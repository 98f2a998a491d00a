"""Configurations of text encoders, from transformers' config.json to ours and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lgm.interop.fields import check, expect
from lgm.interop.tables import BERT, CLIP, T5
from lgm.models.bert import BERTConfig
from lgm.models.clip_text import CLIPTextConfig
from lgm.models.t5 import T5Config

_LEGACY_EOS = 2  # in older CLIP configurations, where the end token is found as the largest id instead


def read_clip(config: Mapping[str, Any]) -> CLIPTextConfig:
    """CLIPTextConfig of a CLIPTextModel; `projection_dim` is for a model with a projection to keep."""
    check(config, CLIP)
    eos = config.get("eos_token_id", _LEGACY_EOS)
    return CLIPTextConfig(
        vocab_size=config.get("vocab_size", 49408),
        width=config.get("hidden_size", 512),
        depth=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 8),
        mlp_width=config.get("intermediate_size", 2048),
        max_length=config.get("max_position_embeddings", 77),
        activation=config.get("hidden_act", "quick_gelu"),
        pool="largest" if eos == _LEGACY_EOS else eos,
        projection_dim=config.get("projection_dim", 512),
    )


def write_clip(config: CLIPTextConfig) -> dict[str, Any]:
    """config.json of a CLIPTextModel (WithProjection)."""
    if not config.causal:
        raise ValueError("transformers' CLIPTextModel is causal; a text encoder with causal=False cannot be exported")
    if config.pool == "last":
        raise ValueError("transformers' CLIPTextModel pools at an end token; set pool to its id")
    projected = config.projection_dim is not None
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width or 4 * config.width,
        "max_position_embeddings": config.max_length,
        "hidden_act": config.activation,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": _LEGACY_EOS if config.pool == "largest" else config.pool,
        "projection_dim": config.projection_dim or config.width,
    }


def read_t5(config: Mapping[str, Any]) -> T5Config:
    """T5Config of a T5EncoderModel."""
    check(config, T5)
    feed_forward = config.get("feed_forward_proj", "relu")
    gated = feed_forward != "relu"
    expect(config, "is_gated_act", gated)  # both follow from it
    expect(config, "dense_act_fn", "gelu_new" if gated else "relu")
    return T5Config(
        vocab_size=config.get("vocab_size", 32128),
        width=config.get("d_model", 512),
        depth=config.get("num_layers", 6),
        heads=config.get("num_heads", 8),
        head_width=config.get("d_kv", 64),
        mlp_width=config.get("d_ff", 2048),
        activation="gelu_tanh" if gated else "relu",
        gated=gated,
        buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128),
    )


def write_t5(config: T5Config) -> dict[str, Any]:
    """config.json of a T5EncoderModel."""
    activation = {"gelu_tanh": "gelu", "relu": "relu"}[config.activation]
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "num_layers": config.depth,
        "num_heads": config.heads,
        "d_kv": config.head_width,
        "d_ff": config.mlp_width,
        "feed_forward_proj": f"gated-{activation}" if config.gated else activation,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": 1e-6,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def read_bert(config: Mapping[str, Any]) -> BERTConfig:
    """BERTConfig of a BertModel."""
    check(config, BERT)
    return BERTConfig(
        vocab_size=config.get("vocab_size", 30522),
        width=config.get("hidden_size", 768),
        depth=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 12),
        mlp_width=config.get("intermediate_size", 3072),
        max_length=config.get("max_position_embeddings", 512),
        token_types=config.get("type_vocab_size", 2),
    )


def write_bert(config: BERTConfig) -> dict[str, Any]:
    """config.json of a BertModel."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width or 4 * config.width,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.token_types,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }

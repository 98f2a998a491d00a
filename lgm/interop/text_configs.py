"""Configurations of text encoders, from transformers' config.json to ours and back."""

from collections.abc import Mapping
from typing import Any

from lgm.interop.fields import expect, read_fields, written_fields
from lgm.interop.tables import BERT, CLIP, T5
from lgm.models.bert import BERTConfig
from lgm.models.clip_text import CLIPTextConfig
from lgm.models.t5 import T5Config

_LEGACY_EOS = 2  # in older CLIP configurations, where the end token is found as the largest id instead


def read_clip(config: Mapping[str, Any]) -> CLIPTextConfig:
    """CLIPTextConfig of a CLIPTextModel; `projection_dim` is for a model with a projection to keep."""
    ours, eos = read_fields(config, CLIP), config.get("eos_token_id", _LEGACY_EOS)
    return CLIPTextConfig(**ours, activation=config.get("hidden_act", "quick_gelu"),
                          pool="largest" if eos == _LEGACY_EOS else eos)


def write_clip(config: CLIPTextConfig) -> dict[str, Any]:
    """config.json of a CLIPTextModel (WithProjection)."""
    if not config.causal:
        raise ValueError("transformers' CLIPTextModel is causal; a text encoder with causal=False cannot be exported")
    if config.pool == "last":
        raise ValueError("transformers' CLIPTextModel pools at an end token; set pool to its id")
    projected = config.projection_dim is not None
    return written_fields(config, CLIP) | {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "intermediate_size": config.mlp_width or 4 * config.width,
        "hidden_act": config.activation,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": _LEGACY_EOS if config.pool == "largest" else config.pool,
        "projection_dim": config.projection_dim or config.width,
    }


def read_t5(config: Mapping[str, Any]) -> T5Config:
    """T5Config of a T5EncoderModel."""
    ours = read_fields(config, T5)
    feed_forward = config.get("feed_forward_proj", "relu")
    gated = feed_forward != "relu"
    expect(config, "is_gated_act", gated)  # both follow from it
    expect(config, "dense_act_fn", "gelu_new" if gated else "relu")
    return T5Config(**ours, activation="gelu_tanh" if gated else "relu", gated=gated)


def write_t5(config: T5Config) -> dict[str, Any]:
    """config.json of a T5EncoderModel."""
    activation = {"gelu_tanh": "gelu", "relu": "relu"}[config.activation]
    return written_fields(config, T5) | {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "feed_forward_proj": f"gated-{activation}" if config.gated else activation,
        "layer_norm_epsilon": 1e-6,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def read_bert(config: Mapping[str, Any]) -> BERTConfig:
    """BERTConfig of a BertModel."""
    return BERTConfig(**read_fields(config, BERT))


def write_bert(config: BERTConfig) -> dict[str, Any]:
    """config.json of a BertModel."""
    return written_fields(config, BERT) | {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "intermediate_size": config.mlp_width or 4 * config.width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }

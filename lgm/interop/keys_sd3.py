"""Key map and configuration of SD3 and SD3.5, in the layout of diffusers' SD3Transformer2DModel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from lgm.interop.fields import check, expect
from lgm.interop.keymap import Extra, Rule, linear, norm, prefixed, rearrange
from lgm.interop.tables import SD3
from lgm.interop.tensor_files import Weights
from lgm.models.embeddings import sincos_2d
from lgm.models.mmdit import MMDiTConfig

TABLE = "pos_embed.pos_embed"
TABLE_ROUNDING = 0.01  # what a table saved in 16 bits may be off by


def sd3_rules(config: MMDiTConfig) -> list[Rule | Extra]:
    """SD3Transformer2DModel; its table of positions is no parameter, but is saved."""
    patches = rearrange("o c p q -> (p q c) o", c=config.channels, p=config.patch_size, q=config.patch_size)
    dual, last = range(config.dual_attention), config.depth - 1
    plain = range(config.dual_attention, last)
    return [
        Extra(TABLE, lambda: _table(config)),
        *linear("patches", "pos_embed.proj", transform=patches),
        *linear("time/fc1", "time_text_embed.timestep_embedder.linear_1"),
        *linear("time/fc2", "time_text_embed.timestep_embedder.linear_2"),
        *linear("pooled/fc1", "time_text_embed.text_embedder.linear_1"),
        *linear("pooled/fc2", "time_text_embed.text_embedder.linear_2"),
        *linear("text", "context_embedder"),
        *(_block(config, "dual/", "transformer_blocks.{layer}.", dual=True, layers=dual) if dual else ()),
        *(_block(config, "blocks/", "transformer_blocks.{layer}.", layers=plain) if plain else ()),
        *_block(config, "last/", f"transformer_blocks.{last}.", context_pre_only=True),
        *linear("modulation", "norm_out.linear"),
        *linear("out", "proj_out"),
    ]


def _block(config: MMDiTConfig, ours: str, theirs: str, *, dual=False, context_pre_only=False, **rule) -> list[Rule]:
    """JointTransformerBlock."""
    rules = [
        *linear("image/modulation", "norm1.linear", **rule),
        *linear("text/modulation", "norm1_context.linear", **rule),
        *_attention(config, "image/joint", [f"attn.to_{part}" for part in "qkv"], "attn.norm_", **rule),
        *_attention(config, "text/joint", [f"attn.add_{part}_proj" for part in "qkv"], "attn.norm_added_", **rule),
        *linear("image/joint/out", "attn.to_out.0", **rule),
        *_mlp("image/mlp", "ff", **rule),
    ]
    if dual:
        rules += _attention(config, "image/dual", [f"attn2.to_{part}" for part in "qkv"], "attn2.norm_", **rule)
        rules += linear("image/dual/out", "attn2.to_out.0", **rule)
    if not context_pre_only:
        rules += linear("text/joint/out", "attn.to_add_out", **rule)
        rules += _mlp("text/mlp", "ff_context", **rule)
    return prefixed(rules, ours, theirs)


def _attention(config: MMDiTConfig, ours: str, qkv: list[str], norms: str, **rule) -> list[Rule]:
    rules = linear(f"{ours}/qkv", tuple(qkv), **rule)
    if config.qk_norm == "rms":
        rules += norm(f"{ours}/norm_q", f"{norms}q", bias=False, **rule)
        rules += norm(f"{ours}/norm_k", f"{norms}k", bias=False, **rule)
    return rules


def _mlp(ours: str, theirs: str, **rule) -> list[Rule]:
    return linear(f"{ours}/fc1", f"{theirs}.net.0.proj", **rule) + linear(f"{ours}/fc2", f"{theirs}.net.2", **rule)


def read_sd3(config: Mapping[str, Any]) -> MMDiTConfig:
    """MMDiTConfig of an SD3Transformer2DModel."""
    check(config, SD3)
    channels, patch = config.get("in_channels", 16), config.get("patch_size", 2)
    heads, head_width = config.get("num_attention_heads", 18), config.get("attention_head_dim", 64)
    expect(config, "out_channels", channels, None)
    expect(config, "caption_projection_dim", heads * head_width)
    dual = tuple(config.get("dual_attention_layers") or ())
    if dual != tuple(range(len(dual))):
        raise ValueError(f"config.json: dual_attention_layers={dual} must be the first layers")
    return MMDiTConfig(
        channels=channels,
        patch_size=patch,
        width=heads * head_width,
        depth=config.get("num_layers", 18),
        heads=heads,
        text_dim=config.get("joint_attention_dim", 4096),
        pooled_dim=config.get("pooled_projection_dim", 2048),
        position_size=config.get("pos_embed_max_size", 96),
        base_size=config.get("sample_size", 128) // patch,
        qk_norm="rms" if expect(config, "qk_norm", None, "rms_norm") else "none",
        dual_attention=len(dual),
    )


def write_sd3(config: MMDiTConfig) -> dict[str, Any]:
    """config.json of an SD3Transformer2DModel."""
    if config.mlp_ratio != 4:
        raise ValueError(f"diffusers' SD3Transformer2DModel has mlp_ratio 4; {config.mlp_ratio} cannot be exported")
    return {
        "_class_name": "SD3Transformer2DModel",
        "in_channels": config.channels,
        "out_channels": config.channels,
        "patch_size": config.patch_size,
        "num_layers": config.depth,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "caption_projection_dim": config.width,
        "joint_attention_dim": config.text_dim,
        "pooled_projection_dim": config.pooled_dim,
        "pos_embed_max_size": config.position_size,
        "sample_size": config.base_size * config.patch_size,
        "qk_norm": "rms_norm" if config.qk_norm == "rms" else None,
        "dual_attention_layers": list(range(config.dual_attention)),
    }


def with_positions_of(config: MMDiTConfig, weights: Weights) -> MMDiTConfig:
    """`config` with the scale and offset of the positions that the checkpoint's own table encodes.

    config.json does not tell how a table was made, and diffusers takes what is saved. Raises ValueError, one line, for
    a table that is not sines and cosines of evenly spaced places.
    """
    plain = dataclasses.replace(config, position_scale=None, position_offset=0.0)
    size, quarter = config.position_size, config.width // 4
    if TABLE not in weights.names or weights.shape(TABLE) != (1, size**2, config.width):
        return plain  # what is missing or of the wrong shape is named where it is needed
    found = np.asarray(weights.get(TABLE)[0, :size, : 2 * quarter], np.float64)  # the columns of the first row
    if np.abs(found - _columns(plain)).max() < TABLE_ROUNDING:
        return plain
    angles = np.unwrap(np.arctan2(found[:, 0], found[:, quarter]))  # the first frequency is 1
    scale, first = np.polyfit(np.arange(size), angles, 1)
    for turn in range(-size, size + 1):  # the first place is known but for whole turns
        offset = _tidy(2 * np.pi * turn - first, 2e-3)
        fitted = dataclasses.replace(config, position_scale=_tidy(scale, 1e-5), position_offset=offset)
        if np.abs(found - _columns(fitted)).max() < TABLE_ROUNDING:
            return fitted
    raise ValueError(f"{weights.path}: {TABLE!r} is no table of evenly spaced sine-cosine positions")


def _tidy(value: float, tolerance: float) -> float:
    """A number near a simple fraction is that fraction, seen through the rounding of the table."""
    near = float(Fraction(float(value)).limit_denominator(128))
    return near if abs(near - value) < tolerance else float(value)


def _columns(config: MMDiTConfig) -> np.ndarray:
    """What the table's first row says of its columns."""
    size = config.position_size
    row = sincos_2d(config.width, 1, size, size, config.base_size, config.position_scale, config.position_offset)
    return row[:, : config.width // 2]


def _table(config: MMDiTConfig) -> np.ndarray:
    """The whole table of positions [1, places, width]."""
    size = config.position_size
    scale, offset = config.position_scale, config.position_offset
    return sincos_2d(config.width, size, size, size, config.base_size, scale, offset)[None]

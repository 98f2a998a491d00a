"""Key map and configuration of Flux.1, in the layout of diffusers' FluxTransformer2DModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lgm.interop.fields import check, expect
from lgm.interop.keymap import Rule, linear, norm
from lgm.interop.tables import FLUX
from lgm.models.flux import FluxConfig

_PACKED = 4  # channels of theirs for one of ours: a token is 2 x 2 latent pixels, cut by diffusers' pipeline


def flux_rules(config: FluxConfig) -> list[Rule]:
    """FluxTransformer2DModel."""
    single = "single_transformer_blocks.{layer}."
    return [
        *linear("patches", "x_embedder"),
        *_embedder("time", "timestep_embedder"),
        *(_embedder("guidance", "guidance_embedder") if config.guidance else []),
        *_embedder("pooled", "text_embedder"),
        *linear("text", "context_embedder"),
        *_stream("image", ("to_q", "to_k", "to_v"), "norm_", "to_out.0", ""),
        *_stream("text", ("add_q_proj", "add_k_proj", "add_v_proj"), "norm_added_", "to_add_out", "_context"),
        *linear("single/modulation", f"{single}norm.linear"),
        *linear("single/heads/qkv", tuple(f"{single}attn.to_{part}" for part in "qkv")),
        *norm("single/heads/norm_q", f"{single}attn.norm_q", bias=False),
        *norm("single/heads/norm_k", f"{single}attn.norm_k", bias=False),
        *linear("single/fc1", f"{single}proj_mlp"),
        *linear("single/out", f"{single}proj_out"),
        *linear("modulation", "norm_out.linear"),
        *linear("out", "proj_out"),
    ]


def _embedder(ours: str, theirs: str) -> list[Rule]:
    name = f"time_text_embed.{theirs}"
    return [*linear(f"{ours}/fc1", f"{name}.linear_1"), *linear(f"{ours}/fc2", f"{name}.linear_2")]


def _stream(ours: str, qkv: tuple[str, ...], norms: str, out: str, suffix: str) -> list[Rule]:
    """One modality's half of the double-stream blocks."""
    block = "transformer_blocks.{layer}."
    return [
        *linear(f"double/{ours}/modulation", f"{block}norm1{suffix}.linear"),
        *linear(f"double/{ours}/heads/qkv", tuple(f"{block}attn.{part}" for part in qkv)),
        *norm(f"double/{ours}/heads/norm_q", f"{block}attn.{norms}q", bias=False),
        *norm(f"double/{ours}/heads/norm_k", f"{block}attn.{norms}k", bias=False),
        *linear(f"double/{ours}/out", f"{block}attn.{out}"),
        *linear(f"double/{ours}/mlp/fc1", f"{block}ff{suffix}.net.0.proj"),
        *linear(f"double/{ours}/mlp/fc2", f"{block}ff{suffix}.net.2"),
    ]


def read_flux(config: Mapping[str, Any]) -> FluxConfig:
    """FluxConfig of a FluxTransformer2DModel."""
    check(config, FLUX)
    tokens = config.get("in_channels", 64)
    if tokens % _PACKED:
        raise ValueError(f"config.json: in_channels={tokens} must be a multiple of {_PACKED}, for tokens of 2 x 2")
    expect(config, "out_channels", tokens, None)  # fill, depth and canny models take more than they give
    heads, head_width = config.get("num_attention_heads", 24), config.get("attention_head_dim", 128)
    return FluxConfig(
        channels=tokens // _PACKED,
        width=heads * head_width,
        depth=config.get("num_layers", 19),
        single_depth=config.get("num_single_layers", 38),
        heads=heads,
        text_dim=config.get("joint_attention_dim", 4096),
        pooled_dim=config.get("pooled_projection_dim", 768),
        rotary_axes=tuple(config.get("axes_dims_rope", (16, 56, 56))),
        guidance=bool(config.get("guidance_embeds", False)),
    )


def write_flux(config: FluxConfig) -> dict[str, Any]:
    """config.json of a FluxTransformer2DModel."""
    if config.patch_size**2 != _PACKED:
        raise ValueError(f"diffusers' FluxPipeline has patch_size 2; {config.patch_size} cannot be exported")
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": config.channels * _PACKED,
        "out_channels": None,
        "num_layers": config.depth,
        "num_single_layers": config.single_depth,
        "attention_head_dim": config.width // config.heads,
        "num_attention_heads": config.heads,
        "joint_attention_dim": config.text_dim,
        "pooled_projection_dim": config.pooled_dim,
        "guidance_embeds": config.guidance,
        "axes_dims_rope": list(config.rotary_axes),
    }

"""Key map and configuration of Flux.2, in the layout of diffusers' Flux2Transformer2DModel; its original names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lgm.interop.fields import COUNT, COUNT_OR_NONE, COUNTS, FLAG, SIDE_OR_NONE, Table, check, expect, fixed
from lgm.interop.keymap import Rule, linear, norm
from lgm.interop.original_names import QKV, Layouts, Original, Source, replaced, same
from lgm.models.flux2 import MLP_RATIO, PERIOD, TIME_FEATURES, Flux2Config

_PACKED = 4  # channels of theirs for one of ours: a token is 2 x 2 latent pixels, cut by diffusers' pipeline
FLUX2: Table = {
    "attention_head_dim": COUNT,
    "axes_dims_rope": COUNTS,
    "eps": fixed(1e-6),
    "guidance_embeds": FLAG,
    "in_channels": COUNT,
    "joint_attention_dim": COUNT,
    "mlp_ratio": fixed(float(MLP_RATIO), MLP_RATIO),
    "num_attention_heads": COUNT,
    "num_layers": COUNT,
    "num_single_layers": COUNT,
    "out_channels": COUNT_OR_NONE,
    "patch_size": fixed(1),
    "rope_theta": fixed(int(PERIOD), PERIOD),
    "sample_size": SIDE_OR_NONE,
    "timestep_guidance_channels": fixed(TIME_FEATURES),
}


def flux2_rules(config: Flux2Config) -> list[Rule]:
    """Flux2Transformer2DModel."""
    single = "single_transformer_blocks.{layer}.attn."
    plain = {"patches": "x_embedder", "text": "context_embedder", "image_modulation": "double_stream_modulation_img",
             "text_modulation": "double_stream_modulation_txt", "single_modulation": "single_stream_modulation",
             "modulation": "norm_out", "out": "proj_out"}  # fmt: skip
    inside = lambda ours: ".linear" if ours.endswith("modulation") else ""
    return [
        *(rule for ours, theirs in plain.items() for rule in linear(ours, theirs + inside(ours), bias=False)),
        *_embedder("time", "timestep_embedder"),
        *(_embedder("guidance", "guidance_embedder") if config.guidance else []),
        *_stream("image", ("to_q", "to_k", "to_v"), "norm_", "to_out.0", "ff"),
        *_stream("text", ("add_q_proj", "add_k_proj", "add_v_proj"), "norm_added_", "to_add_out", "ff_context"),
        *linear("single/qkv", f"{single}to_qkv_mlp_proj", bias=False),
        *norm("single/norm_q", f"{single}norm_q", bias=False),
        *norm("single/norm_k", f"{single}norm_k", bias=False),
        *linear("single/out", f"{single}to_out", bias=False),
    ]


def _embedder(ours: str, theirs: str) -> list[Rule]:
    return [rule for i in (1, 2)
            for rule in linear(f"{ours}/fc{i}", f"time_guidance_embed.{theirs}.linear_{i}", bias=False)]  # fmt: skip


def _stream(ours: str, qkv: tuple[str, ...], norms: str, out: str, mlp: str) -> list[Rule]:
    """One modality's half of the double-stream blocks."""
    block = "transformer_blocks.{layer}."
    return [
        *linear(f"double/{ours}/heads/qkv", tuple(f"{block}attn.{part}" for part in qkv), bias=False),
        *norm(f"double/{ours}/heads/norm_q", f"{block}attn.{norms}q", bias=False),
        *norm(f"double/{ours}/heads/norm_k", f"{block}attn.{norms}k", bias=False),
        *linear(f"double/{ours}/out", f"{block}attn.{out}", bias=False),
        *linear(f"double/{ours}/mlp/wi", f"{block}{mlp}.linear_in", bias=False),
        *linear(f"double/{ours}/mlp/wo", f"{block}{mlp}.linear_out", bias=False),
    ]


_ORIGINAL = {
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_DOUBLE = {
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
    "transformer_blocks": "double_blocks",
}
_SINGLE = {
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
    "single_transformer_blocks": "single_blocks",
}


def original(_: Any) -> Original:
    """The names of the original file, which fuses q, k and v of the double-stream blocks."""

    def source(name: str) -> Source:
        if name.startswith("proj_out."):
            return Source(f"final_layer.linear.{name.removeprefix('proj_out.')}")
        if name.startswith("single_transformer_blocks."):
            return Source(replaced(name, _SINGLE))
        if fused := re.fullmatch(r"transformer_blocks\.(\d+)\.attn\.(to|add)_([qkv])(?:_proj)?\.weight", name):
            block, kind, part = fused.groups()
            return Source(f"double_blocks.{block}.{'img' if kind == 'to' else 'txt'}_attn.qkv.weight", QKV[part])
        if name.startswith("transformer_blocks."):
            return Source(replaced(name, _DOUBLE))
        return Source(replaced(name, _ORIGINAL), change="swap" if name.startswith("norm_out.") else None)

    return source


FLUX2_LAYOUTS: Layouts = (("", original), ("model.diffusion_model.", original), ("", same))


def read_flux2(config: Mapping[str, Any]) -> Flux2Config:
    """Flux2Config of a Flux2Transformer2DModel."""
    check(config, FLUX2)
    tokens = config.get("in_channels", 128)
    if tokens % _PACKED:
        raise ValueError(f"config.json: in_channels={tokens} must be a multiple of {_PACKED}, for tokens of 2 x 2")
    expect(config, "out_channels", tokens, None)
    heads, head_width = config.get("num_attention_heads", 48), config.get("attention_head_dim", 128)
    return Flux2Config(
        channels=tokens // _PACKED,
        width=heads * head_width,
        depth=config.get("num_layers", 8),
        single_depth=config.get("num_single_layers", 48),
        heads=heads,
        text_dim=config.get("joint_attention_dim", 15_360),
        rotary_axes=tuple(config.get("axes_dims_rope", (32, 32, 32, 32))),
        guidance=config.get("guidance_embeds", True),
    )


def write_flux2(config: Flux2Config) -> dict[str, Any]:
    """config.json of a Flux2Transformer2DModel."""
    if config.patch_size**2 != _PACKED:
        raise ValueError(f"diffusers' Flux2Pipeline has patch_size 2; {config.patch_size} cannot be exported")
    return {
        "_class_name": "Flux2Transformer2DModel",
        "patch_size": 1,
        "in_channels": config.channels * _PACKED,
        "out_channels": None,
        "num_layers": config.depth,
        "num_single_layers": config.single_depth,
        "attention_head_dim": config.width // config.heads,
        "num_attention_heads": config.heads,
        "joint_attention_dim": config.text_dim,
        "timestep_guidance_channels": TIME_FEATURES,
        "mlp_ratio": float(MLP_RATIO),
        "axes_dims_rope": list(config.rotary_axes),
        "rope_theta": int(PERIOD),
        "eps": 1e-6,
        "guidance_embeds": config.guidance,
    }

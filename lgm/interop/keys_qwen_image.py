"""Key map and configuration of Qwen-Image, in the layout of diffusers' QwenImageTransformer2DModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lgm.interop.fields import COUNT, COUNT_OR_NONE, COUNTS, Table, check, expect, fixed
from lgm.interop.keymap import Rule, linear, norm
from lgm.models.qwen_image import QwenImageConfig

_PATCH = 2  # latent pixels a side of a token, which diffusers' pipeline cuts
QWEN_IMAGE: Table = {
    "attention_head_dim": COUNT,
    "axes_dims_rope": COUNTS,
    "guidance_embeds": fixed(False),
    "in_channels": COUNT,
    "joint_attention_dim": COUNT,
    "num_attention_heads": COUNT,
    "num_layers": COUNT,
    "out_channels": COUNT_OR_NONE,
    "patch_size": fixed(_PATCH),
    "pooled_projection_dim": COUNT,  # of older folders; the class does not read it
    "use_additional_t_cond": fixed(False),  # these three are of the variants that are told pictures or give layers
    "use_layer3d_rope": fixed(False),
    "zero_cond_t": fixed(False),
}


def qwen_image_rules(config: QwenImageConfig) -> list[Rule]:
    """QwenImageTransformer2DModel."""
    time = "time_text_embed.timestep_embedder."
    return [
        *linear("patches", "img_in"),
        *linear("time/fc1", f"{time}linear_1"),
        *linear("time/fc2", f"{time}linear_2"),
        *norm("text_norm", "txt_norm", bias=False),
        *linear("text", "txt_in"),
        *_stream("image", "img", ("to_q", "to_k", "to_v"), "norm_", "to_out.0"),
        *_stream("text", "txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "norm_added_", "to_add_out"),
        *linear("modulation", "norm_out.linear"),
        *linear("out", "proj_out"),
    ]


def _stream(ours: str, theirs: str, qkv: tuple[str, ...], norms: str, out: str) -> list[Rule]:
    """One modality's half of the blocks."""
    block = "transformer_blocks.{layer}."
    return [
        *linear(f"blocks/{ours}/modulation", f"{block}{theirs}_mod.1"),
        *linear(f"blocks/{ours}/heads/qkv", tuple(f"{block}attn.{part}" for part in qkv)),
        *norm(f"blocks/{ours}/heads/norm_q", f"{block}attn.{norms}q", bias=False),
        *norm(f"blocks/{ours}/heads/norm_k", f"{block}attn.{norms}k", bias=False),
        *linear(f"blocks/{ours}/out", f"{block}attn.{out}"),
        *linear(f"blocks/{ours}/mlp/fc1", f"{block}{theirs}_mlp.net.0.proj"),
        *linear(f"blocks/{ours}/mlp/fc2", f"{block}{theirs}_mlp.net.2"),
    ]


def read_qwen_image(config: Mapping[str, Any]) -> QwenImageConfig:
    """QwenImageConfig of a QwenImageTransformer2DModel."""
    check(config, QWEN_IMAGE)
    tokens = config.get("in_channels", 64)
    if tokens % _PATCH**2:
        raise ValueError(f"config.json: in_channels={tokens} must be a multiple of {_PATCH**2}, for tokens of 2 x 2")
    channels = tokens // _PATCH**2
    expect({"out_channels": 16, **config}, "out_channels", channels)
    heads, head_width = config.get("num_attention_heads", 24), config.get("attention_head_dim", 128)
    return QwenImageConfig(
        channels=channels,
        width=heads * head_width,
        depth=config.get("num_layers", 60),
        heads=heads,
        text_dim=config.get("joint_attention_dim", 3584),
        rotary_axes=tuple(config.get("axes_dims_rope", (16, 56, 56))),
    )


def write_qwen_image(config: QwenImageConfig) -> dict[str, Any]:
    """config.json of a QwenImageTransformer2DModel."""
    if config.patch_size != _PATCH:
        raise ValueError(f"diffusers' QwenImagePipeline has patch_size {_PATCH}; {config.patch_size} cannot be "
                         "exported")  # fmt: skip
    return {
        "_class_name": "QwenImageTransformer2DModel",
        "patch_size": _PATCH,
        "in_channels": config.channels * _PATCH**2,
        "out_channels": config.channels,
        "num_layers": config.depth,
        "attention_head_dim": config.width // config.heads,
        "num_attention_heads": config.heads,
        "joint_attention_dim": config.text_dim,
        "guidance_embeds": False,
        "axes_dims_rope": list(config.rotary_axes),
    }

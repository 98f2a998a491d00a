"""Key map and configuration of Z-Image, in the layout of diffusers' ZImageTransformer2DModel; its original names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lgm.interop.fields import CARRIED, COUNT, COUNTS, POSITIVE, Table, check, fixed
from lgm.interop.keymap import Rule, Transform, linear, norm
from lgm.interop.original_names import QKV, Layouts, Original, Source, replaced, same
from lgm.models.z_image import ZImageConfig

_PATCH = 2  # the one that diffusers' pipeline asks for
Z_IMAGE: Table = {
    "all_f_patch_size": fixed((1,)),  # of films
    "all_patch_size": fixed((_PATCH,)),
    "axes_dims": COUNTS,
    "axes_lens": CARRIED,  # how far diffusers tabulates the angles
    "cap_feat_dim": COUNT,
    "dim": COUNT,
    "in_channels": COUNT,
    "n_heads": COUNT,
    "n_kv_heads": CARRIED,  # the class does not read it
    "n_layers": COUNT,
    "n_refiner_layers": COUNT,
    "norm_eps": fixed(1e-5),
    "qk_norm": fixed(True),
    "rope_theta": POSITIVE,
    "siglip_feat_dim": fixed(None),  # of the variant that is told pictures
    "t_scale": fixed(1000.0, 1000),
}
_TOKEN = Transform("1 d -> d")


def z_image_rules(config: ZImageConfig) -> list[Rule]:
    """ZImageTransformer2DModel."""
    patches, out = f"all_x_embedder.{config.patch_size}-1", f"all_final_layer.{config.patch_size}-1"
    return [
        *linear("patches", patches),
        *linear("time/fc1", "t_embedder.mlp.0"),
        *linear("time/fc2", "t_embedder.mlp.2"),
        *norm("text_norm", "cap_embedder.0", bias=False),
        *linear("text", "cap_embedder.1"),
        Rule("image_filler", "x_pad_token", _TOKEN),
        Rule("text_filler", "cap_pad_token", _TOKEN),
        *_blocks("image_blocks", "noise_refiner", timed=True),
        *_blocks("text_blocks", "context_refiner", timed=False),
        *_blocks("blocks", "layers", timed=True),
        *linear("modulation", f"{out}.adaLN_modulation.1"),
        *linear("out", f"{out}.linear"),
    ]


def _blocks(ours: str, theirs: str, *, timed: bool) -> list[Rule]:
    block = f"{theirs}.{{layer}}."
    attention, mlp = f"{block}attention.", f"{block}feed_forward."
    names = {"norm1": "attention_norm1", "norm2": "attention_norm2", "mlp_norm1": "ffn_norm1", "mlp_norm2": "ffn_norm2",
             "norm_q": "attention.norm_q", "norm_k": "attention.norm_k"}  # fmt: skip
    return [
        *(rule for mine, name in names.items() for rule in norm(f"{ours}/{mine}", f"{block}{name}", bias=False)),
        *linear(f"{ours}/qkv", tuple(f"{attention}to_{part}" for part in "qkv"), bias=False),
        *linear(f"{ours}/out", f"{attention}to_out.0", bias=False),
        *linear(f"{ours}/wi", (f"{mlp}w1", f"{mlp}w3"), bias=False),
        *linear(f"{ours}/wo", f"{mlp}w2", bias=False),
        *(linear(f"{ours}/modulation", f"{block}adaLN_modulation.0") if timed else []),
    ]


_ORIGINAL = {
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1": "final_layer",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
    "attention.to_out.0": "attention.out",
}


def original(config: ZImageConfig) -> Original:
    """The names of the released single file, which fuses q, k and v."""

    def source(name: str) -> Source:
        if fused := re.fullmatch(r"(.*\.attention)\.to_([qkv])\.weight", name):
            return Source(f"{fused[1]}.qkv.weight", QKV[fused[2]])
        return Source(replaced(name, _ORIGINAL))

    return source


def unused_norm(config: ZImageConfig) -> dict[str, np.ndarray]:
    """What the released single file has and no forward pass uses."""
    return {"norm_final.weight": np.ones(config.width, np.float32)}


Z_IMAGE_LAYOUTS: Layouts = (("", original), ("model.diffusion_model.", original), ("", same))


def read_z_image(config: Mapping[str, Any]) -> ZImageConfig:
    """ZImageConfig of a ZImageTransformer2DModel."""
    check(config, Z_IMAGE)
    return ZImageConfig(
        channels=config.get("in_channels", 16),
        width=config.get("dim", 3840),
        depth=config.get("n_layers", 30),
        refiner_depth=config.get("n_refiner_layers", 2),
        heads=config.get("n_heads", 30),
        text_dim=config.get("cap_feat_dim", 2560),
        rotary_axes=tuple(config.get("axes_dims", (32, 48, 48))),
        rotary_period=float(config.get("rope_theta", 256.0)),
    )


def write_z_image(config: ZImageConfig) -> dict[str, Any]:
    """config.json of a ZImageTransformer2DModel."""
    if config.patch_size != _PATCH:
        raise ValueError(f"diffusers' ZImagePipeline has patch_size {_PATCH}; {config.patch_size} cannot be exported")
    return {
        "_class_name": "ZImageTransformer2DModel",
        "all_patch_size": [_PATCH],
        "all_f_patch_size": [1],
        "in_channels": config.channels,
        "dim": config.width,
        "n_layers": config.depth,
        "n_refiner_layers": config.refiner_depth,
        "n_heads": config.heads,
        "n_kv_heads": config.heads,
        "norm_eps": 1e-5,
        "qk_norm": True,
        "cap_feat_dim": config.text_dim,
        "rope_theta": config.rotary_period,
        "t_scale": 1000.0,
        "axes_dims": list(config.rotary_axes),
        "axes_lens": [1024, 512, 512],
    }

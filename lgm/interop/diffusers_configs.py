"""Configurations of denoisers and autoencoders, from diffusers' config.json to ours and back."""

from collections.abc import Mapping
from typing import Any

from lgm.interop.fields import a_level, expect, read_fields, written_fields
from lgm.interop.tables import AUTOENCODER, UNET, UNET_FIXED
from lgm.models.autoencoder import AutoencoderConfig
from lgm.models.unet import UNetConfig

MICRO_IDS = 6  # SDXL: original size, crop, target size
SCORED_IDS = 5  # its refiner, which a folder's model_index.json tells: original size, crop, aesthetic score


def read_autoencoder(config: Mapping[str, Any]) -> AutoencoderConfig:
    """AutoencoderConfig of an AutoencoderKL."""
    ours = read_fields(config, AUTOENCODER)
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        for block in config.get(key, ()):
            expect({key: block}, key, kind)
    expect(config, "out_channels", ours["channels"])
    return AutoencoderConfig(**ours, shift=config.get("shift_factor") or 0.0)


def write_autoencoder(config: AutoencoderConfig) -> dict[str, Any]:
    """config.json of an AutoencoderKL."""
    if config.patch_size != 1 or config.linear_skip:
        raise ValueError("diffusers' AutoencoderKL has no patch_size and no linear_skip; train one without to export")
    if config.latents_mean is not None and len(config.latents_mean) != config.latent_channels:
        raise ValueError("diffusers' AutoencoderKL has one mean a channel; one for each place in a patch cannot be "
                         "exported")  # fmt: skip
    levels = len(config.block_channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "out_channels": config.channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "shift_factor": config.shift or None,
        **written_fields(config, AUTOENCODER),
    }


def read_unet(config: Mapping[str, Any]) -> UNetConfig:
    """UNetConfig of a UNet2DConditionModel."""
    ours = read_fields(config, UNET)
    channels, levels = ours["channels"], len(ours["block_channels"])
    beside = config.get("in_channels", 4) - channels
    if beside not in (0, channels + 1):
        raise ValueError(f"config.json: in_channels={channels + beside} has no equal here beside "
                         f"out_channels={channels}; it is that, or {2 * channels + 1} of an inpainting model")
    kinds = config.get("down_block_types", ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",))
    if len(kinds) != levels:
        raise ValueError(f"config.json: down_block_types has {len(kinds)} entries for {levels} block_out_channels")
    attends = [expect({"down_block_types": k}, "down_block_types", *_DOWN) == _DOWN[0] for k in kinds]
    up = [_UP[0] if a else _UP[1] for a in reversed(attends)]
    expect(config, "up_block_types", up, tuple(up))
    depths = a_level(config.get("transformer_layers_per_block", 1), levels)
    heads = a_level(config.get("num_attention_heads") or config.get("attention_head_dim", 8), levels)
    kind = expect(config, "addition_embed_type", None, "text_time")
    added = config.get("projection_class_embeddings_input_dim") if kind else 0
    micro = config.get("addition_time_embed_dim") if kind else 256
    if added is None or micro is None or kind and added <= MICRO_IDS * micro:
        raise ValueError(f"config.json: addition_embed_type={kind!r} needs projection_class_embeddings_input_dim above "
                         f"{MICRO_IDS} times addition_time_embed_dim, not {added} and {micro}")
    return UNetConfig(
        **ours,
        transformer_depth=tuple(d if a else 0 for d, a in zip(depths, attends, strict=True)),
        mid_depth=depths[-1],
        heads=heads,
        pooled_dim=added - MICRO_IDS * micro if kind else 0,
        micro_ids=MICRO_IDS if kind else 0,
        micro_dim=micro,
        beside=beside,
    )


def write_unet(config: UNetConfig) -> dict[str, Any]:
    """config.json of a UNet2DConditionModel."""
    if not config.text_dim:
        raise ValueError("diffusers' UNet2DConditionModel needs text; a U-Net with text_dim=0 cannot be exported")
    if config.residual:
        raise ValueError("diffusers' UNet2DConditionModel does not add its input; train one with residual=False to "
                         "export")
    added = {}
    if config.added_dim:
        if config.micro_ids not in (MICRO_IDS, SCORED_IDS) or not config.pooled_dim:
            parts = f"pooled_dim={config.pooled_dim} and micro_ids={config.micro_ids}"
            raise ValueError(f"UNet2DConditionModel has pooled text and {MICRO_IDS} (or {SCORED_IDS}) micro_ids or "
                             f"neither, not {parts}")
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": config.micro_dim,
            "projection_class_embeddings_input_dim": config.added_dim,
        }
    return UNET_FIXED | added | {
        "_class_name": "UNet2DConditionModel",
        "in_channels": config.channels + config.beside,
        "down_block_types": [_DOWN[0] if depth else _DOWN[1] for depth in config.transformer_depth],
        "up_block_types": [_UP[0] if depth else _UP[1] for depth in reversed(config.transformer_depth)],
        "transformer_layers_per_block": [depth or 1 for depth in config.transformer_depth[:-1]] + [config.mid_depth],
        "attention_head_dim": list(config.heads),
        **written_fields(config, UNET),
    }


_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("CrossAttnUpBlock2D", "UpBlock2D")

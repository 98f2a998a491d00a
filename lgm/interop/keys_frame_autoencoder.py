"""Key map and configuration of Qwen-Image's autoencoder, in the layout of diffusers' AutoencoderKLQwenImage; its
original names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lgm.interop.fields import CARRIED, COUNT, COUNTS, NUMBERS, Kind, Table, check, fixed
from lgm.interop.keymap import CONV_AS_LINEAR, Rule, Transform, conv, linear, prefixed
from lgm.interop.original_names import Layouts, Original, by_place, same
from lgm.models.frame_autoencoder import MEAN, STD, FrameAutoencoderConfig

_FLAGS = Kind("a list of true or false", lambda value: isinstance(value, (list, tuple)) and len(value) < 64
              and all(isinstance(flag, bool) for flag in value))  # fmt: skip
FRAME_AUTOENCODER: Table = {
    "attn_scales": fixed(()),
    "base_dim": COUNT,
    "dim_mult": COUNTS,
    "dropout": CARRIED,  # of training
    "input_channels": COUNT,
    "latents_mean": NUMBERS,
    "latents_std": NUMBERS,
    "num_res_blocks": COUNT,
    "temperal_downsample": _FLAGS,
    "z_dim": COUNT,
}
_FILM = Transform("o i t h w -> t h w i o")


def frame_autoencoder_rules(config: FrameAutoencoderConfig) -> list[Rule]:
    """AutoencoderKLQwenImage, whose encoder numbers its blocks and convolutions through."""
    encoder, decoder, number = _ends(), _ends(), 0
    widths, last = config.widths, len(config.widths) - 1
    for i, width in enumerate(widths):
        for j in range(config.layers_per_block):
            came = width if j else widths[i - 1] if i else config.base_channels
            encoder += prefixed(_residual(came != width), f"levels/{i}/blocks/{j}/", f"down_blocks.{number}.")
            number += 1
        if i < last:
            encoder += _resample(i, f"down_blocks.{number}.", config.temporal[i])
            number += 1
    widths = widths[::-1]
    for i, width in enumerate(widths):
        for j in range(config.layers_per_block + 1):
            came = width if j or not i else widths[i - 1] // 2
            decoder += prefixed(_residual(came != width), f"levels/{i}/blocks/{j}/", f"up_blocks.{i}.resnets.{j}.")
        if i < last:
            decoder += _resample(i, f"up_blocks.{i}.upsamplers.0.", config.temporal[::-1][i])
    return [
        *prefixed(encoder, "encoder/", "encoder."),
        *prefixed(decoder, "decoder/", "decoder."),
        *_film("quant", "quant_conv"),
        *_film("post_quant", "post_quant_conv"),
    ]


def _film(ours: str, theirs: str) -> list[Rule]:
    return linear(ours, theirs, transform=_FILM)


def _norm(ours: str, theirs: str, pattern: str = "c 1 1 1 -> c") -> list[Rule]:
    return [Rule(f"{ours}/scale", f"{theirs}.gamma", Transform(pattern))]


def _residual(shortcut: bool) -> list[Rule]:
    return [*_norm("norm1", "norm1"), *_film("conv1", "conv1"), *_norm("norm2", "norm2"), *_film("conv2", "conv2"),
            *(_film("shortcut", "conv_shortcut") if shortcut else [])]  # fmt: skip


def _resample(level: int, theirs: str, temporal: bool) -> list[Rule]:
    return [*conv(f"levels/{level}/resample", f"{theirs}resample.1"),
            *(_film(f"levels/{level}/frames", f"{theirs}time_conv") if temporal else [])]  # fmt: skip


def _ends() -> list[Rule]:
    """First and last convolution and the middle of encoder or decoder."""
    attention = "mid_block.attentions.0."
    return [
        *_film("conv_in", "conv_in"),
        *prefixed(_residual(False), "middle/first/", "mid_block.resnets.0."),
        *prefixed(_residual(False), "middle/last/", "mid_block.resnets.1."),
        *_norm("middle/norm", f"{attention}norm", "c 1 1 -> c"),
        *linear("middle/qkv", f"{attention}to_qkv", transform=CONV_AS_LINEAR),
        *linear("middle/out", f"{attention}proj", transform=CONV_AS_LINEAR),
        *_norm("norm_out", "norm_out"),
        *_film("conv_out", "conv_out"),
    ]


_RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
             "conv_shortcut": "shortcut"}  # fmt: skip


def original(config: FrameAutoencoderConfig) -> Original:
    """The names of the original file, whose decoder numbers its blocks through, too."""
    levels, depth = len(config.widths), config.layers_per_block
    places = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
    for side in ("encoder", "decoder"):
        places |= {f"{side}.{theirs}": f"{side}.{name}" for theirs, name in (
            ("conv_in", "conv1"), ("norm_out", "head.0"), ("conv_out", "head.2"), ("mid_block.resnets.0", "middle.0"),
            ("mid_block.attentions.0", "middle.1"), ("mid_block.resnets.1", "middle.2"))}  # fmt: skip
    for number in range(levels * (depth + 1) - 1):
        places[f"encoder.down_blocks.{number}"] = f"encoder.downsamples.{number}"
    for i in range(levels):
        first = i * (depth + 2)
        places[f"decoder.up_blocks.{i}.upsamplers.0"] = f"decoder.upsamples.{first + depth + 1}"
        for j in range(depth + 1):
            places[f"decoder.up_blocks.{i}.resnets.{j}"] = f"decoder.upsamples.{first + j}"
    return by_place(places, {"down_blocks": _RESIDUAL, "resnets": _RESIDUAL})


FRAME_LAYOUTS: Layouts = (("", original), ("vae.", original), ("first_stage_model.", original), ("", same))


def read_frame_autoencoder(config: Mapping[str, Any]) -> FrameAutoencoderConfig:
    """FrameAutoencoderConfig of an AutoencoderKLQwenImage."""
    check(config, FRAME_AUTOENCODER)
    return FrameAutoencoderConfig(
        channels=config.get("input_channels", 3),
        latent_channels=config.get("z_dim", 16),
        base_channels=config.get("base_dim", 96),
        multipliers=tuple(config.get("dim_mult", (1, 2, 4, 4))),
        layers_per_block=config.get("num_res_blocks", 2),
        temporal=tuple(config.get("temperal_downsample", (False, True, True))),
        latents_mean=tuple(config.get("latents_mean", MEAN)),
        latents_std=tuple(config.get("latents_std", STD)),
    )


def write_frame_autoencoder(config: FrameAutoencoderConfig) -> dict[str, Any]:
    """config.json of an AutoencoderKLQwenImage."""
    if (config.scale, config.shift) != (1.0, 0.0):
        raise ValueError(f"diffusers' AutoencoderKLQwenImage has no scale and shift; scale={config.scale} and "
                         f"shift={config.shift} cannot be exported")
    zeros, ones = (0.0,) * config.latent_channels, (1.0,) * config.latent_channels
    return {
        "_class_name": "AutoencoderKLQwenImage",
        "base_dim": config.base_channels,
        "z_dim": config.latent_channels,
        "dim_mult": list(config.multipliers),
        "num_res_blocks": config.layers_per_block,
        "attn_scales": [],
        "temperal_downsample": list(config.temporal),
        "dropout": 0.0,
        "input_channels": config.channels,
        "latents_mean": list(config.latents_mean or zeros),
        "latents_std": list(config.latents_std or ones),
    }

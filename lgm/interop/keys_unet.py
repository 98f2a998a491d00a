"""Key map of the U-Net, in the layout of diffusers' UNet2DConditionModel."""

from __future__ import annotations

from lgm.interop.keymap import CONV_AS_LINEAR, LINEAR, Extra, Rule, conv, linear, norm, prefixed
from lgm.interop.keys_autoencoder import residual
from lgm.models.unet import UNetConfig, shift_sizes


def unet_rules(config: UNetConfig) -> list[Rule | Extra]:
    """UNet2DConditionModel of Stable Diffusion 1, 2 and XL."""
    rules: list[Rule | Extra] = [
        *linear("time/fc1", "time_embedding.linear_1"),
        *linear("time/fc2", "time_embedding.linear_2"),
        *conv("conv_in", "conv_in"),
        *norm("norm_out", "conv_norm_out"),
        *conv("conv_out", "conv_out"),
    ]
    if config.added_dim:
        rules += linear("added/fc1", "add_embedding.linear_1") + linear("added/fc2", "add_embedding.linear_2")

    blocks = []  # diffusers' name of every residual block in the order of their use
    widths, last = config.block_channels, len(config.block_channels) - 1

    def layer(ours, theirs, j, depth, shortcut):
        blocks.append(f"{theirs}resnets.{j}.time_emb_proj")
        found = prefixed(residual(shortcut=shortcut), f"{ours}residual/", f"{theirs}resnets.{j}.")
        if depth:
            found += prefixed(transformer(config), f"{ours}transformer/", f"{theirs}attentions.{j}.")
        return found

    for i, depth in enumerate(config.transformer_depth):
        for j in range(config.layers_per_block):
            widens = j == 0 and i > 0 and widths[i - 1] != widths[i]
            rules += layer(f"down/{i}/layers/{j}/", f"down_blocks.{i}.", j, depth, widens)
        if i < last:
            rules += conv(f"down/{i}/resample", f"down_blocks.{i}.downsamplers.0.conv")
    rules += layer("middle/", "mid_block.", 0, config.mid_depth, False)
    rules += layer("middle_last/", "mid_block.", 1, 0, False)
    for i, depth in enumerate(config.transformer_depth[::-1]):
        for j in range(config.layers_per_block + 1):
            rules += layer(f"up/{i}/layers/{j}/", f"up_blocks.{i}.", j, depth, True)
        if i < last:
            rules += conv(f"up/{i}/resample", f"up_blocks.{i}.upsamplers.0.conv")
    return rules + linear("shifts", tuple(blocks), sizes=shift_sizes(config))


def transformer(config: UNetConfig) -> list[Rule]:
    """Transformer2DModel with its stack of blocks."""
    block = "transformer_blocks.{layer}."
    projection = LINEAR if config.linear_projection else CONV_AS_LINEAR
    cross = [
        *norm("blocks/norm2", f"{block}norm2"),
        *linear("blocks/cross/q", f"{block}attn2.to_q", bias=False),
        *linear("blocks/cross/kv", (f"{block}attn2.to_k", f"{block}attn2.to_v"), bias=False),
        *linear("blocks/cross/out", f"{block}attn2.to_out.0"),
    ]
    return [
        *norm("norm", "norm"),
        *linear("proj_in", "proj_in", transform=projection),
        *norm("blocks/norm1", f"{block}norm1"),
        *linear("blocks/attention/qkv", tuple(f"{block}attn1.to_{part}" for part in "qkv"), bias=False),
        *linear("blocks/attention/out", f"{block}attn1.to_out.0"),
        *(cross if config.text_dim else []),
        *norm("blocks/norm3", f"{block}norm3"),
        *linear("blocks/fc1", f"{block}ff.net.0.proj"),
        *linear("blocks/fc2", f"{block}ff.net.2"),
        *linear("proj_out", "proj_out", transform=projection),
    ]

"""Key map of the KL autoencoder, in the layout of diffusers' AutoencoderKL."""

from __future__ import annotations

from lgm.interop.keymap import Extra, Rule, conv, linear, norm, prefixed
from lgm.interop.tensor_files import Weights
from lgm.models.autoencoder import AutoencoderConfig


def autoencoder_rules(config: AutoencoderConfig) -> list[Rule | Extra]:
    """AutoencoderKL; `linear_skip`, which it does not have, adds two matrices under names of our own."""
    widths, last = config.block_channels, len(config.block_channels) - 1
    encoder, decoder = _ends(config, "encoder"), _ends(config, "decoder")
    for side, order, depth, name in (
        (encoder, widths, config.layers_per_block, "down"),
        (decoder, widths[::-1], config.layers_per_block + 1, "up"),
    ):
        for i, width in enumerate(order):
            for j in range(depth):
                widens = j == 0 and i > 0 and order[i - 1] != width
                theirs = f"{name}_blocks.{i}.resnets.{j}."
                side += prefixed(residual(shortcut=widens), f"levels/{i}/blocks/{j}/", theirs)
            if i < last:
                side += conv(f"levels/{i}/resample", f"{name}_blocks.{i}.{name}samplers.0.conv")
    return [
        *prefixed(encoder, "encoder/", "encoder."),
        *prefixed(decoder, "decoder/", "decoder."),
        *(conv("quant", "quant_conv") if config.use_quant_conv else []),
        *(conv("post_quant", "post_quant_conv") if config.use_post_quant_conv else []),
        *(linear("linear_in", "linear_in") + linear("linear_out", "linear_out") if config.linear_skip else []),
    ]


def residual(*, shortcut: bool) -> list[Rule]:
    """The norms and convolutions of ResnetBlock2D."""
    return [
        *norm("norm1", "norm1"),
        *conv("conv1", "conv1"),
        *norm("norm2", "norm2"),
        *conv("conv2", "conv2"),
        *(conv("shortcut", "conv_shortcut") if shortcut else []),
    ]


def _ends(config: AutoencoderConfig, side: str) -> list[Rule]:
    """First and last convolution and the middle of encoder or decoder."""
    attention = "mid_block.attentions.0."
    return [
        *conv("conv_in", "conv_in"),
        *prefixed(residual(shortcut=False), "middle/first/", "mid_block.resnets.0."),
        *prefixed(residual(shortcut=False), "middle/last/", "mid_block.resnets.1."),
        *norm("norm_out", "conv_norm_out"),
        *conv("conv_out", "conv_out"),
        *(
            [
                *norm("middle/attention/norm", f"{attention}group_norm"),
                *linear("middle/attention/qkv", tuple(f"{attention}to_{part}" for part in "qkv")),
                *linear("middle/attention/out", f"{attention}to_out.0"),
            ]
            if config.mid_attention
            else []
        ),
    ]


def autoencoder_weights(weights: Weights) -> Weights:
    """`weights` under today's names: in SD 1.5's autoencoder attention is query, key, value and proj_attn.

    loss.*, what its training's critic was, is left out."""
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

    def rename(name: str) -> str | None:
        if name.startswith("loss."):
            return None
        head, _, tail = name.rpartition("mid_block.attentions.0.")
        part, _, end = tail.partition(".")
        return f"{head}mid_block.attentions.0.{names[part]}.{end}" if head and part in names else name

    return weights.renamed(rename)

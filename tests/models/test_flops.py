"""Counted operations against closed forms and against torch's counter."""

import diffusers
import jax
import jax.numpy as jnp
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lgm.models import Conditioning, build
from lgm.models.autoencoder import AutoencoderConfig
from lgm.models.flops import count_flops
from lgm.models.listing import preset
from lgm.models.unet import UNetConfig


def like(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product_is_two_operations_a_multiply_add():
    assert count_flops(jnp.matmul, like(3, 4), like(4, 5)) == 2 * 3 * 4 * 5
    assert count_flops(lambda q, k: jnp.einsum("btnd,bsnd->bnts", q, k), like(2, 7, 3, 4), like(2, 5, 3, 4)) == (
        2 * 2 * 3 * 7 * 5 * 4
    )


def test_bodies_count_as_often_as_they_run():
    product = 2 * 3 * 4 * 4
    block = jax.checkpoint(lambda x, w: (jax.jit(jnp.matmul)(jnp.sin(x), w), None))
    scanned = lambda x, ws: jax.lax.scan(block, x, ws)[0].sum()
    assert count_flops(scanned, like(3, 4), like(7, 4, 4)) == 7 * product
    # forward and two products backward; a recomputed product whose value nobody needs is not in the program
    assert count_flops(jax.grad(scanned, argnums=(0, 1)), like(3, 4), like(7, 4, 4)) == 7 * 3 * product

    branches = [lambda x, w: x, lambda x, w: x @ w, lambda x, w: x @ w @ w]
    assert count_flops(lambda i, x, w: jax.lax.switch(i, branches, x, w), 0, like(3, 4), like(4, 4)) == 2 * product

    custom = jax.custom_vjp(jnp.matmul)
    custom.defvjp(lambda x, w: (x @ w, None), lambda _, g: (g, g))
    assert count_flops(custom, like(3, 4), like(4, 4)) == product


def test_grouped_convolution_and_its_gradients():
    def depthwise(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", feature_group_count=6, dimension_numbers=numbers
        ).sum()

    x, kernel = like(2, 8, 8, 6), like(3, 3, 1, 12)
    forward = 2 * (2 * 8 * 8 * 12) * 9
    assert count_flops(depthwise, x, kernel) == forward
    assert count_flops(jax.grad(depthwise, argnums=(0, 1)), x, kernel) == 3 * forward


def test_strided_convolutions_of_an_encoder_equal_torchs_count():
    config = AutoencoderConfig(block_channels=(8, 16, 16), layers_per_block=1, norm_groups=4, use_quant_conv=True)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        theirs = diffusers.AutoencoderKL(
            block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        )  # fmt: skip
        theirs.encode(torch.zeros(2, 3, 16, 16))
    assert build(config).flops(like(2, 16, 16, 3), method="encode") == counter.get_total_flops()


def test_decoders_and_unets_equal_torchs_count_and_are_computed_in_less():
    """After doubling, a pixel sees 2 x 2 distinct ones: 4/9 of the multiplications of those convolutions are made."""
    config = AutoencoderConfig(block_channels=(8, 16), layers_per_block=1, norm_groups=4, use_post_quant_conv=True)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        theirs = diffusers.AutoencoderKL(
            block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        theirs.decode(torch.zeros(2, 4, 8, 8))
    count = counter.get_total_flops()
    flops = lambda **words: build(config).flops(like(2, 8, 8, 4), method="decode", **words)
    assert flops() == count
    assert flops(executed=True) == count - 2 * (2 * 16 * 16 * 16) * 16 * 9 * 5 / 9

    config = UNetConfig(
        block_channels=(16, 32), layers_per_block=2, transformer_depth=(3, 0), mid_depth=3, heads=(2, 4), text_dim=12,
        norm_groups=4,
    )  # fmt: skip
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        theirs = diffusers.UNet2DConditionModel(
            block_out_channels=(16, 32), layers_per_block=2, transformer_layers_per_block=3, attention_head_dim=[2, 4],
            cross_attention_dim=12, norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        theirs(torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.zeros(2, 5, 12))
    count = counter.get_total_flops()
    arguments = like(2, 8, 8, 4), like(2), Conditioning(text=like(2, 5, 12))
    computed = [build(config).flops(*arguments, executed=True), build(config).flops(*arguments)]
    assert computed == [count - 2 * (2 * 8 * 8 * 32) * 32 * 9 * 5 / 9, count]


@pytest.mark.slow
def test_the_released_sizes_cost_what_papers_say():
    """GFLOP of an image by torch's counter of the originals: SD 1.5's U-Net at 64 x 64 latents 803.3, SDXL's at
    128 x 128 6,761, and the decoder of 512 pixels 2,515; 765.5, 6,627 and 2,128 are computed."""
    sd15, sdxl = (build(preset(f"unet/{name}")) for name in ("sd15", "sdxl"))
    sd15_told = Conditioning(text=like(1, 77, 768))
    sdxl_told = Conditioning(text=like(1, 77, 2048), pooled=like(1, 1280), micro=like(1, 6))
    standard, computed = [], []
    for counts, words in ((standard, {}), (computed, {"executed": True})):
        counts += [sd15.flops(like(1, 64, 64, 4), like(1), sd15_told, **words),
                   sdxl.flops(like(1, 128, 128, 4), like(1), sdxl_told, **words),
                   build(preset("autoencoder/sd15")).flops(like(1, 64, 64, 4), method="decode", **words)]
    assert [round(flops / 1e8) / 10 for flops in standard] == [803.3, 6761.2, 2514.5]
    assert [round(flops / 1e8) / 10 for flops in computed] == [765.5, 6627.0, 2128.0]

"""Ladders pass through the released shapes; their counts are the published ones and XLA's."""

import dataclasses

import jax
import pytest

from lgm.models import build, family_of
from lgm.models.flops import count_flops
from lgm.models.listing import preset
from lgm.models.unet import UNetConfig
from lgm.scaling import ladders

SMALL = {"dit": {}, "mmdit": dict(text_dim=256, pooled_dim=256),
         "flux": dict(text_dim=256, pooled_dim=256, head_size=64), "unet": dict(text_dim=256),
         "z_image": dict(text_dim=256, head_size=64), "qwen_image": dict(text_dim=256, head_size=64),
         "flux2": dict(text_dim=256, head_size=64)}


def test_ladders_pass_through_the_released_shapes():
    assert ladders.shape("mmdit", 24) == preset("mmdit/sd3_medium")
    assert ladders.shape("mmdit", 38, qk_norm="rms") == preset("mmdit/sd35_large")
    assert ladders.shape("flux", 24) == preset("flux/flux_schnell")
    assert ladders.shape("flux2", 24, text_dim=7680) == preset("flux2/flux2_klein_4b")
    assert ladders.shape("z_image", 30) == preset("z_image/z_image")
    assert ladders.shape("qwen_image", 24) == preset("qwen_image/qwen_image")
    assert ladders.shape("dit", 16) == preset("dit/dit_l2")
    assert dataclasses.replace(ladders.shape("unet", 40), heads=(8, 8, 8, 8)) == preset("unet/sd15")
    assert ladders.shape("unet", 40, base="sdxl", text_dim=2048, pooled_dim=1280, micro_ids=6) == preset("unet/sdxl")


# one for every day
EVERY = ["mmdit", *(pytest.param(name, marks=pytest.mark.slow)
                    for name in ("dit", "flux", "flux2", "unet", "z_image", "qwen_image"))]  # fmt: skip


@pytest.mark.parametrize("family", EVERY)
def test_counts_are_xlas(family):
    """XLA counts norms, softmax and activations too: 1 to 3% at these widths, on top of the products. It leaves out a
    convolution's products with padding, 1 to 2% at 64 x 64, and the two make up for each other."""
    if family == "unet":
        config, latent = ladders.shape(family, 4, base="small", text_dim=64), 64
    else:
        config, latent = ladders.shape(family, 4, **SMALL[family]), 16
        config = dataclasses.replace(config, group=100)  # XLA counts a scan's body once
    rung, model = ladders.measure(config, latent, 64), build(config)
    arguments = family_of(config).inputs(config, 1, latent, 64)
    forward = lambda params, *args: model.apply(params, *args).sum()
    # what Qwen-Image's last block makes of 64 tokens of text, out and MLP, nobody reads, and XLA leaves out
    unread = 64 * 2 * (1 + 2 * 4) * config.width**2 if family == "qwen_image" else 0
    for fn, standard in ((forward, rung.forward), (jax.grad(forward), rung.training)):
        theirs = jax.jit(fn).lower(model.abstract(), *arguments).cost_analysis()["flops"] + unread
        ours = count_flops(fn, model.abstract(), *arguments, executed=True)
        assert 0.995 < theirs / ours < 1.03
        assert standard == count_flops(fn, model.abstract(), *arguments)
        assert standard > 1.02 * ours if family == "unet" else standard == ours  # doubled pixels are not multiplied
    assert 2.8 < rung.training / rung.forward <= 3.0
    again = ladders.measure(dataclasses.replace(config, remat="full"), latent, 64)  # what it computes twice counts once
    assert dataclasses.replace(again, config=config) == rung
    assert rung.non_embedding < rung.params == model.count()


def test_dit_costs_what_its_paper_says():
    """Peebles and Xie, 2212.09748, table 1: DiT-XL/2 at 256 pixels, 118.6 Gflops by a counter of multiply-adds."""
    assert ladders.measure(preset("dit/dit_xl2"), 32).forward / 2e9 == pytest.approx(118.6, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "params", "gmacs"), [
    (preset("unet/sd21"), 0.87e9, 86),
    (UNetConfig(block_channels=(128, 256, 512), transformer_depth=(0, 2, 10), mid_depth=10, heads=(2, 4, 8),
                text_dim=1024, linear_projection=True), 0.42e9, 35),
])
def test_unets_cost_what_was_published(config, params, gmacs):
    """Li et al., 2404.02883: U-Nets of SD2 and SDXL with fewer channels, at 256 pixels; two digits are printed. Their
    counter knows modules and so not the products of attention, queries with keys and weights with values."""
    rung = ladders.measure(config, 32)
    attention, side, last = 0, 32, len(config.block_channels) - 1
    for i, (width, depth) in enumerate(zip(config.block_channels, config.transformer_depth, strict=True)):
        blocks = depth * (2 * config.layers_per_block + 1) + (config.mid_depth if i == last else 0)
        attention += blocks * 4 * side**2 * (side**2 + 77) * width
        side = side if i == last else side // 2
    assert rung.params == pytest.approx(params, rel=0.012)
    assert (rung.forward - attention) / 2e9 == pytest.approx(gmacs, rel=0.012)


@pytest.mark.slow
def test_the_published_ladders_unet_costs_what_was_published():
    """Li et al., 2404.01367: 866M parameters, 789.3 GFLOPs at 64 x 64. A counter of the original's operations finds
    804.3, 1.9% more; ours counts as it does, whatever it computes."""
    import diffusers
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    rung = ladders.measure(preset("unet/sd21"), 64)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20],
                                              use_linear_projection=True)
        unet(torch.zeros(1, 4, 64, 64), torch.zeros(1), torch.zeros(1, 77, 1024))
    assert rung.params == sum(p.numel() for p in unet.parameters()) == pytest.approx(866e6, rel=0.001)
    assert rung.forward == counter.get_total_flops()
    assert counter.get_total_flops() == pytest.approx(789.3e9, rel=0.02)


@pytest.mark.parametrize(("words", "part"), [
    (dict(family="vae", size=1), "'vae' has no ladder"), (dict(family="unet", size=1, base="sd3"), "base='sd3'"),
    (dict(family="mmdit", size=0), "sizes are 1, 2, "),
])
def test_what_has_no_ladder(words, part):
    with pytest.raises(ValueError, match=part):
        ladders.shape(**words)

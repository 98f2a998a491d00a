"""Qwen-Image against diffusers' QwenImageTransformer2DModel with the same random weights."""

import diffusers
import numpy as np
import pytest
import torch
from parity import assert_close, assert_gradients_close, assert_same_parameters, differentiated, randomized

from lgm.interop.keys_qwen_image import qwen_image_rules, read_qwen_image, write_qwen_image
from lgm.models import build
from lgm.models.qwen_image import PRESETS, QwenImageConfig

TINY = dict(width=32, depth=3, heads=2, text_dim=12, rotary_axes=(4, 6, 6), channels=3)


def diffusers_model(config: QwenImageConfig) -> diffusers.QwenImageTransformer2DModel:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=4 * config.channels, out_channels=config.channels, num_layers=config.depth,
        attention_head_dim=config.width // config.heads, num_attention_heads=config.heads,
        joint_attention_dim=config.text_dim, axes_dims_rope=config.rotary_axes,
    )  # fmt: skip


def packed(x_BHWC) -> torch.Tensor:
    """As diffusers' pipeline packs latents."""
    x = torch.tensor(np.asarray(x_BHWC, np.float64)).permute(0, 3, 1, 2)
    return diffusers.QwenImagePipeline._pack_latents(x, *x.shape)


def unpacked(x_BTD: torch.Tensor, h: int, w: int) -> np.ndarray:
    x = diffusers.QwenImagePipeline._unpack_latents(x_BTD.detach(), h, w, 1)
    return x[:, :, 0].permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("options", [
    dict(),
    pytest.param(dict(group=3, remat="full"), marks=pytest.mark.slow),
], ids=["scanned", "laid out and recomputed"])  # fmt: skip
def test_forward_and_gradients_equal_diffusers(options):
    """An odd number of rows, of which one more lies above the middle, and texts of two lengths."""
    config = QwenImageConfig(**TINY, **options)
    theirs, model, rules = randomized(diffusers_model(config)), build(config), qwen_image_rules(config)
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.normal(size=shape).astype(np.float32)
    h, w, length = 6, 10, 7
    x, weight, text = new(2, h, w, 3), new(2, h, w, 3), new(2, length, 12)
    mask, t = np.arange(length) < np.array([[7], [4]]), np.float32([0.25, 0.9])
    y, in_params, in_x, in_text = differentiated(theirs, model, rules, x, text, t, weight, text_mask=mask)
    their_x = packed(x).requires_grad_()
    their_text = torch.tensor(text.astype(np.float64)).requires_grad_()
    their_y = theirs(their_x, their_text, torch.from_numpy(mask), torch.tensor(t.astype(np.float64)),
                     img_shapes=[[(1, h // 2, w // 2)]] * 2).sample  # fmt: skip
    (their_y * packed(weight)).sum().backward()
    assert_close(y, unpacked(their_y, h, w), "prediction")
    assert_close(in_x, unpacked(their_x.grad, h, w), "gradient of x")
    assert_close(in_text, their_text.grad, "gradient of the text")
    assert_gradients_close(rules, in_params, theirs)


COUNTS = {"qwen_image": 20_430_401_088}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_parameters_of_the_originals(name):
    config = QwenImageConfig(**PRESETS[name])
    with torch.device("meta"):
        theirs = diffusers_model(config)
    assert_same_parameters(config, theirs, qwen_image_rules(config), COUNTS.get(name))
    assert read_qwen_image(write_qwen_image(config)) == config == read_qwen_image(dict(theirs.config))


def test_the_defaults_of_diffusers_are_qwen_image():
    """An empty config.json is the class's own default."""
    assert read_qwen_image({}) == QwenImageConfig()


@pytest.mark.parametrize(("options", "line"), [
    (dict(heads=7), "heads=7 does not divide width=3072"),
    (dict(rotary_axes=(16, 56, 58)), r"rotary_axes=\(16, 56, 58\) must sum to the width of a head, .* 128"),
    (dict(rotary_axes=(64, 64)), r"rotary_axes=\(64, 64\) must be three even numbers"),
    (dict(depth=0), "depth=0 must be at least 1"),
])  # fmt: skip
def test_impossible_configurations_are_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        QwenImageConfig(**options)


@pytest.mark.parametrize(("options", "line"), [
    (dict(zero_cond_t=True), "zero_cond_t=True has no equal here; supported: False"),
    (dict(out_channels=8), "out_channels=8 has no equal here; supported: 16"),
    (dict(in_channels=63), "in_channels=63 must be a multiple of 4"),
])  # fmt: skip
def test_configurations_without_an_equal_are_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        read_qwen_image(options)
    with pytest.raises(ValueError, match="patch_size 2; 4 cannot be exported"):
        write_qwen_image(QwenImageConfig(patch_size=4))

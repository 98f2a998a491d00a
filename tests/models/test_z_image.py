"""Z-Image against diffusers' ZImageTransformer2DModel with the same random weights."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import assert_close, assert_gradients_close, assert_same_parameters, differentiated, randomized

from lgm.interop.keys_z_image import read_z_image, write_z_image, z_image_rules
from lgm.models import Conditioning, build
from lgm.models.z_image import PRESETS, ZImageConfig

TINY = dict(width=32, depth=2, refiner_depth=1, heads=2, text_dim=12, rotary_axes=(4, 6, 6), channels=3)


def diffusers_model(config: ZImageConfig) -> diffusers.ZImageTransformer2DModel:
    return diffusers.ZImageTransformer2DModel(
        in_channels=config.channels, dim=config.width, n_layers=config.depth, n_refiner_layers=config.refiner_depth,
        n_heads=config.heads, n_kv_heads=config.heads, cap_feat_dim=config.text_dim, axes_dims=list(config.rotary_axes),
    )  # fmt: skip


@pytest.mark.parametrize("options", [
    dict(),
    pytest.param(dict(group=2, remat="full"), marks=pytest.mark.slow),
], ids=["scanned", "laid out and recomputed"])  # fmt: skip
def test_forward_and_gradients_equal_diffusers(options):
    """Texts of several lengths, so that one has more fillers than another; an image that needs fillers too."""
    config = ZImageConfig(**TINY, **options)
    theirs, model, rules = randomized(diffusers_model(config), around=1.0), build(config), z_image_rules(config)
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.normal(size=shape).astype(np.float32)
    h, w, counts = 6, 10, (35, 7)
    x, weight, text = new(2, h, w, 3), new(2, h, w, 3), new(2, 40, 12)
    mask = np.arange(40) < np.array(counts)[:, None]
    own = np.float32([0.25, 0.9])  # times of the network: 0 is noise
    y, in_params, in_x, in_text = differentiated(theirs, model, rules, x, text, 1.0 - own, weight, text_mask=mask)
    tensor = lambda a: torch.tensor(np.asarray(a, np.float64))
    their_x, their_text = tensor(x).requires_grad_(), tensor(text).requires_grad_()
    images = list(their_x.permute(0, 3, 1, 2)[:, :, None].unbind(0))
    out = theirs(images, tensor(own), [their_text[i, :n] for i, n in enumerate(counts)]).sample
    their_y = -torch.stack(out)[:, :, 0].permute(0, 2, 3, 1)  # as the pipeline turns it
    (their_y * tensor(weight)).sum().backward()
    assert_close(y, their_y.detach(), "prediction")
    assert_close(in_x, their_x.grad, "gradient of x")
    assert_close(in_text, their_text.grad, "gradient of the text")
    assert_gradients_close(rules, in_params, theirs)


def test_text_without_a_mask_is_text_that_all_counts_and_where_padding_stands_does_not_matter():
    model = build(ZImageConfig(**TINY | dict(depth=1)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.2, model.abstract())
    text, x = rng.normal(size=(1, 5, 12)).astype(np.float32), rng.normal(size=(1, 4, 4, 3)).astype(np.float32)
    run = jax.jit(lambda text, mask: model.apply(params, x, jnp.full(1, 0.5), Conditioning(text=text, text_mask=mask)))
    plain = run(text, None)
    junk = np.full((1, 30, 12), 7.0, np.float32)
    after = run(np.concatenate([text, junk], 1), np.arange(35)[None] < 5)
    before = run(np.concatenate([junk, text], 1), np.arange(35)[None] >= 30)
    for masked in (after, before):
        np.testing.assert_allclose(masked, plain, atol=1e-5 * np.abs(plain).max())
    assert np.abs(run(text + 1.0, None) - plain).max() > 0.01


COUNTS = {"z_image": 6_154_908_736}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_parameters_of_the_originals(name):
    config = ZImageConfig(**PRESETS[name])
    with torch.device("meta"):
        theirs = diffusers_model(config)
    assert_same_parameters(config, theirs, z_image_rules(config), COUNTS.get(name))
    assert read_z_image(write_z_image(config)) == config == read_z_image(dict(theirs.config))


def test_the_defaults_of_diffusers_are_z_image():
    """An empty config.json is the class's own default."""
    assert read_z_image({}) == ZImageConfig()


@pytest.mark.parametrize(("options", "line"), [
    (dict(heads=7), "heads=7 does not divide width=3840"),
    (dict(rotary_axes=(32, 48, 50)), r"rotary_axes=\(32, 48, 50\) must sum to the width of a head, .* 128"),
    (dict(rotary_axes=(64, 64)), r"rotary_axes=\(64, 64\) must be three even numbers"),
    (dict(refiner_depth=0), "refiner_depth=0 must be at least 1"),
])  # fmt: skip
def test_impossible_configurations_are_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        ZImageConfig(**options)


@pytest.mark.parametrize(("options", "line"), [
    (dict(siglip_feat_dim=64), "siglip_feat_dim=64 has no equal here; supported: None"),
    (dict(all_patch_size=[2, 4]), r"all_patch_size=\[2, 4\] has no equal here"),
    (dict(qk_norm=False), "qk_norm=False has no equal here; supported: True"),
])  # fmt: skip
def test_configurations_without_an_equal_are_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        read_z_image(options)
    with pytest.raises(ValueError, match="patch_size 2; 4 cannot be exported"):
        write_z_image(ZImageConfig(patch_size=4))

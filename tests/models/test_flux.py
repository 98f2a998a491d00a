"""Flux against diffusers' FluxTransformer2DModel with the same random weights."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import assert_close, assert_gradients_close, assert_same_parameters, differentiated, randomized

from lgm import config as schema
from lgm.interop.keys_flux import flux_rules, read_flux, write_flux
from lgm.models import Conditioning, build
from lgm.models.flux import PRESETS, FluxConfig, pack, unpack
from lgm.models.rotary import rotary_grid, rotate

TINY = dict(width=32, depth=2, single_depth=3, heads=2, text_dim=12, pooled_dim=10, rotary_axes=(4, 6, 6), channels=3)
CASES = {
    "schnell": FluxConfig(**TINY),
    # double-stream blocks laid out, single-stream blocks in groups
    "dev, grouped and recomputed": FluxConfig(**TINY, guidance=True, group=2, remat="full"),
}
SHORT = TINY | dict(depth=1, single_depth=1)


def diffusers_model(config: FluxConfig) -> diffusers.FluxTransformer2DModel:
    return diffusers.FluxTransformer2DModel(
        in_channels=4 * config.channels,
        num_layers=config.depth,
        num_single_layers=config.single_depth,
        attention_head_dim=config.width // config.heads,
        num_attention_heads=config.heads,
        joint_attention_dim=config.text_dim,
        pooled_projection_dim=config.pooled_dim,
        guidance_embeds=config.guidance,
        axes_dims_rope=config.rotary_axes,
    )


def packed(x_BHWC) -> torch.Tensor:
    """As diffusers' pipeline packs latents."""
    x = torch.tensor(np.asarray(x_BHWC, np.float64)).permute(0, 3, 1, 2)
    return diffusers.FluxPipeline._pack_latents(x, *x.shape)


def unpacked(x_BTD: torch.Tensor, h: int, w: int) -> np.ndarray:
    x = diffusers.FluxPipeline._unpack_latents(x_BTD.detach(), h, w, vae_scale_factor=1)
    return x.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", ["schnell", pytest.param("dev, grouped and recomputed", marks=pytest.mark.slow)])
def test_forward_and_gradients_equal_diffusers(name):
    config = CASES[name]
    theirs, model, rules = randomized(diffusers_model(config)), build(config), flux_rules(config)
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.normal(size=shape).astype(np.float32)
    h, w, length = 6, 10, 5
    x, weight, text, pooled = new(2, h, w, 3), new(2, h, w, 3), new(2, length, 12), new(2, 10)
    t, guidance = np.float32([0.25, 0.9]), np.float32([1.0, 3.5]) if config.guidance else None
    y, in_params, in_x, in_text = differentiated(theirs, model, rules, x, text, t, weight, pooled=pooled,
                                                 guidance=guidance)
    tensor = lambda a: torch.tensor(np.asarray(a, np.float64))
    their_x, their_text = packed(x).requires_grad_(), tensor(text).requires_grad_()
    their_y = theirs(
        their_x, their_text, tensor(pooled), torch.tensor(t),
        diffusers.FluxPipeline._prepare_latent_image_ids(2, h // 2, w // 2, "cpu", torch.float64),
        torch.zeros(length, 3), None if guidance is None else torch.tensor(guidance),
    ).sample  # fmt: skip
    (their_y * packed(weight)).sum().backward()
    assert_close(y, unpacked(their_y, h, w), "prediction")
    assert_close(in_x, unpacked(their_x.grad, h, w), "gradient of x")
    assert_close(in_text, their_text.grad, "gradient of the text")
    assert_gradients_close(rules, in_params, theirs)


def test_masked_text_changes_nothing():
    model = build(FluxConfig(**SHORT))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.2, model.abstract())
    text = rng.normal(size=(3, 5, 12)).astype(np.float32)
    text[1, 2:], text[2, :2] = text[0, 2:], text[0, :2]  # the second differs where it is seen, the third where not
    mask = np.tile(np.arange(5) < 2, (3, 1))
    cond = Conditioning(text=text, pooled=jnp.ones((3, 10)), text_mask=mask)
    y = jax.jit(model.apply)(params, jnp.ones((3, 4, 4, 3)), jnp.full(3, 0.5), cond)
    np.testing.assert_allclose(y[2], y[0], atol=1e-5)
    assert np.abs(y[1] - y[0]).max() > 0.01


def test_bfloat16_follows_float32_to_its_rounding():
    """A hundredth is two and a half of bfloat16's units; those of two blocks add up to a few."""
    predictions = []
    for dtype in ("float32", "bfloat16"):
        model = build(FluxConfig(**SHORT, dtype=dtype))
        draws = np.random.default_rng(1)
        params = jax.tree.map(lambda p: draws.normal(size=p.shape).astype(np.float32) * 0.15, model.abstract())
        text, pooled = np.ones((1, 3, 12), np.float32), np.ones((1, 10), np.float32)
        x = np.random.default_rng(2).normal(size=(1, 4, 4, 3)).astype(np.float32)
        predictions.append(jax.jit(model.apply)(params, x, jnp.array([0.5]), Conditioning(text=text, pooled=pooled)))
    assert predictions[1].dtype == jnp.float32
    difference = np.linalg.norm(predictions[0] - predictions[1]) / np.linalg.norm(predictions[0])
    assert 1e-5 < difference < 0.03


def test_rotated_products_depend_on_the_distance_alone():
    """The defining property (2104.09864, eq. 16): q at (3, 1) and k at (5, 4) see what (1, 0) and (3, 3) see."""
    cos, sin = rotary_grid(6, 6, 2, (2, 4, 6))
    assert cos.shape == (38, 6) and (cos[36:] == 1).all() and (sin[36:] == 0).all()
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 12)).astype(np.float32)
    at = lambda x, row, column: rotate(jnp.asarray(x), (cos[[6 * row + column]], sin[[6 * row + column]]))
    score = lambda a, b: float(jnp.sum(at(q, *a) * at(k, *b)))
    assert score((3, 1), (5, 4)) == pytest.approx(score((1, 0), (3, 3)), abs=1e-5)
    assert abs(score((3, 1), (5, 4)) - score((3, 1), (4, 5))) > 1e-3
    np.testing.assert_allclose(np.linalg.norm(at(q, 3, 1)), np.linalg.norm(q), rtol=1e-6)


def test_packing_is_that_of_diffusers_and_turns_back():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    np.testing.assert_array_equal(pack(x, 2), packed(x).float().numpy())
    np.testing.assert_array_equal(unpack(pack(x, 2), 2, 2), x)


COUNTS = {"flux_schnell": 11_891_178_560, "flux_dev": 11_901_408_320}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_parameters_of_the_originals(name):
    config = FluxConfig(**PRESETS[name])
    with torch.device("meta"):
        theirs = diffusers_model(config)
    assert_same_parameters(config, theirs, flux_rules(config), COUNTS.get(name))
    assert read_flux(write_flux(config)) == config == read_flux(dict(theirs.config))


def test_the_defaults_of_diffusers_are_flux_schnell():
    """An empty config.json is the class's own default."""
    assert read_flux({}) == FluxConfig() == FluxConfig(**PRESETS["flux_schnell"])


def test_every_matrix_can_be_sharded():
    model = build(FluxConfig(**TINY, guidance=True))
    leaves = jax.tree.leaves_with_path(model.abstract())
    axes = jax.tree.leaves(model.logical_axes(), is_leaf=lambda leaf: isinstance(leaf, tuple))
    for (path, leaf), names in zip(leaves, axes, strict=True):
        assert len(names) == leaf.ndim
        if leaf.ndim - names.count("layers") == 2:
            assert any(names), path


@pytest.mark.parametrize(("options", "line"), [
    (dict(heads=7), "heads=7 does not divide width=3072"),
    (dict(rotary_axes=(16, 56, 58)), r"rotary_axes=\(16, 56, 58\) must sum to the width of a head, .* 128"),
    (dict(rotary_axes=(64, 64)), r"rotary_axes=\(64, 64\) must be three even numbers"),
    (dict(rotary_axes=(17, 55, 56)), r"rotary_axes=\(17, 55, 56\) must be three even numbers"),
    (dict(single_depth=0), "single_depth=0 must be at least 1"),
])  # fmt: skip
def test_impossible_configurations_are_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        FluxConfig(**options)


@pytest.mark.parametrize(("options", "line"), [
    (dict(patch_size=2), "patch_size=2 has no equal here; supported: 1"),
    (dict(in_channels=384, out_channels=64), "out_channels=64 has no equal here; supported: 384, None"),
    (dict(in_channels=63), "in_channels=63 must be a multiple of 4"),
])  # fmt: skip
def test_configurations_without_an_equal_are_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        read_flux(options)
    with pytest.raises(ValueError, match="patch_size 2; 4 cannot be exported"):
        write_flux(FluxConfig(patch_size=4))


def test_what_cannot_be_computed_is_one_line():
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    model = build(CASES["dev, grouped and recomputed"])
    call = lambda x, cond: jax.eval_shape(model.apply, model.abstract(), x, like(1), cond)
    cond = Conditioning(text=like(1, 5, 12), pooled=like(1, 10))
    with pytest.raises(ValueError, match="latents of 5 x 6 do not divide into patches of 2"):
        call(like(1, 5, 6, 3), cond)
    with pytest.raises(ValueError, match="distilled from guidance; give its scale"):
        call(like(1, 6, 6, 3), cond)


def test_a_run_without_a_folder_cannot_be_told_guidance():
    flux = dict(family="flux", **TINY | dict(text_dim=8), guidance=True)
    values = dict(name="x", batch_size=1, total_images=1, model=flux)
    with pytest.raises(ValueError, match="config.model.guidance=True is for config.loss.name='guidance_distillat"):
        schema.from_dict(values)
    assert schema.from_dict(values | {"model": flux | {"guidance": False}}).family == "flux"

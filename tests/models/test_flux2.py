"""Flux.2 against diffusers' Flux2Transformer2DModel with the same random weights."""

import diffusers
import jax
import numpy as np
import pytest
import torch
from parity import assert_close, assert_gradients_close, assert_same_parameters, differentiated, randomized

from lgm.interop.keys_flux2 import flux2_rules, read_flux2, write_flux2
from lgm.models import Conditioning, build
from lgm.models.flux2 import PRESETS, Flux2Config

TINY = dict(width=32, depth=2, single_depth=3, heads=2, text_dim=12, rotary_axes=(4, 4, 4, 4), channels=3)


def diffusers_model(config: Flux2Config) -> diffusers.Flux2Transformer2DModel:
    return diffusers.Flux2Transformer2DModel(
        in_channels=4 * config.channels, num_layers=config.depth, num_single_layers=config.single_depth,
        attention_head_dim=config.width // config.heads, num_attention_heads=config.heads,
        joint_attention_dim=config.text_dim, axes_dims_rope=config.rotary_axes, guidance_embeds=config.guidance,
    )  # fmt: skip


def packed(x_BHWC) -> torch.Tensor:
    """As diffusers' pipeline packs latents."""
    x = torch.tensor(np.asarray(x_BHWC, np.float64)).permute(0, 3, 1, 2)
    return diffusers.Flux2Pipeline._pack_latents(diffusers.Flux2Pipeline._patchify_latents(x))


def unpacked(x_BTD: torch.Tensor, h: int, w: int) -> np.ndarray:
    x = x_BTD.detach().permute(0, 2, 1).unflatten(-1, (h // 2, w // 2))
    return diffusers.Flux2Pipeline._unpatchify_latents(x).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("options", [
    dict(guidance=True),
    pytest.param(dict(guidance=False, group=2, remat="full"), marks=pytest.mark.slow),
], ids=["dev", "klein, grouped and recomputed"])  # fmt: skip
def test_forward_and_gradients_equal_diffusers(options):
    config = Flux2Config(**TINY, **options)
    theirs, model, rules = randomized(diffusers_model(config), 1.0), build(config), flux2_rules(config)
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.normal(size=shape).astype(np.float32)
    h, w, length = 6, 10, 7
    x, weight, text = new(2, h, w, 3), new(2, h, w, 3), new(2, length, 12)
    t, guidance = np.float32([0.25, 0.9]), np.float32([4.0, 1.5]) if config.guidance else None
    y, in_params, in_x, in_text = differentiated(theirs, model, rules, x, text, t, weight, guidance=guidance)
    tensor = lambda a: torch.tensor(np.asarray(a, np.float64))
    their_x, their_text = packed(x).requires_grad_(), tensor(text).requires_grad_()
    their_y = theirs(
        their_x, their_text, tensor(t), diffusers.Flux2Pipeline._prepare_latent_ids(torch.zeros(2, 1, h // 2, w // 2)),
        diffusers.Flux2Pipeline._prepare_text_ids(their_text), None if guidance is None else tensor(guidance),
    ).sample  # fmt: skip
    (their_y * packed(weight)).sum().backward()
    assert_close(y, unpacked(their_y, h, w), "prediction")
    assert_close(in_x, unpacked(their_x.grad, h, w), "gradient of x")
    assert_close(in_text, their_text.grad, "gradient of the text")
    assert_gradients_close(rules, in_params, theirs)


# shapes as diffusers' own conversion script has them
COUNTS = {"flux2_dev": 32_223_281_152, "flux2_klein_4b": 3_875_544_576, "flux2_klein_9b": 9_078_581_248}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_parameters_of_the_originals(name):
    config = Flux2Config(**PRESETS[name])
    with torch.device("meta"):
        theirs = diffusers_model(config)
    assert_same_parameters(config, theirs, flux2_rules(config), COUNTS.get(name))
    assert read_flux2(write_flux2(config)) == config == read_flux2(dict(theirs.config))


def test_the_defaults_of_diffusers_are_flux2_dev():
    """An empty config.json is the class's own default."""
    assert read_flux2({}) == Flux2Config()


def test_a_network_distilled_from_guidance_asks_for_its_scale():
    model = build(Flux2Config(**TINY))
    x, text = np.zeros((1, 4, 4, 3), np.float32), np.zeros((1, 3, 12), np.float32)
    with pytest.raises(ValueError, match="this Flux.2 is distilled from guidance; give its scale"):
        jax.eval_shape(model.apply, model.abstract(), x, np.zeros(1, np.float32), Conditioning(text=text))


@pytest.mark.parametrize(("options", "line"), [
    (dict(heads=7), "heads=7 does not divide width=6144"),
    (dict(rotary_axes=(32, 32, 32, 34)), r"rotary_axes=\(32, 32, 32, 34\) must sum to the width of a head, .* 128"),
    (dict(rotary_axes=(64, 64)), r"rotary_axes=\(64, 64\) must be four even numbers"),
    (dict(single_depth=0), "single_depth=0 must be at least 1"),
])  # fmt: skip
def test_impossible_configurations_are_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        Flux2Config(**options)


@pytest.mark.parametrize(("options", "line"), [
    (dict(mlp_ratio=4.0), r"mlp_ratio=4.0 has no equal here; supported: 3.0"),
    (dict(rope_theta=10_000), "rope_theta=10000 has no equal here; supported: 2000"),
    (dict(out_channels=64), "out_channels=64 has no equal here"),
    (dict(in_channels=126), "in_channels=126 must be a multiple of 4"),
])  # fmt: skip
def test_configurations_without_an_equal_are_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        read_flux2(options)
    with pytest.raises(ValueError, match="patch_size 2; 4 cannot be exported"):
        write_flux2(Flux2Config(patch_size=4))

"""Flux.2 against diffusers' Flux2Transformer2DModel with the same random weights."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lgm.interop.keymap import names_of, to_ours, to_theirs
from lgm.interop.keys_flux2 import flux2_rules, read_flux2, write_flux2
from lgm.models import Conditioning, build
from lgm.models.flux import pack, unpack
from lgm.models.flux2 import PRESETS, Flux2Config

# Norm of the difference over norm of the reference, which computes in float64: what is left is our float32 rounding.
TOLERANCE = 1e-5
ONE_PARAMETER = 1e-4  # a single parameter's gradient may be a small difference of large terms
TINY = dict(width=32, depth=2, single_depth=3, heads=2, text_dim=12, rotary_axes=(4, 4, 4, 4), channels=3)


def diffusers_model(config: Flux2Config) -> diffusers.Flux2Transformer2DModel:
    return diffusers.Flux2Transformer2DModel(
        in_channels=4 * config.channels, num_layers=config.depth, num_single_layers=config.single_depth,
        attention_head_dim=config.width // config.heads, num_attention_heads=config.heads,
        joint_attention_dim=config.text_dim, axes_dims_rope=config.rotary_axes, guidance_embeds=config.guidance,
    )  # fmt: skip


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Float64, every parameter random and large enough to show in the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            scale = p[0].numel() ** -0.5 if p.ndim > 1 else 0.3
            p.copy_(torch.randn(p.shape, generator=generator) * scale + (p.ndim == 1))
    return module.double().eval()


def assert_close(ours, theirs, name, tolerance=TOLERANCE, floor=0.0):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, name
    error = np.linalg.norm(ours - theirs) - floor
    assert error <= tolerance * np.linalg.norm(theirs), (name, error / np.linalg.norm(theirs))


@pytest.mark.parametrize("options", [
    dict(guidance=True),
    pytest.param(dict(guidance=False, group=2, remat="full"), marks=pytest.mark.slow),
], ids=["dev", "klein, laid out and recomputed"])  # fmt: skip
def test_forward_and_gradients_equal_diffusers(options):
    config = Flux2Config(**TINY, **options)
    theirs, model, rules = randomized(diffusers_model(config)), build(config), flux2_rules(config)
    state = {name: tensor.float().numpy() for name, tensor in theirs.state_dict().items()}
    params = to_ours(rules, model.abstract(), state.__getitem__, state)
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.normal(size=shape).astype(np.float32)
    h, w, length = 6, 10, 7
    x, weight, text = new(2, h, w, 3), new(2, h, w, 3), new(2, length, 12)
    t, scale = np.float32([0.25, 0.9]), np.float32([4.0, 1.5]) if config.guidance else None

    @jax.jit
    def ours(params, x, text):
        def scalar(params, x, text):
            y = model.apply(params, x, t, Conditioning(text=text, guidance=scale))
            return jnp.sum(y * weight), y

        return jax.grad(scalar, argnums=(0, 1, 2), has_aux=True)(params, x, text)

    (in_params, in_x, in_text), y = ours(params, x, text)
    tensor = lambda a: torch.tensor(np.asarray(a, np.float64))
    their_x, their_text = tensor(pack(x, 2)).requires_grad_(), tensor(text).requires_grad_()
    pipeline = diffusers.Flux2KleinPipeline
    their_y = theirs(
        their_x, their_text, tensor(t), pipeline._prepare_latent_ids(torch.zeros(2, 1, h // 2, w // 2)),
        pipeline._prepare_text_ids(their_text), None if scale is None else tensor(scale),
    ).sample  # fmt: skip
    (their_y * tensor(pack(weight, 2))).sum().backward()
    back = lambda tokens: unpack(jnp.asarray(tokens.detach().numpy()), 2, h // 2)
    assert_close(y, back(their_y), "prediction")
    assert_close(in_x, back(their_x.grad), "gradient of x")
    assert_close(in_text, their_text.grad, "gradient of the text")
    mine = to_theirs(rules, in_params)
    reference = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert set(mine) == set(reference)
    flat = lambda tree: np.concatenate([np.asarray(tree[name], np.float64).ravel() for name in reference])
    assert_close(flat(mine), flat(reference), "the whole gradient")
    for name, gradient in reference.items():
        assert_close(mine[name], gradient, name, ONE_PARAMETER, 1e-6 * np.linalg.norm(flat(reference)))


# shapes as diffusers' own conversion script has them
COUNTS = {"flux2_dev": 32_223_281_152, "flux2_klein_4b": 3_875_544_576, "flux2_klein_9b": 9_078_581_248}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_parameters_of_the_originals(name):
    config = Flux2Config(**PRESETS[name])
    with torch.device("meta"):
        theirs = diffusers_model(config)
    model = build(config)
    count = sum(p.numel() for p in theirs.parameters())
    assert model.count() == count == COUNTS.get(name, count)
    assert set(names_of(flux2_rules(config), model.abstract())) == set(theirs.state_dict())
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

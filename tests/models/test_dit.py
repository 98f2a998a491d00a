"""DiT against diffusers' DiTTransformer2DModel, changed to what was released, with the same random weights."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from released_dit import as_released

from lgm.interop.keymap import names_of, to_ours, to_theirs
from lgm.interop.keys_dit import dit_rules, per_block, read_dit, read_sit, write_dit, write_sit
from lgm.models import Conditioning, build
from lgm.models.dit import PRESETS, DiTConfig
from lgm.models.embeddings import timestep_embedding

# Norm of the difference over norm of the reference, which computes in float64: what is left is our float32 rounding.
TOLERANCE = 1e-5
ONE_PARAMETER = 1e-4  # a single parameter's gradient may be a small difference of large terms

TINY = dict(width=24, depth=2, heads=3, classes=7, base_size=3, embedders="per_block")
CASES = {
    "learned sigma": DiTConfig(**TINY),
    "no sigma, patch 1, grouped": DiTConfig(**TINY | dict(learned_sigma=False, patch_size=1, channels=3, group=2)),
}


def diffusers_model(config: DiTConfig) -> diffusers.DiTTransformer2DModel:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        sample_size=config.base_size * config.patch_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.classes,
    )


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Float64, without label dropout, every parameter random and large enough to show in the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))
    return module.double().eval()


def assert_close(ours, theirs, name, tolerance=TOLERANCE, floor=0.0):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, name
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs) + floor, name


def loaded(config):
    theirs, model, rules = as_released(randomized(diffusers_model(config))), build(config), dit_rules(config)
    state = {name: tensor.float().numpy() for name, tensor in theirs.state_dict().items()}
    return theirs, model, rules, to_ours(rules, model.abstract(), state.__getitem__, state)


@pytest.mark.parametrize(("name", "scale"), [
    ("learned sigma", 2),
    *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("learned sigma", "no sigma, patch 1, grouped")),
])
def test_forward_and_gradients_equal_the_released_network(name, scale):
    config = CASES[name]
    theirs, model, rules, params = loaded(config)
    side = config.base_size * config.patch_size * scale  # at another size than the trained one, positions are stretched
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, side, side, config.channels)).astype(np.float32)
    weight = rng.normal(size=(2, side, side, config.out_channels)).astype(np.float32)
    t, label = np.float32([0.2, 0.999]), np.int32([5, config.classes])

    @jax.jit
    def ours(params, x):
        def scalar(params, x):
            y = model.apply(params, x, t, Conditioning(label=label), method="with_variance")
            return jnp.sum(y * weight), y

        return jax.grad(scalar, argnums=(0, 1), has_aux=True)(params, x)

    gradients, y = ours(params, x)
    first = lambda a: torch.tensor(np.asarray(a, np.float64)).permute(0, 3, 1, 2)
    their_x = first(x).requires_grad_()
    their_y = theirs(their_x, torch.tensor(np.float32(1000.0) * t), torch.tensor(label).long()).sample
    (their_y * first(weight)).sum().backward()
    last = lambda a: a.detach().permute(0, 2, 3, 1).numpy()
    assert_close(y, last(their_y), "prediction and variance")
    assert_close(gradients[1], last(their_x.grad), "gradient of x")
    mine = to_theirs(rules, gradients[0])
    reference = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert set(mine) == set(reference)
    flat = lambda tree: np.concatenate([np.asarray(tree[name], np.float64).ravel() for name in reference])
    assert_close(flat(mine), flat(reference), "the whole gradient")
    nothing = 1e-6 * np.linalg.norm(flat(reference))  # what rounding leaves of the keys' biases, whose gradient is 0
    for name, gradient in reference.items():
        assert_close(mine[name], gradient, name, ONE_PARAMETER, nothing)


def forward(theirs, x, timesteps, label):
    """theirs, with axes as ours."""
    with torch.no_grad():
        y = theirs(torch.tensor(x.astype(np.float64)).permute(0, 3, 1, 2), torch.tensor(timesteps), torch.tensor(label))
    return y.sample.permute(0, 2, 3, 1).numpy()


def test_diffusers_own_network_is_another_than_the_released_one():
    """Its frequencies are spaced over 127: the last is 1 / 10,000 where that of the released code is 1 / 9,306, and the
    late timesteps' angles, up to 1000 k-th frequency, part by many turns' radians. The released one is right: the
    weights were trained with it."""
    config = CASES["learned sigma"]
    x = np.random.default_rng(0).normal(size=(3, 6, 6, 4)).astype(np.float32)
    t, label = np.float32([0.1, 0.5, 0.999]), np.int64([5, 1, 2])
    theirs, model, _, params = loaded(config)
    released = forward(theirs, x, np.float32(1000.0) * t, label)
    own = forward(randomized(diffusers_model(config)), x, np.float32(1000.0) * t, label)
    ours = model.apply(params, x, t, Conditioning(label=label.astype(np.int32)), method="with_variance")
    assert_close(ours, released, "the released network")
    error = np.sqrt(np.square(own - released).sum((1, 2, 3)) / np.square(released).sum((1, 2, 3)))
    assert (error > 1e-2).all() and (np.diff(error) > 0).all(), error  # with random weights
    k, half = np.arange(128), 128
    frequencies = np.asarray(timestep_embedding(jnp.array([1e-3]), 256))[0]  # of timestep 1: cosines, then sines
    np.testing.assert_allclose(np.arctan2(frequencies[half:], frequencies[:half]), 10_000.0 ** (-k / half), rtol=1e-5)


def test_sit_is_dit_told_the_time_from_noise_to_data():
    """SiT's code integrates dx / dtau from tau = 0, noise, to 1, data, and embeds tau itself (2401.08740)."""
    steps = CASES["learned sigma"]
    theirs, _, _, params = loaded(steps)
    model = build(dataclasses.replace(steps, time="reversed"))
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype(np.float32)
    t, label = np.float32([0.25, 1.0]), np.int64([5, 7])
    reference = forward(theirs, x, np.float32(1.0) - t, label)[..., :4]
    ours = model.apply(params, x, t, Conditioning(label=label.astype(np.int32)))
    assert_close(ours, -reference, "dx / dt")  # dx / dt = -dx / dtau
    assert read_sit(write_sit(model.config)) == model.config
    assert PRESETS["sit_xl2"] == PRESETS["dit_xl2"] | {"time": "reversed"}
    with pytest.raises(ValueError, match="DiTTransformer2DModel is told 1000 t"):
        write_dit(model.config)
    with pytest.raises(ValueError, match="SiTTransformer2DModel is told 1 - t"):
        write_sit(steps)


def test_the_prediction_is_the_first_half_and_no_label_is_the_last_one():
    theirs, model, _, params = loaded(CASES["learned sigma"])
    x, t = jax.random.normal(jax.random.key(0), (1, 6, 6, 4)), jnp.array([0.5])
    full = model.apply(params, x, t, Conditioning(label=jnp.array([7])), method="with_variance")
    np.testing.assert_array_equal(model.apply(params, x, t, Conditioning()), full[..., :4])


def test_shared_embedders_copied_to_every_block_are_the_same_network():
    shared = DiTConfig(**TINY | dict(embedders="shared"))
    model = build(shared)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.2, model.abstract())
    x, t, cond = jnp.ones((1, 6, 6, 4)), jnp.array([0.5]), Conditioning(label=jnp.array([3]))
    expected = model.apply(params, x, t, cond)
    config, copies = per_block(shared, params)
    np.testing.assert_allclose(build(config).apply(copies, x, t, cond), expected, atol=1e-5)
    with pytest.raises(ValueError, match="keeps DiT's embedders a block"):
        dit_rules(shared)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("dit")])
def test_presets_have_the_parameters_of_the_originals(name):
    shared = DiTConfig(**PRESETS[name])
    config = DiTConfig(**PRESETS[name], embedders="per_block")
    with torch.device("meta"):
        theirs = diffusers_model(config)
    model = build(config)
    count = sum(p.numel() for p in theirs.parameters())
    assert model.count() == count
    assert set(names_of(dit_rules(config), model.abstract())) == set(theirs.state_dict())
    one = sum(p.numel() for p in theirs.transformer_blocks[0].norm1.emb.parameters())
    assert build(shared).count() == count - (config.depth - 1) * one
    assert read_dit(write_dit(config)) == config == read_dit(dict(theirs.config))


def test_the_paper_counts_the_shared_embedders():
    """Millions in table 1 of 2212.09748, at patch 2."""
    millions = {name: build(DiTConfig(**PRESETS[name])).count() / 1e6 for name in PRESETS if name.endswith("2")}
    paper = {"dit_s2": 33, "dit_b2": 130, "dit_l2": 458, "dit_xl2": 675}
    assert {name: round(millions[name]) for name in paper} == paper


@pytest.mark.parametrize(("options", "line"), [
    (dict(heads=7), "heads=7 does not divide width=1152"),
    (dict(width=18, heads=3), "width=18 must be a multiple of 4"),
    (dict(classes=0), "classes=0 must be at least 1"),
])  # fmt: skip
def test_impossible_configurations_are_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        DiTConfig(**options)


def test_a_size_that_patches_do_not_divide_is_named():
    model = build(CASES["learned sigma"])
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(ValueError, match="latents of 5 x 6 do not divide into patches of 2"):
        jax.eval_shape(model.apply, model.abstract(), like(1, 5, 6, 4), like(1), Conditioning())

"""MMDiT against diffusers' SD3Transformer2DModel with the same random weights."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lgm.interop.keymap import names_of, to_ours, to_theirs
from lgm.interop.keys_sd3 import TABLE, read_sd3, sd3_rules, write_sd3
from lgm.models import Conditioning, build
from lgm.models.embeddings import sincos_2d
from lgm.models.mmdit import PRESETS, MMDiTConfig

# Norm of the difference over norm of the reference, which computes in float64: what is left is our float32 rounding.
TOLERANCE = 1e-5
ONE_PARAMETER = 1e-4  # a single parameter's gradient may be a small difference of large terms

TINY = MMDiTConfig(channels=4, width=24, heads=3, depth=3, text_dim=10, pooled_dim=6, position_size=12, base_size=4)
CASES = {
    "sd3_medium": TINY,
    "sd35_medium": dataclasses.replace(TINY, depth=5, qk_norm="rms", dual_attention=2),
    "sd35_large": dataclasses.replace(TINY, qk_norm="rms", group=2),
    "dual but for the last": dataclasses.replace(TINY, qk_norm="rms", dual_attention=2, remat="full"),
}
PARAMETERS = {"sd3_medium": 2_028_328_000, "sd35_medium": 2_243_171_520, "sd35_large": 8_056_627_520}


def diffusers_model(config: MMDiTConfig) -> diffusers.SD3Transformer2DModel:
    return diffusers.SD3Transformer2DModel(
        sample_size=config.base_size * config.patch_size,
        patch_size=config.patch_size,
        in_channels=config.channels,
        out_channels=config.channels,
        num_layers=config.depth,
        attention_head_dim=config.width // config.heads,
        num_attention_heads=config.heads,
        joint_attention_dim=config.text_dim,
        caption_projection_dim=config.width,
        pooled_projection_dim=config.pooled_dim,
        pos_embed_max_size=config.position_size,
        dual_attention_layers=tuple(range(config.dual_attention)),
        qk_norm="rms_norm" if config.qk_norm == "rms" else None,
    )


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Float64, every parameter random and large enough to show in the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))
    return module.double().eval()


def assert_close(ours, theirs, name, tolerance=TOLERANCE, floor=0.0):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, name
    error = np.linalg.norm(ours - theirs)
    assert error <= tolerance * np.linalg.norm(theirs) + floor, (name, error / np.linalg.norm(theirs))


@pytest.mark.parametrize("name", ["dual but for the last", *(pytest.param(name, marks=pytest.mark.slow)
                                                             for name in PARAMETERS)])  # fmt: skip
def test_forward_and_gradients_equal_diffusers(name):
    config = CASES[name]
    theirs, model, rules = randomized(diffusers_model(config)), build(config), sd3_rules(config)
    state = {name: tensor.float().numpy() for name, tensor in theirs.state_dict().items()}
    params = to_ours(rules, model.abstract(), state.__getitem__, state)
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.normal(size=shape).astype(np.float32)
    # 3 x 5 patches from the middle of the table, and so few text tokens that lengths differ
    x, text, pooled, weight = new(2, 6, 10, 4), new(2, 7, 10), new(2, 6), new(2, 6, 10, 4)
    t = np.float32([0.2, 0.999])

    @jax.jit
    def ours(params, x, text, pooled):
        def scalar(params, x, text, pooled):
            y = model.apply(params, x, t, Conditioning(text=text, pooled=pooled))
            return jnp.sum(y * weight), y

        return jax.grad(scalar, argnums=(0, 1, 2, 3), has_aux=True)(params, x, text, pooled)

    gradients, y = ours(params, x, text, pooled)
    first = lambda a: torch.tensor(np.asarray(a, np.float64)).permute(0, 3, 1, 2)
    their_x, their_text, their_pooled = first(x).requires_grad_(), torch.tensor(text).double(), torch.tensor(pooled)
    their_text, their_pooled = their_text.requires_grad_(), their_pooled.double().requires_grad_()
    their_y = theirs(their_x, their_text, their_pooled, torch.tensor(np.float32(1000.0) * t)).sample
    (their_y * first(weight)).sum().backward()
    last = lambda a: a.detach().permute(0, 2, 3, 1).numpy()
    assert_close(y, last(their_y), "prediction")
    assert_close(gradients[1], last(their_x.grad), "gradient of x")
    assert_close(gradients[2], their_text.grad, "gradient of the text")
    assert_close(gradients[3], their_pooled.grad, "gradient of the pooled text")
    mine = to_theirs(rules, gradients[0])
    reference = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    assert set(mine) - set(reference) <= {TABLE}
    flat = lambda tree: np.concatenate([np.asarray(tree[name], np.float64).ravel() for name in reference])
    assert_close(flat(mine), flat(reference), "the whole gradient")
    nothing = 1e-6 * np.linalg.norm(flat(reference))  # what rounding leaves of the keys' biases, whose gradient is 0
    for name, gradient in reference.items():
        assert_close(mine[name], gradient, name, ONE_PARAMETER, nothing)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_parameters_of_the_originals(name):
    config = MMDiTConfig(**PRESETS[name])
    with torch.device("meta"):
        theirs = diffusers_model(config)
    model = build(config)
    assert model.count() == sum(p.numel() for p in theirs.parameters())
    assert model.count() == PARAMETERS[name]
    state = theirs.state_dict()
    assert set(names_of(sd3_rules(config), model.abstract())) == set(state) - {TABLE}
    assert read_sd3(write_sd3(config)) == config == read_sd3(dict(theirs.config))


@pytest.mark.parametrize(("table", "base"), [(192, 64), (384, 64), (12, 4), (7, 5)])
def test_positions_are_diffusers_table_bit_for_bit(table, base):
    config = dataclasses.replace(TINY, position_size=table, base_size=base)
    theirs = diffusers_model(config).state_dict()[TABLE].numpy()
    ours = sincos_2d(config.width, table, table, table, base)[None]
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(("options", "line"), [
    (dict(heads=7), "heads=7 does not divide width=1536"),
    (dict(dual_attention=24), r"dual_attention=24 must lie in \[0, depth=24\)"),
    (dict(depth=1), "depth=1 must be at least 2"),
])  # fmt: skip
def test_impossible_configurations_are_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        MMDiTConfig(**options)


@pytest.mark.parametrize(("options", "line"), [
    (dict(dual_attention_layers=[1, 2]), r"dual_attention_layers=\(1, 2\) must be the first layers"),
    (dict(qk_norm="layer_norm"), "qk_norm='layer_norm' has no equal here"),
    (dict(caption_projection_dim=7), "caption_projection_dim=7 has no equal here; supported: 1152"),
])  # fmt: skip
def test_options_of_diffusers_that_have_no_equal_are_named(options, line):
    with pytest.raises(ValueError, match=line):
        read_sd3(options)


def test_what_diffusers_has_not_is_not_exported():
    with pytest.raises(ValueError, match="mlp_ratio 4; 3 cannot be exported"):
        write_sd3(dataclasses.replace(TINY, mlp_ratio=3))


def test_an_image_larger_than_the_table_is_named():
    model = build(TINY)
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    cond = Conditioning(text=like(1, 3, 10), pooled=like(1, 6))
    with pytest.raises(ValueError, match="13 x 2 exceed the table of 12 x 12 positions; raise position_size"):
        jax.eval_shape(model.apply, model.abstract(), like(1, 26, 4, 4), like(1), cond)

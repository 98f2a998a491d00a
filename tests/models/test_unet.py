"""The U-Net against diffusers' with the same random weights."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lgm.interop.diffusers_configs import write_unet
from lgm.interop.keymap import names_of, to_ours, to_theirs
from lgm.interop.keys_unet import unet_rules
from lgm.models import Conditioning, build
from lgm.models.unet import PRESETS, UNetConfig

# Norm of the difference over norm of the reference, for each output and for the gradient of all parameters. The
# reference computes in float64, so what is left is our float32 rounding, some 1e-7 an operation over dozens of layers.
# One parameter's gradient may be a small difference of large terms, which loses digits: it has room for that.
TOLERANCE = 1e-5
ONE_PARAMETER = 1e-3

SD = UNetConfig(block_channels=(8,), layers_per_block=1, transformer_depth=(1,), heads=(2,), text_dim=12, norm_groups=4)
SDXL = UNetConfig(
    block_channels=(8, 16), layers_per_block=2, transformer_depth=(0, 2), mid_depth=2, heads=(1, 4),
    text_dim=12, pooled_dim=10, micro_ids=6, micro_dim=8, norm_groups=4, linear_projection=True, remat="dots",
)  # fmt: skip


def diffusers_model(config: UNetConfig) -> diffusers.UNet2DConditionModel:
    attends = [depth > 0 for depth in config.transformer_depth]
    return diffusers.UNet2DConditionModel(
        in_channels=config.channels,
        out_channels=config.channels,
        block_out_channels=config.block_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        # without attention a level still names a depth; the middle has the last one's
        transformer_layers_per_block=[d or 1 for d in config.transformer_depth[:-1]] + [config.mid_depth],
        attention_head_dim=config.heads,  # diffusers' name for the number of heads
        cross_attention_dim=config.text_dim,
        norm_num_groups=config.norm_groups,
        use_linear_projection=config.linear_projection,
        addition_embed_type="text_time" if config.micro_ids else None,
        addition_time_embed_dim=config.micro_dim,
        projection_class_embeddings_input_dim=config.added_dim or None,
    )


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Float64, every parameter random, and large enough to show in the output."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3) + (p.ndim == 1))
    return module.double()


def assert_close(ours, theirs: torch.Tensor, name: str, tolerance: float = TOLERANCE):
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().numpy()
    assert ours.shape == theirs.shape, name
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs), name


def assert_gradients_close(ours: dict[str, np.ndarray], module: torch.nn.Module):
    theirs = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert set(ours) == set(theirs)
    flat = lambda tree: np.concatenate([np.asarray(tree[name], np.float64).ravel() for name in theirs])
    assert_close(flat(ours), torch.tensor(flat(theirs)), "the whole gradient")
    for name, gradient in theirs.items():
        assert_close(ours[name], gradient, name, ONE_PARAMETER)


@pytest.mark.parametrize(("config", "size"), [
    pytest.param(SD, (4, 6), id="sd, masked text"),
    pytest.param(SDXL, (5, 3), id="sdxl, odd size", marks=pytest.mark.slow),
])
def test_forward_and_gradients_equal_diffusers(config, size):
    theirs, model, rules = randomized(diffusers_model(config)), build(config), unet_rules(config)
    state = {name: tensor.float().numpy() for name, tensor in theirs.state_dict().items()}
    params = to_ours(rules, model.abstract(), state.__getitem__, state)
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x, t, text, weight = normal(2, *size, 4), np.float32([0.25, 0.9]), normal(2, 5, 12), normal(2, *size, 4)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool) if config is SD else None
    pooled, micro = (normal(2, 10), np.float32(rng.uniform(0, 1024, (2, 6)))) if config.added_dim else (None, None)

    @jax.jit
    def ours(params, x, text):
        def scalar(params, x, text):
            cond = Conditioning(text=text, text_mask=mask, pooled=pooled, micro=micro)
            y = model.apply(params, x, t, cond)
            return jnp.sum(y * weight), y

        return jax.grad(scalar, argnums=(0, 1, 2), has_aux=True)(params, x, text)

    gradients, y = ours(params, x, text)

    double = lambda a: torch.tensor(np.asarray(a, np.float64))
    their_x, their_text = double(x).permute(0, 3, 1, 2).requires_grad_(), double(text).requires_grad_()
    added = {"text_embeds": double(pooled), "time_ids": double(micro)} if config.added_dim else None
    their_y = theirs(
        their_x,
        torch.tensor(np.float32(1000.0) * t),
        their_text,
        encoder_attention_mask=None if mask is None else torch.tensor(mask),
        added_cond_kwargs=added,
    ).sample
    (their_y * double(weight).permute(0, 3, 1, 2)).sum().backward()

    assert_close(y, their_y.permute(0, 2, 3, 1), "prediction")
    assert_close(gradients[1], their_x.grad.permute(0, 2, 3, 1), "gradient of x")
    assert_close(gradients[2], their_text.grad, "gradient of text")
    assert_gradients_close(to_theirs(rules, gradients[0]), theirs)


@pytest.mark.parametrize(
    ("name", "count"), [("sd15", 859_520_964), ("sd21", 865_910_724), ("sdxl", 2_567_463_684), ("sdxl_refiner", None)]
)
def test_presets_have_the_parameters_of_the_originals(name, count):
    config = UNetConfig(**PRESETS[name])
    with torch.device("meta"):
        theirs = diffusers_model(config)
    model = build(config)
    assert model.count() == sum(p.numel() for p in theirs.parameters())
    assert count is None or model.count() == count
    assert set(names_of(unet_rules(config), model.abstract())) == set(theirs.state_dict())


def test_a_new_model_predicts_zero_and_needs_no_text_if_built_without():
    config = UNetConfig(
        block_channels=(8,), layers_per_block=1, transformer_depth=(1,), heads=(2,), text_dim=0, norm_groups=4
    )
    model = build(config)
    last = jax.jit(lambda key: model.init(key)["conv_out"])(jax.random.key(0))
    assert all(not leaf.any() for leaf in jax.tree.leaves(last))
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    y = jax.eval_shape(model.apply, model.abstract(), like(1, 4, 4, 4), like(1), Conditioning())
    assert y.shape == (1, 4, 4, 4)


@pytest.mark.slow
def test_a_residual_model_begins_as_the_identity_and_scales_a_change_and_a_gain_of_its_input():
    config = UNetConfig(block_channels=(8,), transformer_depth=(0,), heads=(1,), text_dim=0, norm_groups=4)
    plain, residual = build(config), build(dataclasses.replace(config, residual=True))
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
    t = jnp.array([0.2, 0.9])
    params = residual.init(jax.random.key(0))
    np.testing.assert_array_equal(residual.apply(params, x, t, Conditioning()), x)
    params["conv_out"]["kernel"] += 0.1 * jax.random.normal(jax.random.key(2), params["conv_out"]["kernel"].shape)
    params["scale"]["bias"] += jnp.array([-0.25] * 4 + [0.5] * 4)
    rest = {name: part for name, part in params.items() if name != "scale"}
    half = lambda first: rest | {"conv_out": jax.tree.map(lambda p: p[..., first : first + 4], rest["conv_out"])}
    change, gain = (plain.apply(half(first), x, t, Conditioning()) for first in (0, 4))
    assert float(jnp.abs(gain).min()) < 0.5 * float(jnp.abs(gain).max())  # it differs from pixel to pixel
    expected = x + np.exp(-0.25) * change + np.exp(0.5) * gain * x
    np.testing.assert_allclose(residual.apply(params, x, t, Conditioning()), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="residual=False"):
        write_unet(dataclasses.replace(config, text_dim=8, residual=True))


def test_a_bfloat16_model_keeps_float32_parameters_and_the_input_dtype():
    config = UNetConfig(
        block_channels=(8,), layers_per_block=1, transformer_depth=(1,), heads=(2,), text_dim=12, norm_groups=4,
        dtype="bfloat16",
    )  # fmt: skip
    model = build(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.abstract())} == {jnp.dtype("float32")}
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    cond = Conditioning(text=like(1, 3, 12))
    jaxpr = jax.make_jaxpr(model.apply)(model.abstract(), like(1, 4, 4, 4), like(1), cond)
    assert jaxpr.out_avals[0].dtype == jnp.float32
    products = [e for e in jaxpr.eqns if e.primitive.name in ("conv_general_dilated", "dot_general")]
    assert {e.invars[0].aval.dtype for e in products} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (dict(heads=(8, 8)), "heads=.* must have one value a level"),
        (dict(heads=(7, 8, 8, 8)), "do not divide block_channels"),
        (dict(norm_groups=48), "norm_groups=48 does not divide"),
        (dict(group=0), "group=0 must be at least 1"),
    ],
)
def test_impossible_configurations_are_one_line(options, line):
    with pytest.raises(ValueError, match=line) as error:
        UNetConfig(**options)
    assert "\n" not in str(error.value)


def test_missing_conditioning_is_named():
    model = build(SDXL)
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    for cond, line in [
        (Conditioning(), "needs cond.text of width 12, got nothing"),
        (Conditioning(text=like(1, 3, 8)), "needs cond.text of width 12, got width 8"),
        (Conditioning(text=like(1, 3, 12), pooled=like(1, 10)), "needs cond.micro of width 6, got nothing"),
    ]:
        with pytest.raises(ValueError, match=line):
            jax.eval_shape(model.apply, model.abstract(), like(1, 4, 4, 4), like(1), cond)

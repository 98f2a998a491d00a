"""Adapters: they start as nothing, change what they target, and train alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm.models import Conditioning, build
from lgm.models.clip_text import CLIPTextConfig
from lgm.models.lora import LoRAConfig, adapted, combined, init, logical_axes, merged, targeted
from lgm.models.unet import UNetConfig

MODEL = build(CLIPTextConfig(vocab_size=20, width=16, depth=2, heads=2, max_length=5))
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
CONFIG = LoRAConfig(rank=3, alpha=6.0, targets=("attn/qkv/kernel$", "fc1/kernel$"))
TOKENS = np.arange(10).reshape(2, 5) % 20


def test_an_adapter_starts_as_nothing_and_is_a_low_rank_change():
    params = PARAMS
    adapter = init(MODEL, CONFIG, jax.random.key(1))
    assert set(adapter) == {"blocks/attn/qkv/kernel", "blocks/fc1/kernel"}
    jax.tree.map(np.testing.assert_array_equal, merged(params, adapter, CONFIG), params)

    rng = np.random.default_rng(0)
    adapter = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), adapter)
    changed = merged(params, adapter, CONFIG)
    difference = changed["blocks"]["fc1"]["kernel"] - params["blocks"]["fc1"]["kernel"]
    for layer in range(2):
        assert np.linalg.matrix_rank(difference[layer], tol=1e-4) == 3
        down, up = (adapter["blocks/fc1/kernel"][k][layer] for k in ("down", "up"))
        np.testing.assert_allclose(difference[layer], 2.0 * down @ up, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(changed["blocks"]["fc2"]["kernel"], params["blocks"]["fc2"]["kernel"])


def test_a_step_on_the_adapter_alone_lowers_the_loss():
    params = PARAMS
    adapter = init(MODEL, CONFIG, jax.random.key(1))
    target = jax.random.normal(jax.random.key(2), (2, 5, 16))
    loss = jax.jit(lambda a: jnp.mean((MODEL.apply(merged(params, a, CONFIG), TOKENS)[0] - target) ** 2))
    before, gradient = jax.value_and_grad(loss)(adapter)
    after = loss(jax.tree.map(lambda p, g: p - 0.5 * g, adapter, gradient))
    assert after < before


def test_a_target_that_matches_nothing_is_named():
    with pytest.raises(ValueError, match="targets: 'conv/kernel' matches no matrix"):
        targeted(MODEL, LoRAConfig(targets=("conv/kernel",)))
    with pytest.raises(ValueError, match="rank=0 must be at least 1"):
        LoRAConfig(rank=0)


@pytest.mark.parametrize("family", ["stack", pytest.param("list", marks=pytest.mark.slow)])
def test_the_adapted_model_is_the_merged_one(family):
    """On a stack of blocks and on the U-Net's lists of levels, to float32's rounding."""
    rng = np.random.default_rng(0)
    if family == "stack":
        model, config, arguments = MODEL, CONFIG, (TOKENS,)
    else:
        model = build(UNetConfig(block_channels=(8, 8), layers_per_block=1, transformer_depth=(1, 0), heads=(2, 2),
                                 text_dim=6, norm_groups=4))  # fmt: skip
        config = LoRAConfig(rank=2, targets=("cross/kv/kernel", "shifts/kernel"))
        cond = Conditioning(text=jnp.ones((1, 3, 6)))
        arguments = (jnp.ones((1, 4, 4, 4)), jnp.array([0.5]), cond)
    random = lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32) * 0.3
    params = jax.tree.map(random, model.abstract())
    adapter = jax.tree.map(random, jax.eval_shape(lambda key: init(model, config, key), jax.random.key(0)))
    beside = adapted(model, config)
    whole = combined(params, adapter)
    assert jax.tree.map(jnp.shape, whole) == jax.tree.map(jnp.shape, beside.abstract())
    ours = jax.tree.leaves(beside.apply(whole, *arguments))
    expected = jax.tree.leaves(model.apply(merged(params, adapter, config), *arguments))
    plain = jax.tree.leaves(model.apply(params, *arguments))
    for a, b, c in zip(ours, expected, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        assert np.abs(b - c).max() > 1e-2  # it shows
    is_axes = lambda leaf: isinstance(leaf, tuple)
    fits = jax.tree.map(lambda axes, leaf: len(axes) == leaf.ndim, logical_axes(model, config), adapter,
                        is_leaf=is_axes)  # fmt: skip
    assert all(jax.tree.leaves(fits))


def test_a_matrix_of_no_linear_layer_cannot_be_adapted():
    with pytest.raises(ValueError, match="'tokens/table' is no matrix of a linear layer"):
        adapted(MODEL, LoRAConfig(targets=("tokens/table",))).abstract()

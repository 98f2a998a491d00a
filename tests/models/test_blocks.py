"""Stacked blocks: whatever is recomputed and however they are laid out, the same values; and what each policy keeps."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm.models import layers
from lgm.models.attention import attention
from lgm.models.blocks import POLICIES, run_blocks
from lgm.models.keys import Keys

DEPTH, WIDTH, TOKENS, HIDDEN = 4, 16, 12, 64
RNG = np.random.default_rng(0)
BLOCKS = {"up": jnp.asarray(RNG.normal(size=(DEPTH, WIDTH, HIDDEN)) / 4, jnp.float32),
          "down": jnp.asarray(RNG.normal(size=(DEPTH, HIDDEN, WIDTH)) / 8, jnp.float32)}  # fmt: skip
X = jnp.asarray(RNG.normal(size=(2, TOKENS, WIDTH)), jnp.float32)


def block(block, x, told):
    q = x.reshape(2, TOKENS, 2, WIDTH // 2)
    x = x + told * attention(q, q, q).reshape(x.shape)
    return x + jnp.tanh(x @ block["up"]) @ block["down"]


def forward(blocks, remat, group):
    config = types.SimpleNamespace(remat=remat, group=group)
    return run_blocks(blocks, X, block, config, jnp.float32(0.5))


def gradients(remat, group):
    return jax.jit(jax.grad(lambda blocks: jnp.sum(jnp.square(forward(blocks, remat, group)))))(BLOCKS)


@pytest.mark.parametrize(("remat", "group"), [(name, 1) for name in POLICIES if name != "none"] +
                         [("none", DEPTH), ("none", 3), ("full", DEPTH)])  # fmt: skip
def test_policies_and_layouts_give_the_same_gradients(remat, group):
    # float32 sums in another order, over four blocks
    for ours, theirs in zip(*map(jax.tree.leaves, (gradients(remat, group), gradients("none", 1))), strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def test_each_policy_keeps_what_its_name_says():
    """Counted in the residuals that a block's forward pass leaves to backward, beside weights and constants."""

    def kept(remat):
        residuals = jax.tree.leaves(jax.vjp(lambda blocks: forward(blocks, remat, 1), BLOCKS)[1])
        shapes = [r.shape[1:] for r in residuals if hasattr(r, "shape") and r.shape[:1] == (DEPTH,)]
        return {name: shapes.count(shape) for name, shape in
                {"stream": (2, TOKENS, WIDTH), "heads": (2, TOKENS, 2, WIDTH // 2), "hidden": (2, TOKENS, HIDDEN),
                 "scores": (2, 2, TOKENS, TOKENS)}.items()}  # fmt: skip

    full, saved, dots, none = kept("full"), kept("attention"), kept("dots"), kept("none")
    assert full == {"stream": 1, "heads": 0, "hidden": 0, "scores": 0}  # the block's input alone
    assert saved == full | {"heads": 1}
    assert dots["hidden"] == 1 and dots["scores"] == 0  # products with weights, not those of two activations
    assert none["scores"] >= 1 and none["hidden"] >= 1


def test_a_product_says_what_it_is_over():
    """Of vectors, tokens, pixels and films alike; an axis that nobody named is one line."""
    keys = Keys(jax.random.key(0))
    for over, shape in ((layers.TOKENS, (2, 4)), (layers.TOKENS, (2, 5, 4)), (layers.PIXELS, (2, 3, 5, 4)),
                        ((None, "height", None), (2, 2, 3, 5, 4))):
        product = layers.Linear(4, 6, ("embed", None), over=over, rngs=keys)
        x = jax.random.normal(jax.random.key(1), shape)
        np.testing.assert_allclose(product(x), x @ product.kernel[...], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="say with `over` what lies between"):
        layers.Linear(4, 6, ("embed", None), rngs=keys)(jnp.zeros((2, 3, 5, 4)))


def test_parts_apart_are_those_of_one_product(monkeypatch):
    """As a TPU has them, a product each, and as all else does; with a low-rank change beside the matrix."""
    product = layers.Linear(4, 12, ("embed", "heads"), parts=3, rngs=Keys(jax.random.key(0)))
    product.bias[...] = jnp.arange(12.0)
    product.adapter = lambda x: x @ jnp.cos(jnp.arange(48.0)).reshape(4, 12)
    x = jax.random.normal(jax.random.key(1), (2, 5, 4))
    one = product(x)
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(layers, "platform", lambda platform=platform: platform)
        np.testing.assert_allclose(jnp.stack(product.apart(x), 2), one, rtol=1e-5, atol=1e-6)

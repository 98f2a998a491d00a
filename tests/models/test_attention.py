"""Attention's kernels against `jax.nn.dot_product_attention`, where they run without their chip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm.models import splash
from lgm.models.attention import attention
from lgm.models.blocks import recomputed
from lgm.parallel.options import OWN_MEMORY, compiled_with

TOLERANCE = 1e-6  # relative, of float32 sums in another order


def problem(tokens, keys, width, masked):
    rng = np.random.default_rng(1)
    normal = lambda count: jnp.asarray(rng.normal(size=(2, count, 2, width)), jnp.float32)
    mask = rng.random((2, keys)) < 0.5
    mask[:, -1] = True
    return normal(tokens), normal(keys), normal(keys), jnp.asarray(mask) if masked else None


@pytest.mark.parametrize(("implementation", "tokens", "keys", "width", "masked"), [
    ("xla", 21, 21, 8, True),
    ("xla", 16, 5, 8, False),
    ("splash", 21, 21, 8, True),  # padded to one block of 128, in the kernel's own interpreter
    ("splash", 130, 5, 64, False),  # more tokens than one of 128, and few keys
    ("splash", 5, 700, 8, True),  # two blocks of keys, in the backward kernel's memory at once
])  # fmt: skip
def test_values_and_gradients_equal_jax_own(implementation, tokens, keys, width, masked):
    q, k, v, mask = problem(tokens, keys, width, masked)
    weight = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)
    theirs = lambda q, k, v: jax.nn.dot_product_attention(
        q, k, v, mask=None if mask is None else mask[:, None, None], implementation="xla")  # fmt: skip
    ours = lambda q, k, v: attention(q, k, v, mask, implementation)
    results = []
    for fn in (ours, theirs):
        scalar = lambda q, k, v: (jnp.sum(fn(q, k, v) * weight), fn(q, k, v))
        gradients, out = jax.jit(jax.grad(scalar, (0, 1, 2), has_aux=True))(q, k, v)
        results.append((out, *gradients))
    for a, b in zip(*results, strict=True):
        assert np.linalg.norm(a - b) <= TOLERANCE * np.linalg.norm(b)


MASKS = {
    "text that ends early": lambda b, s: np.arange(s) < np.arange(1, b + 1)[:, None] * s // b,
    "an image and then text": lambda b, s: np.arange(s) < s // 2 + np.arange(b)[:, None],
    "padding first": lambda b, s: np.arange(s) >= np.arange(b)[:, None],
    "image and text of two devices": lambda b, s: np.tile(np.arange(s) % (s // 2) < s // 2 - 2, (b, 1)),
    "anything": lambda b, s: np.random.default_rng(3).random((b, s)) < 0.5,
    "all": lambda b, s: np.ones((b, s), bool),
    "nothing in one example": lambda b, s: (np.arange(s) < 5) & (np.arange(b)[:, None] != 1),
}


@pytest.mark.parametrize(("implementation", "dtype"), [
    ("xla", "float32"), ("cudnn", "float32"), ("cudnn", "bfloat16"), ("splash", "float32"),
])  # fmt: skip
def test_every_form_of_mask_is_that_of_scores(implementation, dtype, monkeypatch):
    rng, (b, t, s, n, d) = np.random.default_rng(0), (3, 9, 22, 2, 16)
    q, k, v, weight = (rng.normal(size=(b, x, n, d)).astype(jnp.dtype(dtype)) for x in (t, s, s, t))
    original = jax.nn.dot_product_attention

    def theirs(q, k, v, mask):
        masked = original(q, k, v, mask=mask[:, None, None], implementation="xla")
        mean = jnp.broadcast_to(v.mean(1, keepdims=True), q.shape)  # where no key counts, all do alike
        return jnp.where(mask.any(1)[:, None, None, None], masked, mean)

    # what cuDNN is given, computed by XLA: the keys in another order and how many of them count
    monkeypatch.setattr(jax.nn, "dot_product_attention",
                        lambda *a, implementation, **kw: original(*a, implementation="xla", **kw))  # fmt: skip

    @jax.jit
    def both(q, k, v, mask):
        results = []
        for fn in (lambda *qkv: attention(*qkv, mask, implementation), lambda *qkv: theirs(*qkv, mask)):
            out, pull = jax.vjp(fn, q, k, v)
            results.append((out, *pull(jnp.asarray(weight))))
        return results

    # sums of at most 22 x 16 terms in another order; bfloat16 rounds weights, sums and gradients once each to 2^-9
    tolerance = TOLERANCE if dtype == "float32" else 4 * 2**-9
    for form, make in MASKS.items():
        mask = make(b, s)
        ours, expected = both(q, k, v, mask)
        for x, y in zip(ours, expected, strict=True):
            x, y = np.float64(x), np.float64(y)
            assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y), form
        assert not np.asarray(ours[1])[~mask.any(1)].any()


def test_an_unknown_implementation_is_named():
    q, k, v, _ = problem(4, 4, 8, False)
    with pytest.raises(ValueError, match="attention 'flash' is unknown; there are auto, xla, cudnn, splash, ring"):
        attention(q, k, v, implementation="flash")


def general(implementation, causal, groups, masked, biased, monkeypatch):
    """(ours, `jax.nn`'s) values and gradients with an order, a bias and grouped heads; cuDNN's computed by XLA."""
    rng, (b, t, n, d) = np.random.default_rng(0), (3, 21, 4, 16)
    q, weight = (jnp.asarray(rng.normal(size=(b, t, n, d)), jnp.float32) for _ in range(2))
    k, v = (jnp.asarray(rng.normal(size=(b, t, n // groups, d)), jnp.float32) for _ in range(2))
    mask = jnp.asarray(np.arange(t) < np.array([[21], [9], [0]])) if masked else None
    bias = jnp.asarray(rng.normal(size=(n, t, t)), jnp.float32) if biased else None
    original = jax.nn.dot_product_attention
    theirs = lambda q, k, v: original(
        q, k, v, bias=None if bias is None else bias[None], mask=None if mask is None else mask[:, None, None],
        is_causal=causal, scale=0.3, implementation="xla")  # fmt: skip
    ours = lambda q, k, v: attention(q, k, v, mask, implementation, causal=causal, bias_NTS=bias, scale=0.3)
    monkeypatch.setattr(jax.nn, "dot_product_attention",
                        lambda *a, implementation, **kw: original(*a, implementation="xla", **kw))  # fmt: skip
    results = []
    for fn in (ours, theirs):
        out, pull = jax.vjp(jax.jit(fn), q, k, v)
        results.append((out, *pull(weight)))
    return results


@pytest.mark.parametrize(("implementation", "causal", "groups", "masked", "biased"), [
    ("xla", True, 2, True, False),
    ("cudnn", True, 2, True, False),
    ("cudnn", False, 1, True, True),
    pytest.param("splash", True, 2, True, False, marks=pytest.mark.slow),
    ("splash", False, 4, False, False),
    ("splash", False, 1, True, True),  # a bias is not for splash: XLA computes it
])  # fmt: skip
def test_order_bias_and_grouped_heads_are_those_of_jax(implementation, causal, groups, masked, biased, monkeypatch):
    for ours, theirs in zip(*general(implementation, causal, groups, masked, biased, monkeypatch), strict=True):
        assert np.linalg.norm(ours - theirs) <= TOLERANCE * np.linalg.norm(theirs)


def test_grouped_heads_are_repeated_heads_and_no_query_sees_what_follows():
    """Head n reads the keys of group n // (N / M), and a change of a later token changes nothing before it."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 7, n, 8)), jnp.float32) for n in (4, 2, 2))
    out = attention(q, k, v, causal=True)
    repeated = attention(q, jnp.repeat(k, 2, 2), jnp.repeat(v, 2, 2), causal=True)
    np.testing.assert_allclose(out, repeated, atol=1e-6)
    later = attention(q, k.at[:, 5].add(1.0), v.at[:, 5].add(1.0), causal=True)
    np.testing.assert_array_equal(out[:, :5], later[:, :5])
    assert np.abs(out - later)[:, 5:].min(-1).max() > 0


def test_splash_takes_blocks_of_least_work_and_as_many_keys_as_fit(monkeypatch):
    """4,429 tokens, an image of 1024 px and a text of SD3's: 2.3 and 5.8% more of them, never tiles of 128."""
    for kind, side, sd3 in (("cpu", 128, 640), ("TPU v5 lite", 128, 640), ("TPU v6 lite", 256, 512)):
        monkeypatch.setattr(splash, "device_kind", lambda kind=kind: kind)
        assert splash._block(4429) == sd3 and splash._block(4096) == 512 and splash._block(77) == 128
        assert all(splash._block(n) % side == 0 for n in range(129, 5000, 77))
    assert splash._at_once(4480, 128, 640, 64) == 640  # in what a kernel may take unless the compiler is told
    with compiled_with({OWN_MEMORY: "65536"}):
        assert splash._at_once(4480, 128, 640, 64) == 4480 and splash._at_once(16384, 256, 512, 128) == 8192


def test_what_splash_gives_is_kept_once_where_a_policy_keeps_it():
    """Beside a block's input [B, T, N, D], what its backward kernel reads: the output [B, N, T, D], whole blocks."""
    x = jax.ShapeDtypeStruct((1, 8, 2, 8), jnp.float32)

    def kept(remat):
        block = recomputed(lambda x: attention(x, x, x, implementation="splash"), remat)
        shapes = [r.shape for r in jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(block, x)[1], x))]
        return shapes.count((1, 8, 2, 8)), shapes.count((1, 2, 128, 8))

    assert {remat: kept(remat) for remat in ("full", "attention", "dots")} == {
        "full": (1, 0), "attention": (1, 1), "dots": (1, 1)}  # fmt: skip

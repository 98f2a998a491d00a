"""Attention's kernels against `jax.nn.dot_product_attention`, where they run without their chip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm.models.attention import attention

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
    ("splash", 130, 5, 64, False),  # more tokens than a block, and few keys
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


def test_an_unknown_implementation_is_named():
    q, k, v, _ = problem(4, 4, 8, False)
    with pytest.raises(ValueError, match="attention 'flash' is unknown; there are auto, xla, cudnn, splash, ring"):
        attention(q, k, v, implementation="flash")

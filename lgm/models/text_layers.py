"""What the text encoders share: embeddings, layer norm, self-attention, and stacks of blocks under a scan."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lgm.models.convolution import Linear
from lgm.models.keys import Keys
from lgm.parallel import gathered

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
}


class Embedding(nnx.Module):
    """A table [entries, width]; called with integers it gives their rows in `dtype`."""

    def __init__(self, entries: int, width: int, axes: tuple[str | None, str], *, std: float = 0.02, rngs: Keys):
        init = nnx.initializers.normal(std)
        self.axes = axes
        self.table = nnx.Param(init(rngs.params(), (entries, width)), axes=axes)

    def __call__(self, indices: jax.Array, dtype) -> jax.Array:
        return gathered(self.table[...], self.axes)[indices].astype(dtype)


class LayerNorm(nnx.Module):
    """Layer normalization (Ba et al. 2016, 1607.06450) of the last axis with float32 statistics."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width), axes=("embed",))
        self.bias = nnx.Param(jnp.zeros(width), axes=("embed",))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        scale, bias = (gathered(part[...], ("embed",)) for part in (self.scale, self.bias))
        return (y * scale + bias).astype(x.dtype)


class SelfAttention(nnx.Module):
    """Multi-head self-attention whose q, k and v are one product; scores are scaled by `scale` or head width^-1/2."""

    def __init__(self, width, heads, head_width=None, *, bias=True, scale=None, rngs: Keys):
        self.heads, self.scale = heads, scale
        inner = heads * (head_width or width // heads)
        self.qkv = Linear(width, 3 * inner, ("embed", "heads"), parts=3, bias=bias, rngs=rngs)
        self.out = Linear(inner, width, ("heads", "embed"), bias=bias, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, mask: jax.Array | None = None, *, causal=False, bias_NTS=None) -> jax.Array:
        b, t, _ = x_BTD.shape
        qkv = self.qkv(x_BTD).reshape(b, t, 3, self.heads, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        bias = None if bias_NTS is None else bias_NTS[None]
        y = jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=self.scale, is_causal=causal)
        return self.out(y.reshape(b, t, -1))


def keys_that_count(mask_BL: jax.Array | None) -> jax.Array | None:
    """A padding mask as an attention mask [B, 1, 1, L]: every query sees the keys that count."""
    return None if mask_BL is None else mask_BL[:, None, None, :].astype(bool)


def stack(make: Callable[[jax.Array], nnx.Module], depth: int, rngs: Keys) -> nnx.Module:
    """`depth` blocks `make(key)` as one module whose parameters have a leading axis of layers."""
    return jax.vmap(make)(jax.random.split(rngs.params(), depth))


def run(blocks: nnx.Module, x, step: Callable, *, unroll: int = 1, remat: bool = False):
    """x <- step(block, x) over stacked blocks; `unroll` blocks an iteration, each recomputed in backward if `remat`."""
    body = lambda x, block: (step(block, x), None)
    return jax.lax.scan(jax.checkpoint(body) if remat else body, x, blocks, unroll=unroll)[0]

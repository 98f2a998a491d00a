"""What the text encoders share: activations, self-attention, and their blocks under a scan."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from lgm.models.attention import attention
from lgm.models.keys import Keys
from lgm.models.layers import Linear

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
}


class SelfAttention(nnx.Module):
    """Multi-head self-attention whose q, k and v are one product; scores are scaled by `scale` or head width^-1/2."""

    def __init__(self, width, heads, head_width=None, *, bias=True, scale=None, rngs: Keys):
        self.heads, self.scale = heads, scale
        inner = heads * (head_width or width // heads)
        self.qkv = Linear(width, 3 * inner, ("embed", "heads"), parts=3, bias=bias, rngs=rngs)
        self.out = Linear(inner, width, ("heads", "embed"), bias=bias, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, mask_BT: jax.Array | None = None, *, causal=False, bias_NTS=None):
        b, t, _ = x_BTD.shape
        q, k, v = (y.reshape(b, t, self.heads, -1) for y in self.qkv.apart(x_BTD))
        scale = 1.0 / np.sqrt(q.shape[-1]) if self.scale is None else self.scale
        y = attention(q, k, v, mask_BT, causal=causal, bias_NTS=bias_NTS, scale=float(scale))
        return self.out(y.reshape(b, t, -1))


def run(blocks: nnx.Module, x, step: Callable, *, unroll: int = 1, remat: bool = False):
    """x <- step(block, x) over stacked blocks; `unroll` blocks an iteration, each recomputed in backward if `remat`."""
    body = lambda x, block: (step(block, x), None)
    return jax.lax.scan(jax.checkpoint(body) if remat else body, x, blocks, unroll=unroll)[0]

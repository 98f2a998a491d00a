"""The encoder of T5 v1.1 (Raffel et al. 2020, 1910.10683; gated GELU of Shazeer 2020, 2002.05202).

Its XXL size conditions SD3 and Flux. Every parameter has logical axes and blocks are scanned, so it shards like a
denoiser and need not fit one chip; with `dtype="bfloat16"` products are bfloat16, norms and softmax float32.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lgm.bounds import Bound, Count
from lgm.models.blocks import stack
from lgm.models.keys import Keys
from lgm.models.layers import Embedding, Linear, RMSNorm
from lgm.models.records import Family
from lgm.models.text_layers import ACTIVATIONS, SelfAttention, run

EPSILON = 1e-6  # of every norm


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Tokens [B, L] to features [B, L, width]. `buckets` relative distances up to `max_distance` are told apart."""

    vocab_size: Count = 32128
    width: Count = 4096
    depth: Count = 24
    heads: Count = 64
    head_width: Count = 64
    mlp_width: Count = 10240
    activation: Literal["gelu_tanh", "relu"] = "gelu_tanh"
    gated: bool = True  # False: the original T5
    buckets: Annotated[int, Bound(4)] = 32
    max_distance: Annotated[int, Bound(4)] = 128
    dtype: Literal["float32", "bfloat16"] = "float32"
    unroll: Count = 1
    remat: bool = False

    def __post_init__(self):
        if self.buckets % 4 or self.max_distance <= self.buckets // 4:
            raise ValueError(f"buckets={self.buckets} must be a multiple of 4, max_distance={self.max_distance} larger "
                             "than a quarter of it")  # fmt: skip


PRESETS = {
    "t5_v1_1_small": dict(width=512, depth=8, heads=6, mlp_width=1024),
    "t5_v1_1_base": dict(width=768, depth=12, heads=12, mlp_width=2048),
    "t5_v1_1_large": dict(width=1024, heads=16, mlp_width=2816),
    "t5_v1_1_xl": dict(width=2048, heads=32, mlp_width=5120),
    "t5_v1_1_xxl": dict(),  # SD3, SD3.5 and Flux
}


class Block(nnx.Module):
    """Pre-norm attention with a relative bias and unscaled scores, then a (gated) feed-forward network."""

    def __init__(self, config: T5Config, *, rngs: Keys):
        width, inner = config.width, config.mlp_width
        self.activation, self.gated = config.activation, config.gated
        norm = lambda: RMSNorm(width, EPSILON, ("embed",))
        self.norm1, self.norm2 = norm(), norm()
        self.attn = SelfAttention(width, config.heads, config.head_width, bias=False, scale=1.0, rngs=rngs)
        parts = 2 if config.gated else 1
        self.wi = Linear(width, parts * inner, ("embed", "mlp"), parts=parts, bias=False, rngs=rngs)
        self.wo = Linear(inner, width, ("mlp", "embed"), bias=False, rngs=rngs)

    def __call__(self, x_BLD: jax.Array, mask: jax.Array | None, bias_NTS: jax.Array) -> jax.Array:
        x = x_BLD + self.attn(self.norm1(x_BLD), mask, bias_NTS=bias_NTS)
        y, activation = self.wi(self.norm2(x)), ACTIVATIONS[self.activation]
        return x + self.wo(activation(y[..., 0, :]) * y[..., 1, :] if self.gated else activation(y))


class T5Encoder(nnx.Module):
    """Token ids to token features; see `T5Config`."""

    def __init__(self, config: T5Config, *, rngs: Keys):
        self.config = config
        self.tokens = Embedding(config.vocab_size, config.width, ("vocab", "embed"), std=1.0, rngs=rngs)
        self.relative_bias = Embedding(config.buckets, config.heads, (None, "heads"), rngs=rngs)
        self.blocks = stack(lambda key: Block(config, rngs=Keys(key)), config.depth, rngs)
        self.norm = RMSNorm(config.width, EPSILON, ("embed",))

    def __call__(self, tokens_BL: jax.Array, mask_BL: jax.Array | None = None) -> jax.Array:
        """Features [B, L, width] of int32 ids; mask_BL is True where a token counts. SD3 and Flux give no mask."""
        config = self.config
        buckets_TS = relative_buckets(tokens_BL.shape[1], config.buckets, config.max_distance)
        bias_NTS = self.relative_bias(buckets_TS, jnp.float32).transpose(2, 0, 1)
        x = self.tokens(tokens_BL, config.dtype)
        x = run(self.blocks, x, lambda b, x: b(x, mask_BL, bias_NTS), unroll=config.unroll, remat=config.remat)
        return self.norm(x)


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """[length, length] int: the bucket of key position minus query position.

    Keys before and after the query have half of the buckets each. Of a half, the first half holds one distance each,
    the rest share the distances up to `max_distance` on a logarithmic scale; the last one holds all beyond.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    side = buckets // 2
    exact = side // 2
    distance = np.abs(offset)
    # in float32, as the weights were trained: a few distances lie on the edge of a bucket
    octaves = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    scaled = octaves / np.float32(math.log(max_distance / exact)) * np.float32(side - exact)
    shared = np.minimum(exact + scaled.astype(np.int64), side - 1)
    return np.where(distance < exact, distance, shared) + side * (offset > 0)


T5 = Family("t5", T5Config, T5Encoder, PRESETS, role="text encoder")

"""Causal language models as frozen text encoders: Qwen3, the text parts of Qwen2.5-VL and Mistral Small 3, Mistral.

Pre-norm blocks of grouped-query attention (Ainslie et al. 2023, 2305.13245) with rotary positions, RMS norms and SwiGLU
(Shazeer 2020, 2002.05202). What they hand out are the hidden states of chosen layers; no next token is predicted. Every
parameter has logical axes and blocks are scanned, so that they shard like a denoiser.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lgm.bounds import Bound, Count, Positive
from lgm.models.attention import attention
from lgm.models.blocks import stack
from lgm.models.keys import Keys
from lgm.models.layers import Embedding, Linear, RMSNorm
from lgm.models.records import Family
from lgm.models.rotary import Table, rotary_line, rotate_halves


@dataclasses.dataclass(frozen=True)
class CausalTextConfig:
    """Tokens [B, L] to features [B, L, width x len(hidden)]; the defaults are Qwen3-4B's shape.

    kv_heads: heads of keys and values, each of which serves heads / kv_heads of queries. qk_norm: queries and keys are
    normalized (Qwen3). qkv_bias: their products have biases (Qwen2.5). hidden: which states are handed out, side by
    side: 0 is the embedding, i what block i gives, `depth` the last one's after the final norm; negative numbers count
    from the end, -1 being that one.
    """

    vocab_size: Count = 151_936
    width: Count = 2560
    depth: Count = 36
    heads: Count = 32
    kv_heads: Count = 8
    head_width: Count = 128
    mlp_width: Count = 9728
    max_length: Count = 40_960
    qk_norm: bool = True
    qkv_bias: bool = False
    rotary_period: Positive = 1_000_000.0
    epsilon: Positive = 1e-6
    hidden: tuple[Annotated[int, Bound()], ...] = (-1,)
    dtype: Literal["float32", "bfloat16"] = "float32"
    unroll: Count = 1
    remat: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "width", "depth", "heads", "kv_heads", "mlp_width", "max_length", "unroll"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads} does not divide heads={self.heads}; choose a divisor")
        if self.head_width < 2 or self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} must be even, for its halves turn together")
        if not self.hidden or not all(-self.depth - 1 <= state <= self.depth for state in self.hidden):
            raise ValueError(f"hidden={self.hidden} must name states from 0 to depth={self.depth}, or from the end")

    @property
    def states(self) -> tuple[int, ...]:
        """`hidden`, counted from the start."""
        return tuple(state % (self.depth + 1) for state in self.hidden)


_QWEN25 = dict(qk_norm=False, qkv_bias=True)
_MISTRAL = dict(qk_norm=False, vocab_size=32_768, width=4096, depth=32, mlp_width=14_336, epsilon=1e-5)

PRESETS = {
    "qwen3_4b": dict(hidden=(-2,)),  # Z-Image
    "qwen3_8b": dict(width=4096, mlp_width=12_288),
    "qwen25_7b": dict(_QWEN25, vocab_size=152_064, width=3584, depth=28, heads=28, kv_heads=4, mlp_width=18_944,
                      max_length=128_000),  # Qwen-Image
    "mistral_7b": dict(_MISTRAL, max_length=32_768),
    "mistral_small_3": dict(_MISTRAL, vocab_size=131_072, width=5120, depth=40, mlp_width=32_768, max_length=131_072,
                            rotary_period=1_000_000_000.0),  # Flux.2-dev
}  # fmt: skip


class Block(nnx.Module):
    """Pre-norm attention to what came before, then SwiGLU, each added to its input."""

    def __init__(self, config: CausalTextConfig, *, rngs: Keys):
        width, head, epsilon = config.width, config.head_width, config.epsilon
        self.head_width = head
        norm = lambda: RMSNorm(width, epsilon, ("embed",))
        self.norm1, self.norm2 = norm(), norm()
        self.q = Linear(width, config.heads * head, ("embed", "heads"), bias=config.qkv_bias, rngs=rngs)
        self.kv = Linear(width, 2 * config.kv_heads * head, ("embed", "heads"), parts=2, bias=config.qkv_bias,
                         rngs=rngs)  # fmt: skip
        self.norm_q = RMSNorm(head, epsilon) if config.qk_norm else None
        self.norm_k = RMSNorm(head, epsilon) if config.qk_norm else None
        self.out = Linear(config.heads * head, width, ("heads", "embed"), bias=False, rngs=rngs)
        self.wi = Linear(width, 2 * config.mlp_width, ("embed", "mlp"), parts=2, bias=False, rngs=rngs)
        self.wo = Linear(config.mlp_width, width, ("mlp", "embed"), bias=False, rngs=rngs)

    def __call__(self, x_BLD: jax.Array, table: Table, mask_BL: jax.Array | None) -> jax.Array:
        b, length, _ = x_BLD.shape
        y, split = self.norm1(x_BLD), lambda part: part.reshape(b, length, -1, self.head_width)
        kv = self.kv(y)
        q, k, v = split(self.q(y)), split(kv[:, :, 0]), split(kv[:, :, 1])
        if self.norm_q is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        attended = attention(rotate_halves(q, table), rotate_halves(k, table), v, mask_BL, causal=True)
        attended = attended.reshape(b, length, -1)
        if mask_BL is not None:  # before the first token that counts there is nothing to attend to
            attended = jnp.where(jnp.cumsum(mask_BL, 1)[..., None] > 0, attended, 0)
        x = x_BLD + self.out(attended)
        y = self.wi(self.norm2(x))
        return x + self.wo(jax.nn.silu(y[..., 0, :]) * y[..., 1, :])


class CausalText(nnx.Module):
    """Token ids to hidden states; see `CausalTextConfig`."""

    def __init__(self, config: CausalTextConfig, *, rngs: Keys):
        self.config = config
        self.tokens = Embedding(config.vocab_size, config.width, ("vocab", "embed"), rngs=rngs)
        self.blocks = stack(lambda key: Block(config, rngs=Keys(key)), config.depth, rngs)
        self.norm = RMSNorm(config.width, config.epsilon, ("embed",))

    def __call__(self, tokens_BL: jax.Array, mask_BL: jax.Array | None = None) -> jax.Array:
        """Features [B, L, width x len(hidden)] of int32 ids; mask_BL is True where a token counts. Those that do not
        have features too, of their ids and of the tokens before them that count.

        Positions are counted from the first token, masked or not: only distances matter. Raises ValueError for more
        than `max_length` tokens.
        """
        config, length = self.config, tokens_BL.shape[1]
        if length > config.max_length:
            raise ValueError(f"{length} tokens are more than max_length={config.max_length}; truncate the text")
        x = self.tokens(tokens_BL, config.dtype)
        table = rotary_line(np.arange(length), config.head_width, config.rotary_period)

        def step(carry, number):
            x, kept = carry
            x = jax.tree.map(lambda leaf: leaf[number - 1], self.blocks)(x, table, mask_BL)
            kept = tuple(jnp.where(number == state, x, old) for state, old in zip(config.states, kept, strict=True))
            return (x, kept), None

        step = jax.checkpoint(step) if config.remat else step
        numbers = jnp.arange(1, max(config.states) + 1)  # blocks above the last state that is read are not computed
        (last, kept), _ = jax.lax.scan(step, (x, (x,) * len(config.states)), numbers, unroll=config.unroll)
        last = self.norm(last)
        kept = [last if state == config.depth else old for state, old in zip(config.states, kept, strict=True)]
        return jnp.concatenate(kept, -1)


CAUSAL_TEXT = Family("causal_text", CausalTextConfig, CausalText, PRESETS, role="text encoder", masked=True)

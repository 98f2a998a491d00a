"""BERT (Devlin et al. 2019, 1810.04805) as a sentence encoder: MiniLM (Wang et al. 2020, 2002.10957) and its kin."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lgm.bounds import Count
from lgm.models.blocks import stack
from lgm.models.keys import Keys
from lgm.models.layers import Embedding, LayerNorm, Linear
from lgm.models.records import Family
from lgm.models.text_layers import ACTIVATIONS, SelfAttention, run

EPSILON = 1e-12  # of every layer norm


@dataclasses.dataclass(frozen=True)
class BERTConfig:
    """Tokens [B, L] to features [B, L, width] and one vector [B, width].

    `pooling` is the mean over the tokens that count (sentence-transformers), or "cls", the first token through the
    pooler; `normalize` gives the vector unit length. Without `pooler` the model has no weights for the latter.
    """

    vocab_size: Count = 30522
    width: Count = 384
    depth: Count = 6
    heads: Count = 12
    mlp_width: Count | None = None  # 4 x width by default
    max_length: Count = 512
    token_types: Count = 2
    pooler: bool = True
    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    unroll: Count = 1

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}; choose a divisor")
        if self.pooling == "cls" and not self.pooler:
            raise ValueError("pooling='cls' needs pooler=True")


PRESETS = {
    "minilm_l6": dict(),
    "minilm_l12": dict(depth=12),
    "bert_base": dict(width=768, depth=12, pooling="cls", normalize=False),
}


class Block(nnx.Module):
    """Attention and feed-forward network, each added to its input and then normalized."""

    def __init__(self, config: BERTConfig, *, rngs: Keys):
        width, inner = config.width, config.mlp_width or 4 * config.width
        self.attn = SelfAttention(width, config.heads, rngs=rngs)
        self.norm1, self.norm2 = LayerNorm(width, EPSILON), LayerNorm(width, EPSILON)
        self.fc1 = Linear(width, inner, ("embed", "mlp"), rngs=rngs)
        self.fc2 = Linear(inner, width, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x_BLD: jax.Array, mask: jax.Array | None) -> jax.Array:
        x = self.norm1(x_BLD + self.attn(x_BLD, mask))
        return self.norm2(x + self.fc2(ACTIVATIONS["gelu"](self.fc1(x))))


class BERT(nnx.Module):
    """Token ids to token features and a sentence vector; see `BERTConfig`."""

    def __init__(self, config: BERTConfig, *, rngs: Keys):
        self.config = config
        width = config.width
        self.tokens = Embedding(config.vocab_size, width, ("vocab", "embed"), rngs=rngs)
        self.positions = Embedding(config.max_length, width, (None, "embed"), rngs=rngs)
        self.types = Embedding(config.token_types, width, (None, "embed"), rngs=rngs)
        self.norm = LayerNorm(width, EPSILON)
        self.blocks = stack(lambda key: Block(config, rngs=Keys(key)), config.depth, rngs)
        self.pooler = Linear(width, width, ("embed", "heads"), rngs=rngs) if config.pooler else None

    def __call__(self, tokens_BL, mask_BL=None, types_BL=None) -> tuple[jax.Array, jax.Array]:
        """(features [B, L, width], float32 vector [B, width]) of int32 token ids.

        mask_BL is True where a token counts (by default all); types_BL are segment ids (by default all 0). Raises
        ValueError for more than `max_length` tokens.
        """
        config = self.config
        length = tokens_BL.shape[1]
        if length > config.max_length:
            raise ValueError(f"{length} tokens are more than max_length={config.max_length}; truncate the text")
        types_BL = jnp.zeros_like(tokens_BL) if types_BL is None else types_BL
        x = self.tokens(tokens_BL, jnp.float32) + self.positions(jnp.arange(length), jnp.float32)
        x = self.norm(x + self.types(types_BL, jnp.float32)).astype(config.dtype)
        x = run(self.blocks, x, lambda block, x: block(x, mask_BL), unroll=config.unroll)
        if config.pooling == "cls":
            pooled = jnp.tanh(self.pooler(x[:, 0])).astype(jnp.float32)
        else:
            pooled = x.astype(jnp.float32).mean(1, where=None if mask_BL is None else mask_BL[..., None].astype(bool))
        if config.normalize:
            pooled = pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
        return x, pooled


BERT_FAMILY = Family("bert", BERTConfig, BERT, PRESETS, role="text encoder", reach=lambda config: config.max_length,
                     vector=lambda config: config.width)

"""The text transformer of CLIP (Radford et al. 2021, 2103.00020) in the shapes of OpenAI and OpenCLIP.

With released weights it conditions SD 1.x, 2.x, SDXL, SD3 and Flux; small ones are trained along with a denoiser.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lgm.bounds import Count, Whole
from lgm.models.blocks import stack
from lgm.models.keys import Keys
from lgm.models.layers import Embedding, LayerNorm, Linear
from lgm.models.records import Family
from lgm.models.text_layers import ACTIVATIONS, SelfAttention, run

EPSILON = 1e-5  # of every layer norm


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Tokens [B, L] to features [B, L, width] and one pooled vector [B, projection_dim or width].

    `hidden` names the features that are handed out: "last" are those after the last block and the final norm,
    "penultimate" those before the last block, not normalized. The pooled vector is the final norm's output at one
    token: the first whose id is `pool`, the first with the largest id ("largest", how CLIP finds its end of text where
    a checkpoint does not name it), or the last token that counts ("last"); or it is the mean over the tokens that count
    ("mean", which small encoders trained from scratch learn sooner). `projection_dim` projects it.
    `unroll` blocks are laid out in each iteration of the scan over depth: more compile time, less overhead on a CPU.
    """

    vocab_size: Count = 49408
    width: Count = 768
    depth: Count = 12
    heads: Count = 12
    mlp_width: Count | None = None  # 4 x width by default
    max_length: Count = 77
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    causal: bool = True
    hidden: Literal["last", "penultimate"] = "last"
    pool: Whole | Literal["last", "largest", "mean"] = "last"
    projection_dim: Count | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    unroll: Count = 1
    remat: bool = False

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}; choose a divisor")
        for name in ("depth", "max_length", "vocab_size", "unroll"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


_BIG_G = dict(width=1280, depth=32, heads=20, activation="gelu", pool=49407, projection_dim=1280)

PRESETS = {
    "clip_l": dict(pool=49407),  # SD 1.x; Flux takes its pooled vector
    "clip_l_sdxl": dict(pool=49407, hidden="penultimate"),
    "clip_l_sd3": dict(pool=49407, hidden="penultimate", projection_dim=768),
    "open_clip_h": dict(width=1024, depth=23, heads=16, activation="gelu", pool=49407),  # SD 2.x
    "open_clip_bigg": dict(_BIG_G, hidden="penultimate"),  # SDXL and SD3
}


class Block(nnx.Module):
    """Pre-norm attention and feed-forward network, each added to its input."""

    def __init__(self, config: CLIPTextConfig, *, rngs: Keys):
        width, inner = config.width, config.mlp_width or 4 * config.width
        self.activation = config.activation
        self.norm1, self.norm2 = LayerNorm(width, EPSILON), LayerNorm(width, EPSILON)
        self.attn = SelfAttention(width, config.heads, rngs=rngs)
        self.fc1 = Linear(width, inner, ("embed", "mlp"), rngs=rngs)
        self.fc2 = Linear(inner, width, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x_BLD: jax.Array, mask: jax.Array | None, causal: bool) -> jax.Array:
        x = x_BLD + self.attn(self.norm1(x_BLD), mask, causal=causal)
        return x + self.fc2(ACTIVATIONS[self.activation](self.fc1(self.norm2(x))))


class CLIPText(nnx.Module):
    """Token ids to token features and a pooled feature; see `CLIPTextConfig`."""

    def __init__(self, config: CLIPTextConfig, *, rngs: Keys):
        self.config = config
        self.tokens = Embedding(config.vocab_size, config.width, ("vocab", "embed"), rngs=rngs)
        self.positions = Embedding(config.max_length, config.width, (None, "embed"), std=0.01, rngs=rngs)
        self.blocks = stack(lambda key: Block(config, rngs=Keys(key)), config.depth, rngs)
        self.norm = LayerNorm(config.width, EPSILON)
        axes, size = ("embed", "heads"), config.projection_dim
        self.projection = Linear(config.width, size, axes, bias=False, rngs=rngs) if size else None

    def __call__(self, tokens_BL: jax.Array, mask_BL: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """(features [B, L, width], pooled [B, projection_dim or width]) of int32 token ids.

        mask_BL is True where a token counts; the others are seen by no token. The diffusers pipelines give none: their
        padding counts. Raises ValueError for more than `max_length` tokens.
        """
        config = self.config
        length = tokens_BL.shape[1]
        if length > config.max_length:
            raise ValueError(f"{length} tokens are more than max_length={config.max_length}; truncate the text")
        x = self.tokens(tokens_BL, config.dtype) + self.positions(jnp.arange(length), config.dtype)
        step = lambda block, states: (block(states[0], mask_BL, config.causal), states[0])
        last, penultimate = run(self.blocks, (x, x), step, unroll=config.unroll, remat=config.remat)
        last = self.norm(last)
        pooled = pool(config, last, tokens_BL, mask_BL)
        pooled = pooled if self.projection is None else self.projection(pooled)
        return last if config.hidden == "last" else penultimate, pooled


def pool(config: CLIPTextConfig, features_BLD: jax.Array, tokens_BL: jax.Array, mask_BL: jax.Array | None) -> jax.Array:
    """[B, width]: the features at one token, or their mean over the tokens that count."""
    if config.pool == "mean":
        weights_BL = jnp.ones(tokens_BL.shape) if mask_BL is None else mask_BL.astype(jnp.float32)
        weights_BL = weights_BL / jnp.maximum(weights_BL.sum(1, keepdims=True), 1.0)
        return jnp.einsum("bld,bl->bd", features_BLD, weights_BL.astype(features_BLD.dtype))
    return jnp.take_along_axis(features_BLD, pooled_position(config, tokens_BL, mask_BL)[:, None, None], 1)[:, 0]


def pooled_position(config: CLIPTextConfig, tokens_BL: jax.Array, mask_BL: jax.Array | None) -> jax.Array:
    """[B] int: where the pooled vector is taken."""
    if config.pool == "largest":
        return tokens_BL.argmax(1)
    if config.pool != "last":
        return (tokens_BL == config.pool).argmax(1)
    length = tokens_BL.shape[1]
    if mask_BL is None:
        return jnp.full(len(tokens_BL), length - 1)
    return jnp.where(mask_BL, jnp.arange(length), 0).max(1)


CLIP_TEXT = Family("clip_text", CLIPTextConfig, CLIPText, PRESETS, role="text encoder",
                   reach=lambda config: config.max_length, vector=lambda config: config.projection_dim or config.width)

"""MMDiT, the multimodal diffusion transformer of SD3 and SD3.5 (Esser et al. 2024, 2403.03206).

Text and image tokens have weights of their own and meet in joint attention. With released weights it is SD3; small
ones train from scratch. The tree mirrors diffusers' SD3Transformer2DModel up to fused q, k, v and stacked blocks.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lgm.bounds import Count, Finite, Positive, Several, Whole
from lgm.models.attention import attention
from lgm.models.base import Conditioning
from lgm.models.blocks import Remat, run_blocks, stack
from lgm.models.embeddings import patchify, sincos_2d, timestep_embedding, unpatchify
from lgm.models.keys import Keys
from lgm.models.layers import MLP, Linear, RMSNorm, modulated
from lgm.models.records import ConditioningSpec, Family
from lgm.parallel.tokens import join, padded, part


@dataclasses.dataclass(frozen=True)
class MMDiTConfig:
    """Latents [B, H, W, channels] cut into patches; the defaults are SD3-medium's shape.

    position_size: side of the table of positions, whose middle an image takes; base_size: the side of grid that it
    refines (patches). Row and column p of the table stand for position_scale p - position_offset, by default
    p base_size / position_size. qk_norm: "rms" normalizes queries and keys (SD3.5). dual_attention: the image of the
    first so many blocks also attends to itself alone (SD3.5-medium). jump: it is told cond.jump, the time that a mean
    velocity spans (none of the released models). remat names what backward finds (`blocks`).
    group: blocks laid out in one iteration of the scan over depth; 1 compiles fastest, `depth` runs fastest.
    """

    channels: Count = 16
    patch_size: Count = 2
    width: Count = 1536
    depth: Several = 24
    heads: Count = 24
    mlp_ratio: Positive = 4.0
    text_dim: Whole = 4096
    pooled_dim: Whole = 2048
    position_size: Count = 192
    base_size: Count = 64
    position_scale: Positive | None = None
    position_offset: Finite = 0.0
    qk_norm: Literal["none", "rms"] = "none"
    dual_attention: Whole = 0
    jump: bool = False
    remat: Remat = "none"
    group: Count = 1
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}; choose a divisor")
        if self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4, for two-dimensional positions")
        if self.depth < 2:
            raise ValueError(f"depth={self.depth} must be at least 2")
        if not 0 <= self.dual_attention < self.depth:
            raise ValueError(f"dual_attention={self.dual_attention} must lie in [0, depth={self.depth})")
        if self.group < 1:
            raise ValueError(f"group={self.group} must be at least 1")


# the released models, as arguments of MMDiTConfig
PRESETS = {
    "sd3_medium": dict(),
    "sd35_medium": dict(qk_norm="rms", dual_attention=13, position_size=384),
    "sd35_large": dict(width=2432, depth=38, heads=38, qk_norm="rms"),
}


class Attention(nnx.Module):
    """Queries, keys and values of a modality and, unless it is `context_pre_only`, the way out of attention."""

    def __init__(self, config: MMDiTConfig, context_pre_only: bool = False, *, rngs: Keys):
        width = config.width
        self.heads = config.heads
        self.qkv = Linear(width, 3 * width, ("embed", "heads"), parts=3, rngs=rngs)
        norm = (lambda: RMSNorm(width // config.heads)) if config.qk_norm == "rms" else (lambda: None)
        self.norm_q, self.norm_k = norm(), norm()
        self.out = None if context_pre_only else Linear(width, width, ("heads", "embed"), rngs=rngs)

    def project(self, x_BTD: jax.Array) -> list[jax.Array]:
        """Queries, keys and values [B, T, N, D / N]."""
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in self.qkv.apart(x_BTD))
        if self.norm_q is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        return [q, k, v]

    def finish(self, attended_BTND: jax.Array) -> jax.Array:
        """[B, T, D]."""
        return self.out(attended_BTND.reshape(*attended_BTND.shape[:2], -1))


class Stream(nnx.Module):
    """One modality's half of a block: modulation, joint attention, feed-forward network.

    `context_pre_only` is for the text of the last block, whose output nobody reads: it only offers keys and values.
    `dual` is for an image that also attends to itself alone, with weights and modulation of its own.
    """

    def __init__(self, config: MMDiTConfig, *, context_pre_only: bool = False, dual: bool = False, rngs: Keys):
        width = config.width
        self.parts = 2 if context_pre_only else 9 if dual else 6
        self.modulation = Linear(width, self.parts * width, ("embed", "features"), zero=True, rngs=rngs)
        self.joint = Attention(config, context_pre_only, rngs=rngs)
        self.dual = Attention(config, rngs=rngs) if dual else None
        hidden = int(config.mlp_ratio * width)
        self.mlp = None if context_pre_only else MLP(width, hidden, width, jax.nn.gelu, rngs=rngs)

    def modulate(self, signal_BD: jax.Array) -> list[jax.Array]:
        """shift, scale, gate of joint attention, of the MLP and of dual attention, as far as the stream has them."""
        parts = jnp.split(self.modulation(signal_BD), self.parts, -1)
        return parts[::-1] if self.parts == 2 else parts  # the released weights keep scale first there

    def finish(self, x_BTD: jax.Array, attended_BTND: jax.Array, modulation: list[jax.Array]) -> jax.Array:
        """Add gated attention, joint and dual, then the gated MLP."""
        _, _, gate, shift, scale, mlp_gate = modulation[:6]
        change = gate[:, None] * self.joint.finish(attended_BTND)
        if self.dual is not None:
            dual_shift, dual_scale, dual_gate = modulation[6:]
            qkv = self.dual.project(modulated(x_BTD, dual_shift, dual_scale))
            change += dual_gate[:, None] * self.dual.finish(attention(*qkv))
        # the barriers keep XLA:CPU from recomputing the whole residual chain, forward and backward, in every fusion
        # that reads it: measured in a small train step, they halve its time
        x = lax.optimization_barrier(x_BTD + change)
        return lax.optimization_barrier(x + mlp_gate[:, None] * self.mlp(modulated(x, shift, scale)))


class Block(nnx.Module):
    """Joint attention over text and image tokens; a `context_pre_only` block returns no text."""

    def __init__(self, config: MMDiTConfig, *, context_pre_only: bool = False, dual: bool = False, rngs: Keys):
        self.context_pre_only = context_pre_only
        self.image = Stream(config, dual=dual, rngs=rngs)
        self.text = Stream(config, context_pre_only=context_pre_only, rngs=rngs)

    def __call__(self, image_BTD, text_BLD, signal_BD, mask):
        to_image, to_text = self.image.modulate(signal_BD), self.text.modulate(signal_BD)
        image_qkv = self.image.joint.project(modulated(image_BTD, *to_image[:2]))
        text_qkv = self.text.joint.project(modulated(text_BLD, *to_text[:2]))
        q, k, v = (join(*pair) for pair in zip(image_qkv, text_qkv, strict=True))
        if self.context_pre_only:
            return self.image.finish(image_BTD, attention(image_qkv[0], k, v, mask), to_image), None
        image_attended, text_attended = part(attention(q, k, v, mask), image_BTD.shape[1])
        image = self.image.finish(image_BTD, image_attended, to_image)
        return image, self.text.finish(text_BLD, text_attended, to_text)


class MMDiT(nnx.Module):
    """Denoiser: (x [B, H, W, C], t [B] in [0, 1], cond with text, pooled and optionally text_mask) -> like x."""

    def __init__(self, config: MMDiTConfig, *, rngs: Keys):
        self.config = config
        width, patch = config.width, config.patch_size**2 * config.channels
        self.patches = Linear(patch, width, (None, "embed"), rngs=rngs)
        self.time = MLP(256, width, width, jax.nn.silu, rngs=rngs)
        self.jump = MLP(256, width, width, jax.nn.silu, zero=True, rngs=rngs) if config.jump else None
        self.pooled = MLP(config.pooled_dim, width, width, jax.nn.silu, rngs=rngs)
        self.text = Linear(config.text_dim, width, (None, "embed"), rngs=rngs)
        # every kind of block is a stack of its own
        dual, plain = config.dual_attention, config.depth - 1 - config.dual_attention
        self.dual = stack(lambda key: Block(config, dual=True, rngs=Keys(key)), dual, rngs) if dual else None
        self.blocks = stack(lambda key: Block(config, rngs=Keys(key)), plain, rngs) if plain else None
        self.last = Block(config, context_pre_only=True, rngs=rngs)
        self.modulation = Linear(width, 2 * width, ("embed", "features"), zero=True, rngs=rngs)
        self.out = Linear(width, patch, ("embed", None), zero=True, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, t_B: jax.Array, cond: Conditioning, skip: tuple[int, ...] = ()) -> jax.Array:
        """The prediction; without the blocks of the numbers `skip`, for skip-layer guidance."""
        config, dtype = self.config, self.config.dtype
        b, h, w, _ = x_BHWC.shape
        if h % config.patch_size or w % config.patch_size:
            raise ValueError(f"latents of {h} x {w} do not divide into patches of {config.patch_size}")
        rows, columns = h // config.patch_size, w // config.patch_size
        places = sincos_2d(config.width, rows, columns, config.position_size, config.base_size,
                           config.position_scale, config.position_offset)  # fmt: skip
        image = self.patches(patchify(x_BHWC, config.patch_size).astype(dtype)) + places.astype(dtype)
        text, mask = padded(cond.text, cond.text_mask)
        text = self.text(text.astype(dtype))
        signal = self.time(timestep_embedding(t_B).astype(dtype)) + self.pooled(cond.pooled.astype(dtype))
        if self.jump is not None:
            spanned_B = jnp.zeros_like(t_B) if cond.jump is None else cond.jump
            signal += self.jump(timestep_embedding(spanned_B).astype(dtype))
        signal = jax.nn.silu(signal)
        mask = None if mask is None else join(jnp.ones((b, rows * columns), bool), mask)
        step = lambda block, tokens, cond: block(*tokens, *cond)
        for blocks, first in ((self.dual, 0), (self.blocks, config.dual_attention)):
            if blocks is not None:
                left_out = tuple(i - first for i in skip)
                image, text = run_blocks(blocks, (image, text), step, config, (signal, mask), left_out)
        if config.depth - 1 not in skip:
            image, _ = self.last(image, text, signal, mask)
        scale, shift = jnp.split(self.modulation(signal), 2, -1)
        return unpatchify(self.out(modulated(image, shift, scale)), config.patch_size, rows).astype(x_BHWC.dtype)


def rung(size: int, *, aspect: float = 64.0, head_size: int = 64, **options) -> MMDiTConfig:
    """An MMDiT of `size` heads whose width is about aspect x depth, as all of SD3's."""
    width = head_size * size
    return MMDiTConfig(**{"width": width, "depth": max(round(width / aspect), 2), "heads": size} | options)


MMDIT = Family(
    "mmdit", MMDiTConfig, MMDiT, PRESETS,
    conditioning=lambda config: ConditioningSpec(text=config.text_dim, pooled=config.pooled_dim, jump=config.jump),
    requires=("text", "pooled"),
    patch=lambda config: config.patch_size,
    reach=lambda config: config.position_size,
    native_side=lambda config: config.base_size * config.patch_size,
    heads=lambda config: {config.heads},
    skips=True,
    bulk=lambda config: (config.width, config.depth),
    small=lambda config: dict(width=32, depth=2, heads=2),
    ladder=rung,
    embeddings=("patches", "time", "pooled", "text", "out"),
)  # fmt: skip

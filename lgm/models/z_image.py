"""Z-Image, the single-stream diffusion transformer of Alibaba's Tongyi lab (2025, 2511.22699).

Image and text tokens pass two blocks each on their own, then one stack together. Blocks are of the sandwich kind: RMS
norms before and after attention and SwiGLU; time scales and gates, and shifts nothing. Both kinds of tokens are filled
up to multiples of 32 with a learned token that takes part in attention. A token's place is (time, row, column): text
counts up along the first, the image stands at the moment after it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lgm.bounds import Count, Positive, Several, Whole
from lgm.models.attention import attention
from lgm.models.base import Conditioning
from lgm.models.blocks import Remat, run_blocks, stack
from lgm.models.embeddings import patchify, timestep_embedding, unpatchify
from lgm.models.keys import Keys
from lgm.models.layers import MLP, Linear, RMSNorm, modulated
from lgm.models.records import ConditioningSpec, Family
from lgm.models.rotary import Table, check_axes, rotary_places, rotate, share_axes
from lgm.parallel.tokens import join, padded, part

EPSILON = 1e-5  # of every norm but the last
UNIT = 32  # tokens that both kinds are filled up to multiples of
SIGNAL = 256  # widest signal of time
TIME_FEATURES, TIME_WIDTH = 256, 1024


@dataclasses.dataclass(frozen=True)
class ZImageConfig:
    """Latents [B, H, W, channels] cut into patches; the defaults are Z-Image's shape.

    depth: blocks of the joint stack; refiner_depth: of each kind's own before it. rotary_axes: channels of a head that
    turn with a token's time, row and column, with periods up to rotary_period. remat and group as in MMDiTConfig.
    """

    channels: Count = 16
    patch_size: Count = 2
    width: Count = 3840
    depth: Count = 30
    refiner_depth: Count = 2
    heads: Count = 30
    text_dim: Whole = 2560
    rotary_axes: tuple[Several, Several, Several] = (32, 48, 48)
    rotary_period: Positive = 256.0
    remat: Remat = "none"
    group: Count = 1
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("channels", "patch_size", "depth", "refiner_depth", "text_dim", "group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        check_axes(self.rotary_axes, self.width, self.heads)

    @property
    def signal(self) -> int:
        """Width of what tells the blocks the time."""
        return min(self.width, SIGNAL)


PRESETS = {
    "z_image": dict(),
    # a small one of the same kind, for tests and first tries
    "z_image_tiny": dict(width=64, depth=4, refiner_depth=1, heads=4, text_dim=64, rotary_axes=(4, 6, 6)),
}


class Block(nnx.Module):
    """Attention and SwiGLU between norms, scaled and gated by the signal where the block is `timed`."""

    def __init__(self, config: ZImageConfig, timed: bool, *, rngs: Keys):
        width, inner = config.width, int(config.width / 3 * 8)
        self.heads = config.heads
        norm = lambda: RMSNorm(width, EPSILON, ("embed",))
        self.norm1, self.norm2, self.mlp_norm1, self.mlp_norm2 = norm(), norm(), norm(), norm()
        self.qkv = Linear(width, 3 * width, ("embed", "heads"), parts=3, bias=False, rngs=rngs)
        head = width // config.heads
        self.norm_q, self.norm_k = RMSNorm(head, EPSILON), RMSNorm(head, EPSILON)
        self.out = Linear(width, width, ("heads", "embed"), bias=False, rngs=rngs)
        self.wi = Linear(width, 2 * inner, ("embed", "mlp"), parts=2, bias=False, rngs=rngs)
        self.wo = Linear(inner, width, ("mlp", "embed"), bias=False, rngs=rngs)
        self.modulation = Linear(config.signal, 4 * width, (None, "features"), zero=True, rngs=rngs) if timed else None

    def __call__(self, x_BTD: jax.Array, signal_BS: jax.Array | None, table: Table, mask_BT) -> jax.Array:
        scale = gate = mlp_scale = mlp_gate = 1.0
        if self.modulation is not None:
            scale, gate, mlp_scale, mlp_gate = jnp.split(self.modulation(signal_BS)[:, None], 4, -1)
            scale, mlp_scale, gate, mlp_gate = 1.0 + scale, 1.0 + mlp_scale, jnp.tanh(gate), jnp.tanh(mlp_gate)
        qkv = self.qkv.apart(self.norm1(x_BTD) * scale)
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in qkv)
        q, k = rotate(self.norm_q(q), table), rotate(self.norm_k(k), table)
        attended = attention(q, k, v, mask_BT).reshape(x_BTD.shape)
        # barriers as in MMDiT: they keep XLA:CPU from recomputing the residual chain in every fusion that reads it
        x = lax.optimization_barrier(x_BTD + gate * self.norm2(self.out(attended)))
        y = self.wi(self.mlp_norm1(x) * mlp_scale)
        change = self.wo(jax.nn.silu(y[..., 0, :]) * y[..., 1, :])
        return lax.optimization_barrier(x + mlp_gate * self.mlp_norm2(change))


class ZImage(nnx.Module):
    """Denoiser: (x [B, H, W, C], t [B] in [0, 1], cond with text and optionally text_mask) -> like x."""

    def __init__(self, config: ZImageConfig, *, rngs: Keys):
        self.config = config
        width, patch = config.width, config.patch_size**2 * config.channels
        token = lambda: nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,)), axes=("embed",))
        blocks = lambda depth, timed: stack(lambda key: Block(config, timed, rngs=Keys(key)), depth, rngs)
        self.patches = Linear(patch, width, (None, "embed"), rngs=rngs)
        self.time = MLP(TIME_FEATURES, TIME_WIDTH, config.signal, jax.nn.silu, rngs=rngs)
        self.text_norm = RMSNorm(config.text_dim, EPSILON)
        self.text = Linear(config.text_dim, width, (None, "embed"), rngs=rngs)
        self.image_filler, self.text_filler = token(), token()
        self.image_blocks = blocks(config.refiner_depth, True)
        self.text_blocks = blocks(config.refiner_depth, False)
        self.blocks = blocks(config.depth, True)
        self.modulation = Linear(config.signal, width, (None, "features"), zero=True, rngs=rngs)
        self.out = Linear(width, patch, ("embed", None), zero=True, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, t_B: jax.Array, cond: Conditioning) -> jax.Array:
        """The prediction; the network's own time runs from 0 at noise to 1 at data, and it predicts dx / d(1 - t)."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        b, h, w, _ = x_BHWC.shape
        if h % config.patch_size or w % config.patch_size:
            raise ValueError(f"latents of {h} x {w} do not divide into patches of {config.patch_size}")
        rows, columns = h // config.patch_size, w // config.patch_size
        signal = self.time(timestep_embedding(1.0 - t_B, TIME_FEATURES).astype(dtype))
        text, place, fills_BL, mask = filled(cond.text, cond.text_mask)
        text = self.text(self.text_norm(text.astype(dtype)))
        text = jnp.where(fills_BL[..., None], self.text_filler[...].astype(dtype), text)
        last_B = place.max(1, where=mask, initial=0)
        places = np.zeros((rows * columns, 3))
        places[:, 1:] = np.indices((rows, columns)).reshape(2, -1).T
        fillers = -len(places) % UNIT
        image = self.patches(patchify(x_BHWC, config.patch_size).astype(dtype))
        image = jnp.concatenate(
            [image, jnp.broadcast_to(self.image_filler[...].astype(dtype), (b, fillers, config.width))], 1)  # fmt: skip
        most = text.shape[1] + 1  # the latest moment that a token may stand at
        angles = lambda *axes: rotary_places(axes, (most, rows, columns), config.rotary_axes, config.rotary_period)
        when = jnp.where(jnp.arange(len(places) + fillers) < len(places), last_B[:, None] + 1, 0)
        row, column = (np.pad(places[:, i], (0, fillers)).astype(np.int32) for i in (1, 2))
        image_table = angles(when, jnp.broadcast_to(row, when.shape), jnp.broadcast_to(column, when.shape))
        text_table = angles(place, jnp.zeros_like(place), jnp.zeros_like(place))
        if cond.text_mask is None and mask.shape[1] - cond.text.shape[1] < UNIT:  # all count
            mask = None

        def step(block, x, cond):
            return block(x, *cond)

        image = run_blocks(self.image_blocks, image, step, config, (signal, image_table, None))
        text = run_blocks(self.text_blocks, text, step, config, (None, text_table, mask))
        table = tuple(join(*pair) for pair in zip(image_table, text_table, strict=True))
        both = None if mask is None else join(jnp.ones(image.shape[:2], bool), mask)
        x = run_blocks(self.blocks, join(image, text), step, config, (signal, table, both))
        x = part(x, image.shape[1])[0][:, : rows * columns]
        scale = self.modulation(jax.nn.silu(signal))
        y = self.out(modulated(x, jnp.zeros_like(scale), scale))
        return -unpatchify(y, config.patch_size, rows).astype(x_BHWC.dtype)


def filled(text_BLD: jax.Array, mask_BL: jax.Array | None):
    """(text lengthened for fillers, place of each token from 1 on, which are fillers, which count) of text and mask.

    The tokens that count come first in the order of places, then fillers up to a multiple of 32; others are nowhere.
    """
    count = text_BLD.shape[1]
    some_BL = jnp.ones(text_BLD.shape[:2], bool) if mask_BL is None else mask_BL.astype(bool)
    more = -count % UNIT
    text, some = jnp.pad(text_BLD, ((0, 0), (0, more), (0, 0))), jnp.pad(some_BL, ((0, 0), (0, more)))
    text, some = padded(text, some)  # to what `context` divides
    counts_B = some.sum(1, dtype=jnp.int32)
    room_B = (counts_B + UNIT - 1) // UNIT * UNIT
    rank = jnp.where(some, jnp.cumsum(some, 1), counts_B[:, None] + jnp.cumsum(~some, 1))
    counted = rank <= room_B[:, None]
    return text, jnp.where(counted, rank, 0).astype(jnp.int32), counted & ~some, counted


def rung(size: int, *, aspect: float = 128.0, head_size: int = 128, **options) -> ZImageConfig:
    """A Z-Image of `size` heads whose width is about aspect x depth."""
    width, axes = head_size * size, share_axes(head_size, 3 / 8)  # 32, 48, 48 of Z-Image's 128
    return ZImageConfig(**{"width": width, "depth": max(round(width / aspect), 1), "heads": size,
                           "rotary_axes": axes} | options)


Z_IMAGE = Family(
    "z_image", ZImageConfig, ZImage, PRESETS,
    conditioning=lambda config: ConditioningSpec(text=config.text_dim),
    requires=("text",),
    patch=lambda config: config.patch_size,
    heads=lambda config: {config.heads},
    blocks=lambda config: config.depth + 2 * config.refiner_depth,
    bulk=lambda config: (config.width, config.depth + config.refiner_depth),
    small=lambda config: dict(width=32, depth=2, refiner_depth=1, heads=2, rotary_axes=[4, 6, 6]),
    ladder=rung,
    embeddings=("patches", "time", "text_norm", "text", "image_filler", "text_filler", "out"),
)  # fmt: skip

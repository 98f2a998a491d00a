"""Flux.2, the rectified flow transformer of Black Forest Labs (2025): dev, distilled from guidance, and klein.

Double-stream, then single-stream blocks as in Flux.1, but all blocks of a kind share one modulation, feed-forward
networks are SwiGLU (Shazeer 2020, 2002.05202), no product has a bias, and no vector of the text is told. A token's
place is (time, row, column, number): a picture's tokens differ in row and column, a text's in their number.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lgm.bounds import Count, Several, Whole
from lgm.models.attention import attention
from lgm.models.base import Conditioning
from lgm.models.blocks import Remat, run_blocks, stack
from lgm.models.embeddings import timestep_embedding
from lgm.models.flux import DoubleBlock, Heads, pack, unpack
from lgm.models.keys import Keys
from lgm.models.layers import MLP, Linear, RMSNorm, modulated
from lgm.models.records import ConditioningSpec, Family
from lgm.models.rotary import Table, check_axes, rotary_table, rotate
from lgm.parallel.tokens import join, padded, part

TIME_FEATURES = 256
MLP_RATIO = 3
PERIOD = 2000.0  # of the slowest channels' turn


@dataclasses.dataclass(frozen=True)
class Flux2Config:
    """Latents [B, H, W, channels] packed 2 x 2 into tokens; the defaults are Flux.2-dev's shape.

    depth: double-stream blocks; single_depth: single-stream blocks after them. rotary_axes: channels of a head that
    turn with a token's time (always the first), row, column and number in the text. guidance: the network is told a
    guidance scale, as Flux.2-dev is. remat and group as in MMDiTConfig.
    """

    channels: Count = 32
    patch_size: Count = 2
    width: Count = 6144
    depth: Count = 8
    single_depth: Count = 48
    heads: Count = 48
    text_dim: Whole = 15_360
    rotary_axes: tuple[Several, Several, Several, Several] = (32, 32, 32, 32)
    guidance: bool = True
    remat: Remat = "none"
    group: Count = 1
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("channels", "patch_size", "depth", "single_depth", "text_dim", "group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        check_axes(self.rotary_axes, self.width, self.heads, 4)


PRESETS = {
    "flux2_dev": dict(),
    "flux2_klein_4b": dict(width=3072, depth=5, single_depth=20, heads=24, text_dim=7680, guidance=False),
    "flux2_klein_9b": dict(width=4096, depth=8, single_depth=24, heads=32, text_dim=12_288, guidance=False),
    # a small one of klein's kind, for tests and first tries
    "flux2_tiny": dict(width=64, depth=2, single_depth=4, heads=4, text_dim=64, rotary_axes=(4, 4, 4, 4),
                       guidance=False),
}  # fmt: skip


class SwiGLU(nnx.Module):
    """Linear to gates and values, silu(gates) x values, linear; without biases."""

    def __init__(self, width: int, hidden: int, *, rngs: Keys):
        self.wi = Linear(width, 2 * hidden, ("embed", "mlp"), parts=2, bias=False, rngs=rngs)
        self.wo = Linear(hidden, width, ("mlp", "embed"), bias=False, rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        y = self.wi(x_BTD)
        return self.wo(jax.nn.silu(y[..., 0, :]) * y[..., 1, :])


class Stream(nnx.Module):
    """One modality's half of a double-stream block, whose modulation [B, 6 width] all blocks share."""

    def __init__(self, config: Flux2Config, *, rngs: Keys):
        width = config.width
        self.heads = Heads(width, config.heads, bias=False, rngs=rngs)
        self.out = Linear(width, width, ("heads", "embed"), bias=False, rngs=rngs)
        self.mlp = SwiGLU(width, MLP_RATIO * width, rngs=rngs)

    def start(self, x_BTD: jax.Array, modulation_BD: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """(queries, keys and values; what is left of the modulation for `finish`)."""
        shift, scale, *rest = jnp.split(modulation_BD, 6, -1)
        return self.heads(modulated(x_BTD, shift, scale)), rest

    def finish(self, x_BTD: jax.Array, attended_BTND: jax.Array, rest: list[jax.Array]) -> jax.Array:
        """Add gated attention, then the gated SwiGLU."""
        gate, shift, scale, mlp_gate = rest
        # barriers as in MMDiT: they keep XLA:CPU from recomputing the residual chain in every fusion that reads it
        x = lax.optimization_barrier(x_BTD + gate[:, None] * self.out(attended_BTND.reshape(x_BTD.shape)))
        return lax.optimization_barrier(x + mlp_gate[:, None] * self.mlp(modulated(x, shift, scale)))


class SingleBlock(nnx.Module):
    """Attention and SwiGLU of the same input by one product, whose outputs share another."""

    def __init__(self, config: Flux2Config, *, rngs: Keys):
        width, head = config.width, config.width // config.heads
        self.heads, inputs = config.heads, 3 + 2 * MLP_RATIO
        # queries, keys, values, then the feed-forward network's gates and values, a width each
        self.qkv = Linear(width, inputs * width, ("embed", "heads"), parts=inputs, bias=False, rngs=rngs)
        self.norm_q, self.norm_k = RMSNorm(head), RMSNorm(head)
        outputs = 1 + MLP_RATIO
        self.out = Linear(outputs * width, width, ("heads", "embed"), parts_in=outputs, bias=False, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, modulation_BD: jax.Array, table: Table, mask) -> jax.Array:
        b, t, _ = x_BTD.shape
        shift, scale, gate = jnp.split(modulation_BD, 3, -1)
        y = self.qkv(modulated(x_BTD, shift, scale))
        q, k, v = (y[:, :, i].reshape(b, t, self.heads, -1) for i in range(3))
        attended = attention(rotate(self.norm_q(q), table), rotate(self.norm_k(k), table), v, mask)
        gates, values = jnp.split(y[:, :, 3:], 2, 2)
        both = jnp.concatenate([attended.reshape(b, t, 1, -1), jax.nn.silu(gates) * values], 2)
        return lax.optimization_barrier(x_BTD + gate[:, None] * self.out(both))


class Flux2(nnx.Module):
    """Denoiser: (x [B, H, W, C], t [B] in [0, 1], cond with text and, if distilled, guidance) -> like x."""

    def __init__(self, config: Flux2Config, *, rngs: Keys):
        self.config = config
        width, patch = config.width, config.patch_size**2 * config.channels
        embedder = lambda: MLP(TIME_FEATURES, width, width, jax.nn.silu, bias=False, rngs=rngs)
        modulation = lambda parts: Linear(width, parts * width, ("embed", "features"), bias=False, zero=True, rngs=rngs)
        self.patches = Linear(patch, width, (None, "embed"), bias=False, rngs=rngs)
        self.time, self.guidance = embedder(), embedder() if config.guidance else None
        self.text = Linear(config.text_dim, width, (None, "embed"), bias=False, rngs=rngs)
        self.image_modulation, self.text_modulation = modulation(6), modulation(6)
        self.single_modulation, self.modulation = modulation(3), modulation(2)
        self.double = stack(lambda key: DoubleBlock(config, Stream, rngs=Keys(key)), config.depth, rngs)
        self.single = stack(lambda key: SingleBlock(config, rngs=Keys(key)), config.single_depth, rngs)
        self.out = Linear(width, patch, ("embed", None), bias=False, zero=True, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, t_B: jax.Array, cond: Conditioning) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        b, h, w, _ = x_BHWC.shape
        if h % config.patch_size or w % config.patch_size:
            raise ValueError(f"latents of {h} x {w} do not divide into patches of {config.patch_size}")
        rows, columns = h // config.patch_size, w // config.patch_size
        signal, count = self._signal(t_B, cond, dtype), rows * columns
        text, mask = padded(cond.text, cond.text_mask)
        image, text = self.patches(pack(x_BHWC, config.patch_size).astype(dtype)), self.text(text.astype(dtype))
        places = rotary_table(positions(rows, columns, text.shape[1]), config.rotary_axes, PERIOD)
        table = tuple(join(angles[:count], angles[count:], 0) for angles in places)  # in the order of joint tokens
        mask = None if mask is None else join(jnp.ones((b, count), bool), mask.astype(bool))

        def double(block, tokens, told):
            image_signal, text_signal, mask = told
            return block(*tokens, image_signal, table, mask, text_signal)

        def single(block, x, told):
            return block(x, told[0], table, told[1])

        told = self.image_modulation(signal), self.text_modulation(signal), mask
        image, text = run_blocks(self.double, (image, text), double, config, told)
        told = self.single_modulation(signal), mask
        x, _ = part(run_blocks(self.single, join(image, text), single, config, told), count)
        scale, shift = jnp.split(self.modulation(signal), 2, -1)
        return unpack(self.out(modulated(x, shift, scale)), config.patch_size, rows).astype(x_BHWC.dtype)

    def _signal(self, t_B: jax.Array, cond: Conditioning, dtype) -> jax.Array:
        """What all modulations are made of [B, width]."""
        signal = self.time(timestep_embedding(t_B, TIME_FEATURES).astype(dtype))
        if self.guidance is not None:
            if cond.guidance is None:
                raise ValueError("this Flux.2 is distilled from guidance; give its scale [B] as cond.guidance "
                                 "(usual: 4)")
            signal += self.guidance(timestep_embedding(cond.guidance, TIME_FEATURES).astype(dtype))
        return jax.nn.silu(signal)


def positions(rows: int, columns: int, text: int) -> np.ndarray:
    """The places [T, 4] of rows * columns image tokens, rows first, and of `text` tokens after them."""
    places, count = np.zeros((rows * columns + text, 4)), rows * columns
    places[:count, 1:3] = np.indices((rows, columns)).reshape(2, -1).T
    places[count:, 3] = np.arange(text)
    return places


def rung(size: int, *, aspect: float = 123.0, head_size: int = 128, **options) -> Flux2Config:
    """A Flux.2 of `size` heads whose width is about aspect x depth, with one double-stream block for four others, as
    klein of 4B parameters has them at size 24."""
    if head_size < 8 or head_size % 8:
        raise ValueError(f"head_size={head_size} of Flux.2 must be a multiple of 8, for four even axes share its "
                         "channels alike")  # fmt: skip
    width = head_size * size
    depth = max(round(width / aspect), 1)
    double = max(round(depth / 5), 1)
    return Flux2Config(**{"width": width, "depth": double, "single_depth": max(depth - double, 1), "heads": size,
                          "rotary_axes": (head_size // 4,) * 4, "guidance": False} | options)  # fmt: skip


FLUX2 = Family(
    "flux2", Flux2Config, Flux2, PRESETS,
    conditioning=lambda config: ConditioningSpec(text=config.text_dim, guidance=config.guidance),
    requires=("text",),
    patch=lambda config: config.patch_size,
    heads=lambda config: {config.heads},
    blocks=lambda config: config.depth + config.single_depth,
    bulk=lambda config: (config.width, config.depth + config.single_depth),
    small=lambda config: dict(width=32, depth=2, single_depth=2, heads=2, rotary_axes=[4, 4, 4, 4]),
    ladder=rung,
    embeddings=("patches", "time", "guidance", "text", "out"),
)  # fmt: skip

"""Flux.1, the rectified flow transformer of Black Forest Labs (2024): double-stream, then single-stream blocks.

Double-stream blocks are those of MMDiT with rotary positions: text and image have weights of their own and meet in
joint attention. Single-stream blocks treat both as one sequence, with attention and feed-forward network side by side
(Dehghani et al. 2023, 2302.05442). Flux.1-dev is distilled from guidance and takes its scale as an input.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lgm.bounds import Count, Several, Whole
from lgm.models.attention import attention
from lgm.models.base import Conditioning
from lgm.models.blocks import Remat, run_blocks, stack
from lgm.models.embeddings import timestep_embedding
from lgm.models.keys import Keys
from lgm.models.layers import MLP, Linear, RMSNorm, modulated
from lgm.models.records import ConditioningSpec, Family
from lgm.models.rotary import Table, check_axes, rotary_grid, rotate, share_axes
from lgm.parallel.tokens import join, padded, part

TIME_FEATURES = 256
MLP_RATIO = 4


@dataclasses.dataclass(frozen=True)
class FluxConfig:
    """Latents [B, H, W, channels] packed 2 x 2 into tokens; the defaults are Flux.1-schnell's shape.

    depth: double-stream blocks; single_depth: single-stream blocks after them. rotary_axes: channels of a head that
    turn with the (unused) first coordinate, the row and the column. guidance: the network is told a guidance scale, as
    Flux.1-dev is. remat and group as in MMDiTConfig.
    """

    channels: Count = 16
    patch_size: Count = 2
    width: Count = 3072
    depth: Count = 19
    single_depth: Count = 38
    heads: Count = 24
    text_dim: Whole = 4096
    pooled_dim: Whole = 768
    rotary_axes: tuple[Several, Several, Several] = (16, 56, 56)
    guidance: bool = False
    remat: Remat = "none"
    group: Count = 1
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("channels", "patch_size", "depth", "single_depth", "group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        check_axes(self.rotary_axes, self.width, self.heads)


PRESETS = {
    "flux_dev": dict(guidance=True),
    "flux_schnell": dict(),
    # a small one of the same kind, for tests and first tries
    "flux_tiny": dict(width=64, depth=2, single_depth=4, heads=4, text_dim=64, pooled_dim=64, rotary_axes=(4, 6, 6)),
}


class Heads(nnx.Module):
    """Queries and keys, normalized, and values [B, T, N, D / N] from one product."""

    def __init__(self, width: int, heads: int, *, bias: bool = True, rngs: Keys):
        self.heads = heads
        self.qkv = Linear(width, 3 * width, ("embed", "heads"), parts=3, bias=bias, rngs=rngs)
        self.norm_q, self.norm_k = RMSNorm(width // heads), RMSNorm(width // heads)

    def __call__(self, x_BTD: jax.Array) -> list[jax.Array]:
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in self.qkv.apart(x_BTD))
        return [self.norm_q(q), self.norm_k(k), v]


class Shape(Protocol):
    """What a double-stream block needs of a configuration, Flux's or another's."""

    width: int
    heads: int


class Stream(nnx.Module):
    """One modality's half of a double-stream block: modulation, attention, feed-forward network."""

    def __init__(self, config: Shape, *, rngs: Keys):
        width = config.width
        self.modulation = Linear(width, 6 * width, ("embed", "features"), zero=True, rngs=rngs)
        self.heads = Heads(width, config.heads, rngs=rngs)
        self.out = Linear(width, width, ("heads", "embed"), rngs=rngs)
        self.mlp = MLP(width, MLP_RATIO * width, width, jax.nn.gelu, rngs=rngs)

    def start(self, x_BTD: jax.Array, signal_BD: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """(queries, keys and values; what is left of the modulation for `finish`)."""
        shift, scale, *rest = jnp.split(self.modulation(signal_BD), 6, -1)
        return self.heads(modulated(x_BTD, shift, scale)), rest

    def finish(self, x_BTD: jax.Array, attended_BTND: jax.Array, rest: list[jax.Array]) -> jax.Array:
        """Add gated attention, then the gated MLP."""
        gate, shift, scale, mlp_gate = rest
        # barriers as in MMDiT: they keep XLA:CPU from recomputing the residual chain in every fusion that reads it
        x = lax.optimization_barrier(x_BTD + gate[:, None] * self.out(attended_BTND.reshape(x_BTD.shape)))
        return lax.optimization_barrier(x + mlp_gate[:, None] * self.mlp(modulated(x, shift, scale)))


class DoubleBlock(nnx.Module):
    """Joint attention over image and text tokens, whose weights, a `stream` each, are apart; the signal of the text is
    that of the image unless it is given."""

    def __init__(self, config: Shape, stream: type[nnx.Module] = Stream, *, rngs: Keys):
        self.image, self.text = stream(config, rngs=rngs), stream(config, rngs=rngs)

    def __call__(self, image_BTD, text_BLD, signal_BD, table: Table, mask, text_signal_BD=None):
        image_qkv, image_rest = self.image.start(image_BTD, signal_BD)
        text_qkv, text_rest = self.text.start(text_BLD, signal_BD if text_signal_BD is None else text_signal_BD)
        q, k, v = (join(*pair) for pair in zip(image_qkv, text_qkv, strict=True))
        image, text = part(attention(rotate(q, table), rotate(k, table), v, mask), image_BTD.shape[1])
        return self.image.finish(image_BTD, image, image_rest), self.text.finish(text_BLD, text, text_rest)


class SingleBlock(nnx.Module):
    """Attention and feed-forward network of the same input, whose outputs share one product."""

    def __init__(self, config: FluxConfig, *, rngs: Keys):
        width = config.width
        self.modulation = Linear(width, 3 * width, ("embed", "features"), zero=True, rngs=rngs)
        self.heads = Heads(width, config.heads, rngs=rngs)
        self.fc1 = Linear(width, MLP_RATIO * width, ("embed", "mlp"), parts=MLP_RATIO, rngs=rngs)
        parts = 1 + MLP_RATIO
        self.out = Linear(parts * width, width, ("mlp", "embed"), parts_in=parts, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, signal_BD: jax.Array, table: Table, mask) -> jax.Array:
        shift, scale, gate = jnp.split(self.modulation(signal_BD), 3, -1)
        y = modulated(x_BTD, shift, scale)
        q, k, v = self.heads(y)
        attended = attention(rotate(q, table), rotate(k, table), v, mask).reshape(x_BTD.shape)
        both = jnp.concatenate([attended[:, :, None], jax.nn.gelu(self.fc1(y))], 2)
        return lax.optimization_barrier(x_BTD + gate[:, None] * self.out(both))


class Flux(nnx.Module):
    """Denoiser: (x [B, H, W, C], t [B] in [0, 1], cond with text, pooled and, if distilled, guidance) -> like x."""

    def __init__(self, config: FluxConfig, *, rngs: Keys):
        self.config = config
        width, patch = config.width, config.patch_size**2 * config.channels
        self.patches = Linear(patch, width, (None, "embed"), rngs=rngs)
        self.time = MLP(TIME_FEATURES, width, width, jax.nn.silu, rngs=rngs)
        self.guidance = MLP(TIME_FEATURES, width, width, jax.nn.silu, rngs=rngs) if config.guidance else None
        self.pooled = MLP(config.pooled_dim, width, width, jax.nn.silu, rngs=rngs)
        self.text = Linear(config.text_dim, width, (None, "embed"), rngs=rngs)
        self.double = stack(lambda key: DoubleBlock(config, rngs=Keys(key)), config.depth, rngs)
        self.single = stack(lambda key: SingleBlock(config, rngs=Keys(key)), config.single_depth, rngs)
        self.modulation = Linear(width, 2 * width, ("embed", "features"), zero=True, rngs=rngs)
        self.out = Linear(width, patch, ("embed", None), zero=True, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, t_B: jax.Array, cond: Conditioning) -> jax.Array:
        config, dtype = self.config, self.config.dtype
        b, h, w, _ = x_BHWC.shape
        if h % config.patch_size or w % config.patch_size:
            raise ValueError(f"latents of {h} x {w} do not divide into patches of {config.patch_size}")
        rows, columns = h // config.patch_size, w // config.patch_size
        signal = self._signal(t_B, cond, dtype)
        text, mask = padded(cond.text, cond.text_mask)
        image, text = self.patches(pack(x_BHWC, config.patch_size).astype(dtype)), self.text(text.astype(dtype))
        count = rows * columns
        places = rotary_grid(rows, columns, text.shape[1], config.rotary_axes)
        table = tuple(join(angles[:count], angles[count:], 0) for angles in places)  # in the order of joint tokens
        mask = None if mask is None else join(jnp.ones((b, count), bool), mask)

        def double(block, tokens, cond):
            return block(*tokens, cond[0], table, cond[1])

        def single(block, x, cond):
            return block(x, cond[0], table, cond[1])

        image, text = run_blocks(self.double, (image, text), double, config, (signal, mask))
        x, _ = part(run_blocks(self.single, join(image, text), single, config, (signal, mask)), count)
        scale, shift = jnp.split(self.modulation(signal), 2, -1)
        y = self.out(modulated(x, shift, scale))
        return unpack(y, config.patch_size, rows).astype(x_BHWC.dtype)

    def _signal(self, t_B: jax.Array, cond: Conditioning, dtype) -> jax.Array:
        """What modulates every block [B, width]."""
        signal = self.time(timestep_embedding(t_B).astype(dtype)) + self.pooled(cond.pooled.astype(dtype))
        if self.guidance is not None:
            if cond.guidance is None:
                raise ValueError(
                    "this Flux is distilled from guidance; give its scale [B] as cond.guidance (usual: 3.5)"
                )
            signal += self.guidance(timestep_embedding(cond.guidance).astype(dtype))
        return jax.nn.silu(signal)


def pack(x_BHWC: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> tokens [B, (H / p) (W / p), C p p], rows first; a token has its channels first."""
    return einops.rearrange(x_BHWC, "b (h p) (w q) c -> b (h w) (c p q)", p=patch, q=patch)


def unpack(x_BTD: jax.Array, patch: int, rows: int) -> jax.Array:
    """The inverse of `pack` for a grid of `rows` rows."""
    return einops.rearrange(x_BTD, "b (h w) (c p q) -> b (h p) (w q) c", p=patch, q=patch, h=rows)


def rung(size: int, *, aspect: float = 54.0, head_size: int = 128, **options) -> FluxConfig:
    """A Flux of `size` heads whose width is about aspect x depth, with one double-stream block for two others."""
    width = head_size * size
    depth = max(round(width / aspect), 1)
    double = max(round(depth / 3), 1)
    axes = share_axes(head_size, 7 / 16)  # 16, 56, 56 of Flux's 128
    return FluxConfig(**{"width": width, "depth": double, "single_depth": max(depth - double, 1), "heads": size,
                         "rotary_axes": axes} | options)


FLUX = Family(
    "flux", FluxConfig, Flux, PRESETS,
    conditioning=lambda config: ConditioningSpec(text=config.text_dim, pooled=config.pooled_dim,
                                                 guidance=config.guidance),
    requires=("text", "pooled"),
    patch=lambda config: config.patch_size,
    heads=lambda config: {config.heads},
    blocks=lambda config: config.depth + config.single_depth,
    bulk=lambda config: (config.width, config.depth + config.single_depth),
    small=lambda config: dict(width=32, depth=2, single_depth=2, heads=2, rotary_axes=[4, 6, 6]),
    ladder=rung,
    embeddings=("patches", "time", "guidance", "pooled", "text", "out"),
)  # fmt: skip

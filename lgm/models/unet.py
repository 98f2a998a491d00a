"""The U-Net of Stable Diffusion 1, 2 and XL (2112.10752, 2307.01952), laid out as diffusers' UNet2DConditionModel."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lgm.bounds import Count, Several, Whole
from lgm.models.attention import attention
from lgm.models.base import Conditioning
from lgm.models.blocks import Remat, recomputed, run_blocks, stack
from lgm.models.convolution import Conv, GroupNorm, ResBlock, upsample
from lgm.models.embeddings import sinusoids
from lgm.models.keys import Keys
from lgm.models.layers import PIXELS, LayerNorm, Linear, once
from lgm.models.records import ConditioningSpec, Family

EPSILON = 1e-5  # of the residual blocks' group norms and of layer norms
PROJECTION_EPSILON = 1e-6  # of the group norm before a transformer


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """A denoiser of x [B, H, W, channels] with one width, transformer depth and number of heads a level.

    A level of transformer depth 0 has no attention; the middle has `mid_depth` blocks. text_dim is the width of the
    text tokens that cross-attention reads (0: none, self-attention only). pooled_dim and micro_ids (each embedded in
    micro_dim) are added to the time embedding, as SDXL does. `linear_projection` says how a checkpoint stores the
    projections around a transformer (matrix or 1 x 1 convolution), not what is computed. `remat` names what backward
    finds of each transformer block and residual block (`models.blocks`). `group` transformer blocks are laid out in one
    iteration of the scan over depth; 1 compiles fastest, the depth runs fastest. `residual` (none of the released
    models) makes the output x + e^r y + e^s g x: y and g come from the last convolution, r and s are learned of time,
    and all start at 0. A prediction of eps then begins as "all of x_t is noise" instead of having to learn to copy it
    through every layer; r is the scale of what is left to say, 1 / 15 at the noisiest t of SD's table; and where the
    image is certain, as in a plain background, a gain g takes the noise away. `jump` (neither): it is told cond.jump,
    the time that a mean velocity spans. `beside` channels of cond.beside stand next to x in the first convolution, as
    those of an inpainting model: the mask, and the latents of the picture without what it covers.
    """

    channels: Count = 4
    block_channels: tuple[Count, ...] = (320, 640, 1280, 1280)
    layers_per_block: Count = 2
    transformer_depth: tuple[Whole, ...] = (1, 1, 1, 0)
    mid_depth: Whole = 1
    heads: tuple[Count, ...] = (8, 8, 8, 8)
    text_dim: Whole = 768
    pooled_dim: Whole = 0
    micro_ids: Whole = 0
    micro_dim: Several = 256
    norm_groups: Count = 32
    linear_projection: bool = False
    residual: bool = False
    jump: bool = False
    beside: Whole = 0
    group: Count = 1
    remat: Remat = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("transformer_depth", "heads"):
            values = getattr(self, name)
            if len(values) != len(self.block_channels):
                raise ValueError(f"{name}={values} must have one value a level of block_channels={self.block_channels}")
        if self.group < 1:
            raise ValueError(f"group={self.group} must be at least 1")
        for width, heads in zip(self.block_channels, self.heads, strict=True):
            if width % self.norm_groups:
                raise ValueError(f"norm_groups={self.norm_groups} does not divide block_channels={self.block_channels}")
            if width % heads:
                raise ValueError(f"heads={self.heads} do not divide block_channels={self.block_channels}")

    @property
    def embedding_dim(self) -> int:
        """Width of the time embedding."""
        return 4 * self.block_channels[0]

    @property
    def added_dim(self) -> int:
        """Width of what is embedded besides time: pooled text and micro-conditioning."""
        return self.pooled_dim + self.micro_ids * self.micro_dim


# the released U-Nets, as arguments of UNetConfig
PRESETS = {
    "sd15": dict(),
    "sd21": dict(heads=(5, 10, 20, 20), text_dim=1024, linear_projection=True),
    "sdxl": dict(
        block_channels=(320, 640, 1280), transformer_depth=(0, 2, 10), mid_depth=10, heads=(5, 10, 20),
        text_dim=2048, pooled_dim=1280, micro_ids=6, linear_projection=True,
    ),
    "sdxl_refiner": dict(
        block_channels=(384, 768, 1536, 1536), transformer_depth=(0, 4, 4, 0), mid_depth=4, heads=(6, 12, 24, 24),
        text_dim=1280, pooled_dim=1280, micro_ids=5, linear_projection=True,
    ),
}  # fmt: skip


class CrossAttention(nnx.Module):
    """Queries of the pixels, keys and values of the text; without bias but for the last product."""

    def __init__(self, width: int, text_dim: int, heads: int, *, rngs: Keys):
        self.heads = heads
        self.q = Linear(width, width, ("embed", "heads"), bias=False, rngs=rngs)
        self.kv = Linear(text_dim, 2 * width, ("embed", "heads"), parts=2, bias=False, rngs=rngs)
        self.out = Linear(width, width, ("heads", "embed"), rngs=rngs)

    def __call__(self, x_BTD: jax.Array, text_BLD: jax.Array, mask_BL: jax.Array | None) -> jax.Array:
        return self.out(attend(self.q(x_BTD), *self.kv.apart(text_BLD), self.heads, mask_BL))


class SelfAttention(nnx.Module):
    """Attention among pixels, q, k and v from one product; without bias but for the last product."""

    def __init__(self, width: int, heads: int, *, rngs: Keys):
        self.heads = heads
        self.qkv = Linear(width, 3 * width, ("embed", "heads"), parts=3, bias=False, rngs=rngs)
        self.out = Linear(width, width, ("heads", "embed"), rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.out(attend(*self.qkv.apart(x_BTD), self.heads, None))


def attend(q_BTD, k_BSD, v_BSD, heads: int, mask_BS: jax.Array | None) -> jax.Array:
    """Softmax attention of `heads` heads over the tokens that `mask_BS` lets count; [B, T, D]."""
    q, k, v = (a.reshape(*a.shape[:2], heads, -1) for a in (q_BTD, k_BSD, v_BSD))
    return attention(q, k, v, mask_BS).reshape(q_BTD.shape)


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention and a GEGLU feed-forward (Shazeer 2020, 2002.05202), each after a layer norm."""

    def __init__(self, width: int, heads: int, text_dim: int, *, rngs: Keys):
        self.norm1, self.norm3 = LayerNorm(width, EPSILON), LayerNorm(width, EPSILON)
        self.norm2 = LayerNorm(width, EPSILON) if text_dim else None
        self.attention = SelfAttention(width, heads, rngs=rngs)
        self.cross = CrossAttention(width, text_dim, heads, rngs=rngs) if text_dim else None
        self.fc1 = Linear(width, 8 * width, ("embed", "mlp"), parts=2, rngs=rngs)
        self.fc2 = Linear(4 * width, width, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x_BTD: jax.Array, text_BLD: jax.Array | None, mask_BL: jax.Array | None) -> jax.Array:
        x = x_BTD + self.attention(self.norm1(x_BTD))
        if self.cross is not None:
            x = x + self.cross(self.norm2(x), text_BLD, mask_BL)
        values = self.fc1(self.norm3(x))
        return x + self.fc2(once(values[:, :, 0] * gelu(values[:, :, 1])))


def gelu(x: jax.Array) -> jax.Array:
    """x times the Gaussian distribution function, through erf: on a CPU a third of the time of jax.nn.gelu's erfc."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


class Transformer(nnx.Module):
    """`depth` stacked transformer blocks over the pixels of a feature map, between two projections, added to it."""

    def __init__(self, width: int, heads: int, depth: int, config: UNetConfig, *, rngs: Keys):
        self.config = config
        self.norm = GroupNorm(width, config.norm_groups, epsilon=PROJECTION_EPSILON, silu=False)
        self.proj_in = Linear(width, width, ("embed", "features"), over=PIXELS, rngs=rngs)
        make = lambda key: TransformerBlock(width, heads, config.text_dim, rngs=Keys(key))
        self.blocks = stack(make, depth, rngs)
        self.proj_out = Linear(width, width, ("embed", "features"), over=PIXELS, zero=True, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, text_BLD: jax.Array | None, mask_BL: jax.Array | None) -> jax.Array:
        b, h, w, c = x_BHWC.shape
        step = lambda block, tokens, cond: block(tokens, *cond)
        tokens = self.proj_in(self.norm(x_BHWC)).reshape(b, h * w, c)
        tokens = run_blocks(self.blocks, tokens, step, self.config, (text_BLD, mask_BL))
        return x_BHWC + self.proj_out(tokens.reshape(b, h, w, c))


class Layer(nnx.Module):
    """A residual block and, where the level has attention, a transformer."""

    def __init__(self, in_channels, out_channels, heads, depth, config: UNetConfig, *, rngs: Keys):
        self.remat = config.remat
        self.residual = ResBlock(
            in_channels, out_channels, groups=config.norm_groups, epsilon=EPSILON, zero=True, rngs=rngs
        )
        self.transformer = Transformer(out_channels, heads, depth, config, rngs=rngs) if depth else None

    def __call__(self, x_BHWC: jax.Array, shift_BC, text_BLD, mask_BL) -> jax.Array:
        x = recomputed(lambda block, x, shift: block(x, shift), self.remat)(self.residual, x_BHWC, shift_BC)
        return x if self.transformer is None else self.transformer(x, text_BLD, mask_BL)


class Level(nnx.Module):
    """The layers at one resolution and the convolution that leads to the next, if there is one."""

    def __init__(self, layers: list[Layer], resample: Conv | None):
        self.layers, self.resample = nnx.List(layers), resample


class UNet(nnx.Module):
    """What a noisy latent holds, as the process's prediction target: `unet(x, t, cond)` is shaped like x."""

    def __init__(self, config: UNetConfig, *, rngs: Keys):
        self.config = config
        widths, depths, heads = config.block_channels, config.transformer_depth, config.heads
        last, embedding = len(widths) - 1, config.embedding_dim
        layer = lambda i, in_channels: Layer(in_channels, widths[i], heads[i], depths[i], config, rngs=rngs)

        self.time = Embedder(widths[0], embedding, rngs=rngs)
        self.jump = Embedder(widths[0], embedding, zero=True, rngs=rngs) if config.jump else None
        self.added = Embedder(config.added_dim, embedding, rngs=rngs) if config.added_dim else None
        self.conv_in = Conv(config.channels + config.beside, widths[0], rngs=rngs)

        down, skips, width = [], [widths[0]], widths[0]
        for i, n in enumerate(widths):
            layers = [layer(i, n if j else width) for j in range(config.layers_per_block)]
            down.append(Level(layers, Conv(n, n, stride=2, rngs=rngs) if i < last else None))
            skips += [n] * (config.layers_per_block + (i < last))
            width = n
        self.down = nnx.List(down)

        self.middle = Layer(width, width, heads[-1], config.mid_depth, config, rngs=rngs)
        self.middle_last = Layer(width, width, heads[-1], 0, config, rngs=rngs)

        up = []
        for i, n in reversed(list(enumerate(widths))):
            layers = []
            for _ in range(config.layers_per_block + 1):
                layers.append(layer(i, width + skips.pop()))
                width = n
            up.append(Level(layers, Conv(n, n, rngs=rngs) if i > 0 else None))
        self.up = nnx.List(up)

        self.norm_out = GroupNorm(widths[0], config.norm_groups, epsilon=EPSILON)
        self.conv_out = Conv(widths[0], (1 + config.residual) * config.channels, zero=True, rngs=rngs)
        # what time adds in every residual block, from one product
        self.shifts = Linear(embedding, sum(shift_sizes(config)), ("embed", "features"), rngs=rngs)
        scale = lambda: Linear(embedding, 2 * config.channels, ("embed", None), zero=True, rngs=rngs)
        self.scale = scale() if config.residual else None

    def __call__(self, x_BHWC: jax.Array, t_B: jax.Array, cond: Conditioning) -> jax.Array:
        """The prediction at x [B, H, W, channels] and t [B] in [0, 1] (released models' timesteps are 1000 t).

        Reads cond.text [B, L, text_dim] with cond.text_mask, and cond.pooled, cond.micro and cond.beside where the
        configuration has them. Raises ValueError where one of these is missing.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        text = _required(cond.text, "text", config.text_dim)
        text = None if text is None else text.astype(dtype)
        embedding_BE = self.time(sinusoids(1000.0 * t_B, config.block_channels[0]).astype(dtype))
        if self.jump is not None:
            spanned_B = jnp.zeros_like(t_B) if cond.jump is None else cond.jump
            embedding_BE += self.jump(sinusoids(1000.0 * spanned_B, config.block_channels[0]).astype(dtype))
        if self.added is not None:
            embedding_BE = embedding_BE + self.added(_added(config, cond).astype(dtype))
        ends = [sum(shift_sizes(config)[:i]) for i in range(1, len(shift_sizes(config)))]
        shifts = iter(jnp.split(self.shifts(jax.nn.silu(embedding_BE)), ends, -1))
        apply = lambda layer, x: layer(x, next(shifts), text, cond.text_mask)

        beside = _required(cond.beside, "beside", config.beside)
        x = x_BHWC if beside is None else jnp.concatenate([x_BHWC, beside.astype(x_BHWC.dtype)], -1)
        x = self.conv_in(x.astype(dtype))
        skips = [x]
        for level in self.down:
            for layer in level.layers:
                x = apply(layer, x)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)
        x = apply(self.middle_last, apply(self.middle, x))
        for level in self.up:
            for layer in level.layers:
                x = apply(layer, jnp.concatenate([x, skips.pop()], -1))
            if level.resample is not None:
                x = upsample(x, level.resample, skips[-1].shape[1:3])  # not quite double if it was odd on the way down
        y = self.conv_out(self.norm_out(x)).astype(x_BHWC.dtype)
        if self.scale is None:
            return y
        y *= jnp.exp(self.scale(jax.nn.silu(embedding_BE)).astype(y.dtype))[:, None, None]
        change, gain = jnp.split(y, 2, -1)
        return x_BHWC + change + gain * x_BHWC


class Embedder(nnx.Module):
    """Two products with a SiLU between: features [B, F] to an embedding [B, E]; with `zero` it says nothing before it
    is trained."""

    def __init__(self, features: int, width: int, *, zero: bool = False, rngs: Keys):
        self.fc1 = Linear(features, width, (None, "embed"), rngs=rngs)
        self.fc2 = Linear(width, width, ("embed", "features"), zero=zero, rngs=rngs)

    def __call__(self, x_BF: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.silu(self.fc1(x_BF)))


def shift_sizes(config: UNetConfig) -> tuple[int, ...]:
    """Width of each residual block in the order of their use: down, middle, up."""
    widths, layers = config.block_channels, config.layers_per_block
    down = [n for n in widths for _ in range(layers)]
    up = [n for n in widths[::-1] for _ in range(layers + 1)]
    return (*down, widths[-1], widths[-1], *up)


def _added(config: UNetConfig, cond: Conditioning) -> jax.Array:
    """Pooled text and embedded micro-conditioning side by side, [B, added_dim]."""
    pooled = _required(cond.pooled, "pooled", config.pooled_dim)
    micro = _required(cond.micro, "micro", config.micro_ids)
    micro = None if micro is None else sinusoids(micro, config.micro_dim).reshape(len(micro), -1)
    return jnp.concatenate([part for part in (pooled, micro) if part is not None], -1)


def _required(value: jax.Array | None, name: str, width: int) -> jax.Array | None:
    """`value` where the configuration reads it (width above 0), None where it does not."""
    if width and (value is None or value.shape[-1] != width):
        found = "nothing" if value is None else f"width {value.shape[-1]}"
        raise ValueError(f"this U-Net needs cond.{name} of width {width}, got {found}")
    return value if width else None


LADDERS = {
    "sd15": dict(times=(1, 2, 4, 4), transformer_depth=(1, 1, 1, 0), mid_depth=1),
    "sdxl": dict(times=(1, 2, 4), transformer_depth=(0, 2, 10), mid_depth=10, linear_projection=True),
    # for latents of 8 x 8, which have no room for four levels
    "small": dict(times=(1, 2), layers_per_block=1, transformer_depth=(0, 1), mid_depth=1, linear_projection=True),
}


def rung(size: int, *, base: str = "sd15", head_size: int = 64, **options) -> UNetConfig:
    """A U-Net that keeps the levels and depths of its `base`, at 8 `size` channels: 40 is the released width of 320."""
    if base not in LADDERS:
        raise ValueError(f"base={base!r} of a U-Net ladder is not one of {', '.join(LADDERS)}")
    fields: dict[str, Any] = dict(LADDERS[base])
    widths = tuple(8 * size * times for times in fields.pop("times"))
    heads = tuple(max(h for h in range(1, max(width // head_size, 1) + 1) if width % h == 0) for width in widths)
    groups = math.gcd(widths[0], 32)
    return UNetConfig(**fields | {"block_channels": widths, "heads": heads, "norm_groups": groups} | options)


def attended(config: UNetConfig) -> set[int]:
    """Numbers of heads of the levels that have transformers; of all where none has."""
    levels = zip(config.heads, config.transformer_depth, strict=True)
    return {heads for heads, depth in levels if depth} or set(config.heads)


def small(config: UNetConfig) -> dict[str, Any]:
    """Two levels at most, the last with one block of transformers where the network has any."""
    levels = min(len(config.block_channels), 2)
    depths = [0] * (levels - 1) + [int(any(config.transformer_depth))]
    return dict(block_channels=[16] * levels, layers_per_block=1, norm_groups=4, heads=[2] * levels,
                transformer_depth=depths, mid_depth=min(config.mid_depth, 1))


UNET = Family(
    "unet", UNetConfig, UNet, PRESETS,
    conditioning=lambda config: ConditioningSpec(text=config.text_dim, pooled=config.pooled_dim, micro=config.micro_ids,
                             beside=config.beside, jump=config.jump),
    heads=attended,
    convolves=True,
    blocks=lambda config: config.mid_depth + sum((2 * config.layers_per_block + 1) * (1 + depth)
                                                 for depth in config.transformer_depth),
    small=small,
    ladder=rung,
    embeddings=("time", "added", "conv_in", "conv_out"),
)  # fmt: skip

"""DiT, the class-conditional diffusion transformer (Peebles & Xie 2022, 2212.09748), and SiT (2401.08740).

Time and class are embedded, summed and modulate every block (adaLN-Zero). A network with learned sigma also predicts,
for each value, where between its two bounds the log variance of the reverse step lies (Nichol & Dhariwal 2021). SiT is
the same network told another time: its own runs in [0, 1] from noise to data.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lgm.bounds import Count
from lgm.models.attention import attention
from lgm.models.base import Conditioning
from lgm.models.blocks import Remat, run_blocks, stack
from lgm.models.embeddings import patchify, sincos_2d, sinusoids, timestep_embedding, unpatchify
from lgm.models.keys import Keys
from lgm.models.layers import MLP, Embedding, Linear, modulated
from lgm.models.records import ConditioningSpec, Family

TIME_FEATURES = 256


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Latents [B, H, W, channels] cut into patches; the defaults are DiT-XL/2 at 256 pixels.

    classes: how many; the label `classes` itself stands for none. learned_sigma: the network also gives variances.
    base_size: patches a side of the grid it is trained at; others are stretched to it. embedders: one embedding of time
    and class for all blocks, as in the paper, or one a block, as diffusers keeps them (copies, in released weights).
    time: "steps" tells the network 1000 t, as DiT is; "reversed" tells it tau = 1 - t and takes what it gives for
    dx / dtau, which is -dx / dt, as SiT's.
    remat and group as in MMDiTConfig.
    """

    channels: Count = 4
    patch_size: Count = 2
    width: Count = 1152
    depth: Count = 28
    heads: Count = 16
    classes: Count = 1000
    learned_sigma: bool = True
    base_size: Count = 16
    embedders: Literal["shared", "per_block"] = "shared"
    time: Literal["steps", "reversed"] = "steps"
    remat: Remat = "none"
    group: Count = 1
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}; choose a divisor")
        if self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4, for two-dimensional positions")
        for name in ("depth", "classes", "group", "patch_size", "base_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def out_channels(self) -> int:
        """Channels of the network's output."""
        return self.channels * (2 if self.learned_sigma else 1)


_SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}

# table 1 of the paper at 256 pixels (latents of 32 x 32), as arguments of DiTConfig
PRESETS = {
    f"dit_{size}{patch}": dict(width=width, depth=depth, heads=heads, patch_size=patch, base_size=32 // patch)
    for size, (width, depth, heads) in _SIZES.items()
    for patch in (2, 4, 8)
}
PRESETS["dit_xl2_512"] = PRESETS["dit_xl2"] | dict(base_size=32)
# 2401.08740 takes the same shapes
PRESETS |= {name.replace("dit", "sit", 1): dict(shape, time="reversed") for name, shape in PRESETS.items()}


class Embedders(nnx.Module):
    """Time and class as one signal [B, width]."""

    def __init__(self, config: DiTConfig, *, rngs: Keys):
        self.reversed = config.time == "reversed"
        self.time = MLP(TIME_FEATURES, config.width, config.width, jax.nn.silu, rngs=rngs)
        self.label = Embedding(config.classes + 1, config.width, ("vocab", "embed"), rngs=rngs)

    def __call__(self, t_B: jax.Array, label_B: jax.Array, dtype) -> jax.Array:
        features = sinusoids(1.0 - t_B, TIME_FEATURES) if self.reversed else timestep_embedding(t_B, TIME_FEATURES)
        return self.time(features.astype(dtype)) + self.label(label_B, dtype)


class Block(nnx.Module):
    """Self-attention and a feed-forward network, each shifted, scaled and gated by the signal (adaLN-Zero)."""

    def __init__(self, config: DiTConfig, *, rngs: Keys):
        width = config.width
        self.heads = config.heads
        self.embedders = Embedders(config, rngs=rngs) if config.embedders == "per_block" else None
        self.modulation = Linear(width, 6 * width, ("embed", "features"), zero=True, rngs=rngs)
        self.qkv = Linear(width, 3 * width, ("embed", "heads"), parts=3, rngs=rngs)
        self.out = Linear(width, width, ("heads", "embed"), rngs=rngs)
        self.mlp = MLP(width, 4 * width, width, jax.nn.gelu, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, signal_BD: jax.Array) -> jax.Array:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(self.modulation(jax.nn.silu(signal_BD)), 6, -1)
        qkv = self.qkv.apart(modulated(x_BTD, shift, scale))
        attended = attention(*(y.reshape(*y.shape[:2], self.heads, -1) for y in qkv)).reshape(x_BTD.shape)
        x = x_BTD + gate[:, None] * self.out(attended)
        return x + mlp_gate[:, None] * self.mlp(modulated(x, mlp_shift, mlp_scale))


class DiT(nnx.Module):
    """Denoiser: (x [B, H, W, C], t [B] in [0, 1], cond with label or nothing) -> like x."""

    def __init__(self, config: DiTConfig, *, rngs: Keys):
        self.config = config
        width, patch = config.width, config.patch_size**2
        self.patches = Linear(patch * config.channels, width, (None, "embed"), rngs=rngs)
        self.embedders = Embedders(config, rngs=rngs) if config.embedders == "shared" else None
        self.blocks = stack(lambda key: Block(config, rngs=Keys(key)), config.depth, rngs)
        self.modulation = Linear(width, 2 * width, ("embed", "features"), zero=True, rngs=rngs)
        self.out = Linear(width, patch * config.out_channels, ("embed", None), zero=True, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, t_B: jax.Array, cond: Conditioning) -> jax.Array:
        """The prediction; `cond.label` [B] int32 is the class, absent for none."""
        return self.with_variance(x_BHWC, t_B, cond)[..., : self.config.channels]

    def with_variance(self, x_BHWC: jax.Array, t_B: jax.Array, cond: Conditioning) -> jax.Array:
        """[B, H, W, out_channels]: the prediction and, with learned sigma, the place of the log variance after it."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        b, h, w, _ = x_BHWC.shape
        if h % config.patch_size or w % config.patch_size:
            raise ValueError(f"latents of {h} x {w} do not divide into patches of {config.patch_size}")
        rows, columns = h // config.patch_size, w // config.patch_size
        places = sincos_2d(config.width, rows, columns, max(rows, columns), config.base_size)
        x = self.patches(patchify(x_BHWC, config.patch_size).astype(dtype)) + places.astype(dtype)
        label_B = jnp.full(b, config.classes) if cond.label is None else cond.label
        if self.embedders is not None:
            signal = cond = self.embedders(t_B, label_B, dtype)
            step = lambda block, x, signal: block(x, signal)
        else:
            signal = jax.tree.map(lambda p: p[0], self.blocks.embedders)(t_B, label_B, dtype)  # what the end reads
            cond = t_B, label_B
            step = lambda block, x, cond: block(x, block.embedders(*cond, dtype))
        x = run_blocks(self.blocks, x, step, config, cond)
        shift, scale = jnp.split(self.modulation(jax.nn.silu(signal)), 2, -1)
        x = self.out(modulated(x, shift, scale))
        x = -x if config.time == "reversed" else x
        return unpatchify(x, config.patch_size, rows).astype(x_BHWC.dtype)


def rung(size: int, *, aspect: float = 43.0, head_size: int = 64, **options) -> DiTConfig:
    """A DiT of `size` heads whose width is about aspect x depth, as DiT-L's and XL's."""
    width = head_size * size
    return DiTConfig(**{"width": width, "depth": max(round(width / aspect), 1), "heads": size} | options)


DIT = Family(
    "dit", DiTConfig, DiT, PRESETS,
    conditioning=lambda config: ConditioningSpec(classes=config.classes, variance=config.learned_sigma),
    patch=lambda config: config.patch_size,
    native_side=lambda config: config.base_size * config.patch_size,
    heads=lambda config: {config.heads},
    bulk=lambda config: (config.width, config.depth),
    small=lambda config: dict(width=32, depth=2, heads=2),
    ladder=rung,
    embeddings=("patches", "embedders", "out"),
)  # fmt: skip

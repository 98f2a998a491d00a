"""Qwen-Image, the double-stream diffusion transformer of Alibaba's Qwen team (2025, 2508.02324).

All its blocks are of Flux's double-stream kind, told the time alone. Rows and columns are counted from the middle of
the image, and the text goes on along the diagonal from where the image ends.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lgm.bounds import Count, Several, Whole
from lgm.models.base import Conditioning
from lgm.models.blocks import Remat, run_blocks, stack
from lgm.models.embeddings import timestep_embedding
from lgm.models.flux import DoubleBlock, pack, unpack
from lgm.models.keys import Keys
from lgm.models.layers import MLP, Linear, RMSNorm, modulated
from lgm.models.records import ConditioningSpec, Family
from lgm.models.rotary import PERIOD, Table, check_axes, rotary_line, share_axes
from lgm.parallel.tokens import join, padded

TIME_FEATURES = 256


@dataclasses.dataclass(frozen=True)
class QwenImageConfig:
    """Latents [B, H, W, channels] packed 2 x 2 into tokens; the defaults are Qwen-Image's shape.

    rotary_axes: channels of a head that turn with the frame (always the first), the row and the column. remat and group
    as in MMDiTConfig.
    """

    channels: Count = 16
    patch_size: Count = 2
    width: Count = 3072
    depth: Count = 60
    heads: Count = 24
    text_dim: Whole = 3584
    rotary_axes: tuple[Several, Several, Several] = (16, 56, 56)
    remat: Remat = "none"
    group: Count = 1
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("channels", "patch_size", "depth", "text_dim", "group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        check_axes(self.rotary_axes, self.width, self.heads)


PRESETS = {
    "qwen_image": dict(),
    # a small one of the same kind, for tests and first tries
    "qwen_image_tiny": dict(width=64, depth=4, heads=4, text_dim=64, rotary_axes=(4, 6, 6)),
}


class QwenImage(nnx.Module):
    """Denoiser: (x [B, H, W, C], t [B] in [0, 1], cond with text and optionally text_mask) -> like x."""

    def __init__(self, config: QwenImageConfig, *, rngs: Keys):
        self.config = config
        width, patch = config.width, config.patch_size**2 * config.channels
        self.patches = Linear(patch, width, (None, "embed"), rngs=rngs)
        self.time = MLP(TIME_FEATURES, width, width, jax.nn.silu, rngs=rngs)
        self.text_norm = RMSNorm(config.text_dim)
        self.text = Linear(config.text_dim, width, (None, "embed"), rngs=rngs)
        self.blocks = stack(lambda key: DoubleBlock(config, rngs=Keys(key)), config.depth, rngs)
        self.modulation = Linear(width, 2 * width, ("embed", "features"), zero=True, rngs=rngs)
        self.out = Linear(width, patch, ("embed", None), zero=True, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array, t_B: jax.Array, cond: Conditioning) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        b, h, w, _ = x_BHWC.shape
        if h % config.patch_size or w % config.patch_size:
            raise ValueError(f"latents of {h} x {w} do not divide into patches of {config.patch_size}")
        rows, columns = h // config.patch_size, w // config.patch_size
        signal = jax.nn.silu(self.time(timestep_embedding(t_B, TIME_FEATURES).astype(dtype)))
        text, mask = padded(cond.text, cond.text_mask)
        text = self.text(self.text_norm(text.astype(dtype)))
        image, count = self.patches(pack(x_BHWC, config.patch_size).astype(dtype)), rows * columns
        mask = None if mask is None else join(jnp.ones((b, count), bool), mask.astype(bool))
        places = positions(rows, columns, text.shape[1], config.rotary_axes)
        table = tuple(join(angles[:count], angles[count:], 0) for angles in places)  # in the order of joint tokens

        def step(block, tokens, cond):
            return block(*tokens, cond[0], table, cond[1])

        image, _ = run_blocks(self.blocks, (image, text), step, config, (signal, mask))
        scale, shift = jnp.split(self.modulation(signal), 2, -1)
        return unpack(self.out(modulated(image, shift, scale)), config.patch_size, rows).astype(x_BHWC.dtype)


def positions(rows: int, columns: int, text: int, axes: tuple[int, int, int]) -> Table:
    """The angles of rows * columns image tokens, rows first, and of `text` tokens after them."""
    row, column = np.indices((rows, columns)).reshape(2, -1)
    centered = np.stack([np.zeros(len(row)), row - (rows - rows // 2), column - (columns - columns // 2)])
    after = np.tile(max(rows // 2, columns // 2) + np.arange(text), (3, 1))
    parts = [rotary_line(place, n, PERIOD) for place, n in zip(np.concatenate([centered, after], 1), axes, strict=True)]
    cos, sin = (np.concatenate(part, -1) for part in zip(*parts, strict=True))
    return cos, sin


def rung(size: int, *, aspect: float = 51.2, head_size: int = 128, **options) -> QwenImageConfig:
    """A Qwen-Image of `size` heads whose width is about aspect x depth."""
    width, axes = head_size * size, share_axes(head_size, 7 / 16)  # 16, 56, 56 of Qwen-Image's 128
    return QwenImageConfig(**{"width": width, "depth": max(round(width / aspect), 1), "heads": size,
                              "rotary_axes": axes} | options)


QWEN_IMAGE = Family(
    "qwen_image", QwenImageConfig, QwenImage, PRESETS,
    conditioning=lambda config: ConditioningSpec(text=config.text_dim),
    requires=("text",),
    patch=lambda config: config.patch_size,
    heads=lambda config: {config.heads},
    bulk=lambda config: (config.width, config.depth),
    small=lambda config: dict(width=32, depth=2, heads=2, rotary_axes=[4, 6, 6]),
    ladder=rung,
    embeddings=("patches", "time", "text_norm", "text", "out"),
)  # fmt: skip

"""A family that the package knows nothing of: a small network on the latent's pixels, told text's vector or nothing."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lgm.bounds import Count, Whole
from lgm.models import ConditioningSpec, Family
from lgm.models.layers import PIXELS, Linear


@dataclasses.dataclass(frozen=True)
class NetConfig:
    """Two products a pixel, of x, time and, where pooled_dim is above 0, a caption's vector."""

    channels: Count = 32
    width: Count = 16
    pooled_dim: Whole = 0
    dtype: Literal["float32"] = "float32"


class Net(nnx.Module):
    def __init__(self, config: NetConfig, *, rngs):
        self.config = config
        self.into = Linear(config.channels + 1 + config.pooled_dim, config.width, (None, "embed"), over=PIXELS,
                           rngs=rngs)
        self.out = Linear(config.width, config.channels, ("embed", None), over=PIXELS, zero=True, rngs=rngs)

    def __call__(self, x_BHWC, t_B, cond):
        told = [t_B[:, None]] + ([cond.pooled] if self.config.pooled_dim else [])
        told_BD = jnp.concatenate(told, -1)[:, None, None]
        x = jnp.concatenate([x_BHWC, jnp.broadcast_to(told_BD, (*x_BHWC.shape[:3], told_BD.shape[-1]))], -1)
        return self.out(jax.nn.silu(self.into(x))).astype(x_BHWC.dtype)


NET = Family(
    "net", NetConfig, Net,
    conditioning=lambda config: ConditioningSpec(pooled=config.pooled_dim),
    ladder=lambda size, **options: NetConfig(width=8 * size, **options),
)  # fmt: skip
NOT_ONE = NetConfig

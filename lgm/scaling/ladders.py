"""Ladders: one family's shapes from small to large at a stated aspect, with exact parameters and FLOPs.

Size 1, 2, ... is the number of heads of a transformer, whose width is about aspect x depth: DiT 43 (DiT-L and XL),
MMDiT 64 (all of SD3), Flux 54 with one double-stream block for two single-stream ones. U-Nets keep their levels and
depths, SD 1.5's or SDXL's (or two levels for small latents), and widen: size 40, at 8 channels each, is the released
width of 320.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from lgm.models import Conditioning, build, count, family_of
from lgm.models.dit import DiTConfig
from lgm.models.flops import count_flops
from lgm.models.flux import FluxConfig
from lgm.models.mmdit import MMDiTConfig
from lgm.models.unet import UNetConfig

ASPECTS = {"dit": 43.0, "mmdit": 64.0, "flux": 54.0}
HEAD_SIZES = {"dit": 64, "mmdit": 64, "flux": 128, "unet": 64}
UNETS = {
    "sd15": dict(times=(1, 2, 4, 4), transformer_depth=(1, 1, 1, 0), mid_depth=1),
    "sdxl": dict(times=(1, 2, 4), transformer_depth=(0, 2, 10), mid_depth=10, linear_projection=True),
    # for latents of 8 x 8, which have no room for four levels
    "small": dict(times=(1, 2), layers_per_block=1, transformer_depth=(0, 1), mid_depth=1, linear_projection=True),
}
# inputs, outputs and conditioning on their way in: what non-embedding parameters leave out
EMBEDDINGS = {"patches", "text", "time", "pooled", "guidance", "embedders", "added", "conv_in", "conv_out", "out"}


@dataclasses.dataclass(frozen=True)
class Rung:
    """A shape with its counts.

    Attributes:
      config: the model's configuration. params, non_embedding: exact numbers of parameters.
      forward, training: FLOPs an image of one prediction, and of one with the gradients of all parameters.
    """

    config: Any
    params: int
    non_embedding: int
    forward: float
    training: float

    def sampling(self, steps: int, guided: bool = True) -> float:
        """FLOPs of one sampled image: a prediction a step, two under classifier-free guidance."""
        return self.forward * steps * (2 if guided else 1)


def shape(family: str, size: int, *, aspect: float | None = None, head_size: int | None = None, base: str = "sd15",
          **options):
    """The configuration of size 1, 2, ... of a family: `size` heads wide, or 8 `size` channels for a U-Net.

    aspect: width over depth, of transformers. base: of U-Nets, "sd15", "sdxl" or "small". options: other fields of the
    configuration, as channels, text_dim or dtype. Raises ValueError for families and bases that have no ladder.
    """
    if size < 1:
        raise ValueError("sizes are 1, 2, ...: heads of a transformer, 8 channels of a U-Net")
    if family == "unet":
        return _unet(size, head_size or HEAD_SIZES[family], base, options)
    if family not in ASPECTS:
        raise ValueError(f"family {family!r} has no ladder; there are unet, {', '.join(ASPECTS)}")
    head, aspect = head_size or HEAD_SIZES[family], aspect or ASPECTS[family]
    width = head * size
    depth = max(round(width / aspect), 1)
    if family == "dit":
        return DiTConfig(**{"width": width, "depth": depth, "heads": size} | options)
    if family == "mmdit":
        return MMDiTConfig(**{"width": width, "depth": max(depth, 2), "heads": size} | options)
    double = max(round(depth / 3), 1)
    side = 2 * (head * 7 // 32)  # 16, 56, 56 of Flux's 128
    if side < 2 or head % 2:
        raise ValueError(f"head_size={head} of Flux must be even and 6 or more: three even axes share its channels")
    return FluxConfig(**{"width": width, "depth": double, "single_depth": max(depth - double, 1), "heads": size,
                         "rotary_axes": (head - 2 * side, side, side)} | options)


def _unet(size: int, head: int, base: str, options: dict) -> UNetConfig:
    if base not in UNETS:
        raise ValueError(f"base={base!r} of a U-Net ladder is not one of {', '.join(UNETS)}")
    fields = dict(UNETS[base])
    widths = tuple(8 * size * times for times in fields.pop("times"))
    heads = tuple(max(h for h in range(1, max(width // head, 1) + 1) if width % h == 0) for width in widths)
    groups = math.gcd(widths[0], 32)
    return UNetConfig(**fields | {"block_channels": widths, "heads": heads, "norm_groups": groups} | options)


def ladder(family: str, low: float, high: float, rungs: int, **options) -> list[Any]:
    """Configurations whose parameters are nearest to `rungs` geometric steps from `low` to `high`, without repeats.

    `options` as of `shape`. Raises ValueError where the smallest shape has more than twice `low` parameters.
    """
    params = functools.cache(lambda size: build(shape(family, size, **options)).count())
    if family == "unet":
        # every parameter of a U-Net has no, one or two widths for its dimensions: three sizes tell all
        one, two, three = (params(size) for size in (1, 2, 3))
        params = lambda u: one + (u - 1) * (two - one) + (u - 1) * (u - 2) // 2 * (three - 2 * two + one)
    if params(1) > 2 * low:
        raise ValueError(f"the smallest {family} has {params(1):,} parameters, more than low={low:g}; choose smaller "
                         "text and head sizes or a larger low")
    sizes = []
    for index in range(rungs):
        target = low * (high / low) ** (index / max(rungs - 1, 1))
        upper = 1
        while params(upper) < target:
            upper *= 2
        lower = upper // 2
        while upper - lower > 1:
            middle = (lower + upper) // 2
            lower, upper = (middle, upper) if params(middle) < target else (lower, middle)
        near = [size for size in (lower, upper) if size]
        sizes.append(min(near, key=lambda size: abs(params(size) / target - 1)))
    return [shape(family, size, **options) for size in dict.fromkeys(sizes)]


def measure(config, latent: int, text_tokens: int = 77) -> Rung:
    """Exact parameters, and FLOPs an image at `latent` x `latent` latents and so many text tokens; runs nothing.

    FLOPs are those of matrix products and convolutions, two a multiply-add, by the model's standard count (what is
    computed may be less: `flops.count_flops`); the training step's
    are traced through its gradient, which is a little less than three times the forward pass.
    """
    model = build(config)
    arguments = inputs(config, 1, latent, text_tokens)

    def loss(params, *args):
        return jnp.sum(model.apply(params, *args))

    abstract = model.abstract()
    kept = {name: part for name, part in abstract.items() if name not in EMBEDDINGS}
    return Rung(config, count(abstract), count(kept), model.flops(*arguments),
                count_flops(jax.grad(loss), abstract, *arguments))


def inputs(config, batch: int, latent: int, text_tokens: int) -> tuple:
    """Abstract (x, t, cond) of a family."""
    like = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    family = family_of(config)
    cond = {}
    if family == "dit":
        cond["label"] = like(batch, dtype=jnp.int32)
    if getattr(config, "text_dim", 0):
        cond["text"] = like(batch, text_tokens, config.text_dim)
    if getattr(config, "pooled_dim", 0):
        cond["pooled"] = like(batch, config.pooled_dim)
    if getattr(config, "micro_ids", 0):
        cond["micro"] = like(batch, config.micro_ids)
    if getattr(config, "beside", 0):
        cond["beside"] = like(batch, latent, latent, config.beside)
    if getattr(config, "guidance", False):
        cond["guidance"] = like(batch)
    return like(batch, latent, latent, config.channels), like(batch), Conditioning(**cond)



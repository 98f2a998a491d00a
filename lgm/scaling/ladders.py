"""Ladders: one family's shapes from small to large at a stated aspect, with exact parameters and FLOPs.

Size 1, 2, ... is the number of heads of a transformer, whose width is about aspect x depth: DiT 43 (DiT-L and XL),
MMDiT 64 (all of SD3), Flux 54 with one double-stream block for two single-stream ones, Flux.2 123 with one for four
(klein of 4B parameters). U-Nets keep their levels and depths, SD 1.5's or SDXL's (or two levels for small latents), and
widen: size 40, at 8 channels each, is the released width of 320.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lgm.models import FAMILIES, build, count, families, family, family_of
from lgm.models.flops import count_flops


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


def of(name: str) -> Callable[..., Any]:
    """The ladder of a family. Raises ValueError, one line, where there is none."""
    found = family(name).ladder if name in FAMILIES or ":" in name else None
    if found is None:
        there_are = ", ".join(one.name for one in families("denoiser") if one.ladder)
        raise ValueError(f"family {name!r} has no ladder; there are {there_are}")
    return found


def shape(family: str, size: int, *, aspect: float | None = None, head_size: int | None = None, **options):
    """The configuration of size 1, 2, ... of a family: `size` heads wide, or 8 `size` channels for a U-Net.

    aspect: width over depth, of transformers. base: of U-Nets, "sd15", "sdxl" or "small". options: other fields of the
    configuration, as channels, text_dim or dtype. Raises ValueError for families and bases that have no ladder.
    """
    if size < 1:
        raise ValueError("sizes are 1, 2, ...: heads of a transformer, 8 channels of a U-Net")
    given = {"aspect": aspect, "head_size": head_size}
    return of(family)(size, **{name: value for name, value in given.items() if value}, **options)


def measure(config, latent: int | tuple[int, int], text_tokens: int = 77) -> Rung:
    """Exact parameters, and FLOPs an image of `latent`, (rows, columns) or a side, and so many text tokens.

    FLOPs are those of matrix products and convolutions, two a multiply-add, by the model's standard count (what is
    computed may be less: `flops.count_flops`); the training step's are traced through its gradient, which is a little
    less than three times the forward pass, and what `config.remat` computes again does not count: it buys no loss.
    """
    network = family_of(config)
    model = build(dataclasses.replace(config, remat="none") if network.remat(config) else config)
    arguments = network.inputs(config, 1, latent, text_tokens)

    def loss(params, *args):
        return jnp.sum(model.apply(params, *args))

    abstract = model.abstract()
    kept = {name: part for name, part in abstract.items() if name not in network.embeddings}
    return Rung(config, count(abstract), count(kept), model.flops(*arguments),
                count_flops(jax.grad(loss), abstract, *arguments))

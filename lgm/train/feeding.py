"""What a denoiser's train step and its measurements are fed: images in buckets, their latents, what is told."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lgm.config import Config
from lgm.data import ImageSet
from lgm.data.buckets import Bucketed, Ragged, bucketed
from lgm.drawing import encode_all
from lgm.system import System


@dataclasses.dataclass(frozen=True)
class Part:
    """Held-out images of one size and (latents, tokens, mask, micro-conditioning or None) of them."""

    images: ImageSet
    arrays: tuple


def buckets_of(config: Config, images: ImageSet) -> Bucketed | None:
    """The buckets of images, None where the config has none."""
    step = config.data.buckets
    return None if step is None else bucketed(images.sizes(), config.data.resolution, step)


def latents(system: System, frozen, images: ImageSet, buckets: Bucketed | None):
    """Standardised latents of all images, rows of which are taken by their indices."""
    if buckets is None:
        return encode_all(system, frozen, images)
    parts = [encode_all(system, frozen, images.take(buckets.members(group)), shape=size)
             for group, size in enumerate(buckets.sizes)]
    return Ragged(parts, buckets.groups)


def conditioning(system: System, captions_of: Callable[[np.ndarray], Sequence[str]], buckets: Bucketed | None):
    """`derived(indices)`: tokens and mask of captions and, with buckets, what SDXL is told of sizes."""
    def derived(indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = dict(zip(("tokens", "mask"), system.tokenize(list(captions_of(indices))), strict=True))
        return rows if buckets is None or not micro_ids(system) else rows | {"micro": buckets.micro(indices)}

    return derived


def micro_ids(system: System) -> bool:
    """Whether the denoiser is told of sizes and crops, as SDXL is."""
    return system.conditioning.micro == 6


def heldout_parts(system: System, frozen, heldout: ImageSet) -> list[Part]:
    """Held-out images, one part for each bucket, each in its own order."""
    buckets = buckets_of(system.config, heldout) if len(heldout) else None
    if buckets is None:
        return [Part(heldout, (encode_all(system, frozen, heldout), *system.tokenize(heldout.captions)))]
    parts = []
    for group, size in enumerate(buckets.sizes):
        members = buckets.members(group)
        images = heldout.take(members)
        micro = buckets.micro(members) if micro_ids(system) else None
        parts.append(Part(images, (encode_all(system, frozen, images, shape=size), *system.tokenize(images.captions),
                                   micro)))
    return parts

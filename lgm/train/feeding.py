"""What a denoiser's train step and its measurements are fed: images in buckets, their latents, what is told."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lgm.config import Config
from lgm.data import ImageSet
from lgm.data.buckets import Bucketed, Ragged, bucketed, lost, told_losses
from lgm.data.near_duplicates import MOST, overlap
from lgm.data.rows import Rows
from lgm.data.tokenizer_files import CutShort
from lgm.data.varying import View, caption, view
from lgm.drawing import encode_all
from lgm.parsing import ConfigError
from lgm.system import System
from lgm.untrusted import shown


@dataclasses.dataclass(frozen=True)
class Part:
    """Held-out images of one size and (latents, tokens, mask, micro-conditioning or None) of them."""

    images: ImageSet
    arrays: tuple


def tell_overlap(config: Config, images: ImageSet, heldout: ImageSet, workdir: Path) -> None:
    """Say at a run's first start which held-out images are nearly training images."""
    if jax.process_index() or not len(heldout) or (workdir / "checkpoints").exists():
        return
    # a run from a cache reads no image, and is told what is known of them
    _, line = overlap(images, heldout, most=MOST if config.data.cache is None else 0)
    if line:
        print(line, flush=True)


def tell_crops(config: Config, images: ImageSet, buckets: Bucketed | None, workdir: Path) -> None:
    """Say at a run's first start how many images lose much of themselves to the cut."""
    if jax.process_index() or not len(images) or (workdir / "checkpoints").exists():
        return
    stored = images.sizes() if buckets is None else buckets.stored
    targets = np.broadcast_to(config.data.size, stored.shape) if buckets is None else (
        np.array(buckets.sizes)[buckets.groups])
    if line := told_losses(images.name, lost(stored, targets)):
        hint = "; config.data.buckets keeps images' own shapes" if buckets is None else ""
        print(f"crops: {line}{hint}", flush=True)


@contextlib.contextmanager
def long_captions(config: Config, count: int) -> Iterator[None]:
    """Count what of `count` captions is cut as they are tokenized inside, and say so in one line; what is cut later is
    then no news, or an error where the config refuses long captions. Raises ConfigError, one line, where it does."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CutShort)
        yield
    cut: dict[str, CutShort] = {}
    for one in caught:
        if isinstance(one.message, CutShort):
            cut.setdefault(one.message.text, one.message)
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    refused = config.text is not None and config.text.long_captions == "refuse"
    if cut and refused:
        raise ConfigError(f"{next(iter(cut.values()))}; shorten it, or set config.text.long_captions='cut'")
    if cut and not jax.process_index():
        print(f"captions: {len(cut):,} of {count:,} that were looked at are longer than a text encoder takes and are "
              f"cut, as {shown(next(iter(cut)))}; config.text.long_captions='refuse' refuses them", flush=True)
    warnings.simplefilter("error" if refused else "ignore", CutShort)


def buckets_of(config: Config, images: ImageSet) -> Bucketed | None:
    """The buckets of images, None where the config has none."""
    step = config.data.buckets
    return None if step is None else bucketed(images.sizes(), config.data.resolution, step)


def latents(system: System, frozen, images: ImageSet, buckets: Bucketed | None) -> dict[str, Any]:
    """Standardised latents of all images, as `served` takes them: "latent" and, where images are flipped,
    "flipped_latent", rows of which are taken by their indices."""
    def of_all(flipped: bool):
        if buckets is None:
            return encode_all(system, frozen, images, flipped=flipped)
        parts = [encode_all(system, frozen, images.take(buckets.members(group)), shape=size, flipped=flipped)
                 for group, size in enumerate(buckets.sizes)]
        return Ragged(parts, buckets.groups)

    flips = {"flipped_latent": of_all(True)} if system.config.data.flip else {}
    return {"latent": of_all(False)} | flips


def view_of(config: Config, serving: int) -> View:
    """How a serving of a training image is cut and whether it is flipped."""
    data = config.data
    return view(config.seed, serving, data.flip, data.random_crop) if data.flip or data.random_crop else View()


def captions_of(config: Config, rows: Rows) -> Callable[[np.ndarray, np.ndarray], list[str]]:
    """What training images are called at servings of theirs."""
    said = lambda choices, serving: caption(choices or [""], config.seed, int(serving), config.data.tags)
    return lambda indices, servings: list(map(said, rows.choices(indices), servings))


def said(images: ImageSet, places: np.ndarray) -> list[str]:
    """All that images may be called when they are served."""
    return [text for choices in images.rows.choices(places) for text in choices or [""]]


def conditioning(system: System, captions_of: Callable[[np.ndarray, np.ndarray], Sequence[str]],
                 told: Bucketed | None):
    """`derived(indices, servings)`: tokens and mask of captions and, where images are `told`, what SDXL is of sizes."""
    def derived(indices: np.ndarray, servings: np.ndarray) -> dict[str, np.ndarray]:
        tokens, mask = system.tokenize(list(captions_of(indices, servings)))
        rows = {"tokens": np.asarray(tokens), "mask": mask}
        if told is None or not micro_ids(system):
            return rows
        return rows | {"micro": told.micro(indices, [view_of(system.config, int(number)) for number in servings])}

    return derived


def served(config: Config, kept: Mapping[str, Any]) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """`latents(indices, servings)` of what a cache or the memory has: "latent" and, where samples of the posterior are
    asked for, "log_variance", those of the flipped image where one is served."""
    names = ("latent", "log_variance") if config.data.posterior == "sample" else ("latent",)

    def rows(indices: np.ndarray, servings: np.ndarray) -> dict[str, np.ndarray]:
        turned = np.array([view_of(config, int(number)).flipped for number in servings])
        found = {name: kept[name][indices] for name in names}
        if turned.any():
            for name in names:
                found[name][turned] = kept[f"flipped_{name}"][indices[turned]]
        return found

    return rows


def told_sizes(system: System, images: ImageSet, buckets: Bucketed | None) -> Bucketed | None:
    """What training images are told of: their buckets or, where each is cut at a place of its own, the one size."""
    if buckets is None and system.config.data.random_crop and micro_ids(system):
        return Bucketed((system.config.data.size,), np.zeros(len(images), np.int32), images.sizes())
    return buckets


def micro_ids(system: System) -> bool:
    """Whether the denoiser is told of sizes and crops, as SDXL is."""
    return system.conditioning.micro == 6


def heldout_parts(system: System, frozen, heldout: ImageSet, kept=None) -> list[Part]:
    """Held-out images, one part for each bucket, each in its own order; `kept` are their latents, where they are there
    already."""
    encoded = lambda images, members, size: (encode_all(system, frozen, images, shape=size) if kept is None
                                             else np.asarray(kept[members]))
    buckets = buckets_of(system.config, heldout) if len(heldout) else None
    if buckets is None:
        latents = encoded(heldout, np.arange(len(heldout)), None)
        return [Part(heldout, (latents, *system.tokenize(heldout.captions)))]
    parts = []
    for group, size in enumerate(buckets.sizes):
        members = buckets.members(group)
        images = heldout.take(members)
        micro = buckets.micro(members) if micro_ids(system) else None
        parts.append(Part(images, (encoded(images, members, size), *system.tokenize(images.captions), micro)))
    return parts

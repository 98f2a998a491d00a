"""`lgm encode`: the latents and the states of text of a config's images, made once and kept, and training that reads
them.

A cache is a folder with one part for the training and one for the held-out images, in each one for every size, and of
their captions and of the config's prompts where text encoders are frozen, all caches of `lgm.data.cache`. It is made of
one autoencoder, one choice of images and captions, one size, the same text encoders and tokenizers: any other is
refused by name. Records that cannot be read are left out; each row says which image it is.
"""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lgm import files, weights
from lgm.casting import cast
from lgm.config import Config, digest
from lgm.data import Bad, ImageSet, read_cache, write_index, write_shard
from lgm.data.buckets import Bucketed, Ragged
from lgm.data.cache import has_shard, read_made_of, verify
from lgm.data.states import FLOATS, keys, packed, row_bytes
from lgm.drawing import encode_pixels, encode_posterior
from lgm.parallel import even, fetch, spread
from lgm.system import System
from lgm.systems import cached_text
from lgm.train.feeding import buckets_of

TEXT_SHARD = 1 << 30  # bytes, in float32, of the states of text in a file, which a process holds at a time


def made_of(config: Config, images: ImageSet) -> dict[str, str]:
    """What the latents of images depend on, beside their size."""
    return {"autoencoder": weights.fingerprint(config.autoencoder), "count": f"{len(images)} images",
            "images": images.fingerprint, "buckets": str(config.data.buckets)}


def encode(system: System, frozen, images: ImageSet, folder: Path, bad: Bad, part: int, parts: int, rows: int,
            dtype) -> bool:
    """Write the shards of a part; whether all of the set's are there now."""
    complete, common = True, made_of(system.config, images) | {"stored": np.dtype(dtype).name} | kinds(system.config)
    for size, members in _sizes(system.config, images):
        name = f"{size[0]}x{size[1]}"
        place, of = folder / name, common | {"size": name}
        shards = range(-(-len(members) // rows))
        for number in shards:
            if number % parts != part or has_shard(place, number, None, of):
                continue
            some = members[number * rows : (number + 1) * rows]
            pixels, good = images.readable(some, size, bad)
            bad.check(len(images))
            arrays = latents_of(system, frozen, pixels, size)
            arrays = {name: cast(name, rows, dtype) for name, rows in arrays.items()}
            write_shard(place, number, arrays | {"image": some[good].astype(np.int64)}, of)
        if all(has_shard(place, number, None, of) for number in shards):
            write_index(place, len(shards), of, config=digest(system.config))
            verify(place)
        else:
            complete = False
    return complete


def kinds(config: Config) -> dict[str, str]:
    """What is kept of each image beside the mean of its posterior."""
    return {"flip": str(config.data.flip), "posterior": config.data.posterior}


def latents_of(system: System, frozen, pixels: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """What is kept of images [N, H, W, 3]: "latent" and, where the config asks for samples of the posterior,
    "log_variance"; where it flips, also both of the flipped images, named "flipped_..."."""
    data, found = system.config.data, {}
    for name, seen in {"": pixels, "flipped_": pixels[:, :, ::-1]}.items() if data.flip else {"": pixels}.items():
        if data.posterior == "mean":
            found[f"{name}latent"] = encode_pixels(system, frozen, seen, size)
        else:
            found[f"{name}latent"], found[f"{name}log_variance"] = encode_posterior(system, frozen, seen, size)
    return found


def prompts(config: Config) -> list[str]:
    """What a run may be asked to draw while it trains, beside the captions of its images."""
    return [*config.sampling.prompts, *([config.sampling.negative] if config.sampling.negative else [])]


def encode_text(system: System, frozen, captions: Iterable[str], folder: Path, part: int, parts: int, rows: int,
                stored: str | None, nothing: bool = False) -> tuple[int, bool]:
    """Write the shards of a part of the states of captions, and with `nothing` of no caption; (how many different ones
    there are, whether all are there now). Shards have at most so many `rows` and bytes `TEXT_SHARD`.

    `stored` is one of `lgm.data.states.STORED`, by default what the encoders compute in, which loses nothing.
    """
    form = cached_text.form_of(system.folder)
    stored = stored or system.config.model.dtype
    different = sorted(set(captions), key=lambda caption: (len(caption), caption))  # of like lengths in a shard
    named = [None, *different] if nothing else different
    listed = hashlib.sha256(b"".join(keys(named))).hexdigest()[:16]
    of = cached_text.made_of(system.config.text.folder, system.folder, form) | {"captions": listed, "stored": stored}
    reached = cached_text.reached(system.folder)
    rows = max(1, min(rows, TEXT_SHARD // row_bytes(form, "float32", reached)))
    shards = range(-(-len(named) // rows))
    for number in shards:
        if number % parts == part and not has_shard(folder, number, None, of):
            some = named[number * rows : (number + 1) * rows]
            found = packed(states(system, frozen, some), stored, reached)
            write_shard(folder, number, {"key": keys(some)} | found, of)
    complete = all(has_shard(folder, number, None, of) for number in shards)
    if complete:
        write_index(folder, len(shards), of, config=digest(system.config))
        verify(folder)
    return len(named), complete


def states(system: System, frozen, captions: list[str | None], size: int = 64) -> dict[str, np.ndarray]:
    """What the frozen text encoders make of captions, None being no caption: "text" [N, L, D], "pooled" [N, P],
    "text_mask" [N, L], as there are."""
    tokens, mask = system.tokenize([caption or "" for caption in captions])
    for place, caption in enumerate(captions):
        if caption is None:
            tokens[place], mask[place] = system.tokenizer.unconditional
    size = even(system.layout, min(size, len(captions)))
    parts = []
    for start in range(0, len(captions), size):
        rows = np.minimum(np.arange(start, start + size), len(captions) - 1)
        found = _states(system, frozen["text"], *spread(system.layout, tokens[rows], mask[rows]))
        parts.append({name: fetch(rows)[: len(captions) - start] for name, rows in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@functools.partial(jax.jit, static_argnums=0)
def _states(system: System, params, tokens, mask):
    cond = system.condition({"text": params}, tokens, mask)
    found = {name: getattr(cond, name) for name in (*FLOATS, "text_mask")}
    return {name: rows for name, rows in found.items() if rows is not None}


def _sizes(config: Config, images: ImageSet) -> list[tuple[tuple[int, int], np.ndarray]]:
    """(size, the images that are trained at it) of every size."""
    buckets = buckets_of(config, images)
    if buckets is None:
        return [(config.data.size, np.arange(len(images)))]
    return [(size, buckets.members(group)) for group, size in enumerate(buckets.sizes)]


def measured(config: Config, heldout: ImageSet) -> ImageSet:
    """The held-out images that a run is measured on, but for those that cannot be read."""
    return heldout.take(range(min(len(heldout), config.evaluation.max_images)))


def cached(config: Config, images: ImageSet, name: str) -> tuple[ImageSet, Bucketed | None, dict[str, Any]]:
    """(the images that a cache has, their buckets, what `latents_of` made of them by index) of a config's set `name`.

    Raises ValueError, one line, where the cache is absent, not complete or of another autoencoder, size or images.
    """
    if not len(images):
        return images, None, {"latent": np.zeros((0, 1, 1, 1), np.float32)}
    folder = files.place(config.data.cache, "config.data.cache") / name
    parts, members, common = [], [], made_of(config, images)
    for size, _ in _sizes(config, images):
        place = folder / f"{size[0]}x{size[1]}"
        theirs = read_made_of(place)
        unasked = {key: theirs.get(key) for key, value in kinds(config).items() if value in ("False", "mean")}
        wanted = common | {"size": place.name, "stored": theirs.get("stored")} | kinds(config) | unasked
        parts.append(read_cache(place, wanted))
        members.append(np.asarray(parts[-1].pop("image")))
    if config.data.buckets is None:
        return images.take(members[0]), None, parts[0]
    order = np.sort(np.concatenate(members))
    kept = images.take(order)
    groups = np.zeros(len(order), np.int32)
    for group, numbers in enumerate(members):
        groups[np.searchsorted(order, numbers)] = group
    return kept, buckets_of(config, kept), {key: Ragged([part[key] for part in parts], groups) for key in parts[0]}

"""`lgm encode`: the latents of a config's images, made once and kept, and training that reads them.

A cache is a folder with one part for the training and one for the held-out images, in each one for every size, all
caches of `lgm.data.cache`. It is made of one autoencoder, one choice of images and captions, one size: any other is
refused by name. Records that cannot be read are left out; each row says which image it is.
"""

from pathlib import Path

import numpy as np

from lgm import files, weights
from lgm.config import Config
from lgm.data import Bad, ImageSet, read_cache, write_index, write_shard
from lgm.data.buckets import Bucketed, Ragged
from lgm.data.cache import has_shard, verify
from lgm.drawing import encode_pixels
from lgm.system import System
from lgm.train.feeding import buckets_of


def made_of(config: Config, images: ImageSet, size: tuple[int, int]) -> dict[str, str]:
    """What the latents of images at a size depend on."""
    return {"autoencoder": weights.fingerprint(config.autoencoder), "images": images.fingerprint,
            "size": f"{size[0]}x{size[1]}", "buckets": str(config.data.buckets)}


def encode(system: System, frozen, images: ImageSet, folder: Path, bad: Bad, part: int, parts: int, rows: int,
            dtype) -> bool:
    """Write the shards of a part; whether all of the set's are there now."""
    complete = True
    for size, members in _sizes(system.config, images):
        place, of = folder / f"{size[0]}x{size[1]}", made_of(system.config, images, size)
        shards = range(-(-len(members) // rows))
        for number in shards:
            if number % parts != part or has_shard(place, number, None, of):
                continue
            some = members[number * rows : (number + 1) * rows]
            pixels, good = images.readable(some, size, bad)
            bad.check(len(images))
            latent = encode_pixels(system, frozen, pixels, size).astype(dtype)
            write_shard(place, number, {"latent": latent, "image": some[good].astype(np.int64)}, of)
        if all(has_shard(place, number, None, of) for number in shards):
            write_index(place, len(shards), of)
            verify(place)
        else:
            complete = False
    return complete


def _sizes(config: Config, images: ImageSet) -> list[tuple[tuple[int, int], np.ndarray]]:
    """(size, the images that are trained at it) of every size."""
    buckets = buckets_of(config, images)
    if buckets is None:
        return [(config.data.size, np.arange(len(images)))]
    return [(size, buckets.members(group)) for group, size in enumerate(buckets.sizes)]


def cached(config: Config, images: ImageSet, name: str) -> tuple[ImageSet, Bucketed | None, object]:
    """(the images that a cache has, their buckets, their latents by index) of a config's set `name`.

    Raises ValueError, one line, where the cache is absent, not complete or of another autoencoder, size or images.
    """
    folder = files.place(config.data.cache, "config.data.cache") / name
    parts, members = [], []
    for size, _ in _sizes(config, images):
        found = read_cache(folder / f"{size[0]}x{size[1]}", made_of(config, images, size))
        parts.append(found["latent"])
        members.append(np.asarray(found["image"]))
    if config.data.buckets is None:
        return images.take(members[0]), None, parts[0]
    order = np.sort(np.concatenate(members))
    kept = images.take(order)
    groups = np.zeros(len(order), np.int32)
    for group, numbers in enumerate(members):
        groups[np.searchsorted(order, numbers)] = group
    return kept, buckets_of(config, kept), Ragged(parts, groups)

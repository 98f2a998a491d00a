"""Latents of an image set, encoded once a sweep and kept in its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lgm import weights
from lgm.data import ImageSet, read_cache, write_index, write_shard
from lgm.drawing import encode_all
from lgm.system import System


def encoded(system: System, frozen, images: ImageSet, workdir: Path) -> np.ndarray:
    """Standardised latents [N, h, w, c] of all images, float32; from `workdir/latents` where they are there."""
    made_of = {"autoencoder": weights.fingerprint(system.config.autoencoder), "images": images.fingerprint}
    place = workdir / "latents" / "-".join(made_of.values())
    if not (place / "index.json").is_file():
        write_shard(place, 0, {"latent": encode_all(system, frozen, images)}, made_of)
        write_index(place, 1, made_of)
    return np.asarray(read_cache(place, made_of)["latent"])

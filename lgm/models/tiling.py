"""Decoding of images larger than the device has memory for, tile by tile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def tiled_decode(decode: Callable, z_BHWC, *, factor: int, tile: int = 64, overlap: float = 0.25) -> np.ndarray:
    """The image of latents [B, h, w, c] as [B, factor h, factor w, channels] on the host, from overlapping tiles.

    `decode` (jitted, so that it compiles once for each of the at most four tile shapes) sees tiles of `tile` x `tile`
    latent pixels that start every (1 - overlap) tile; where two meet, one fades linearly into the other, as in
    diffusers' AutoencoderKL. Latents of one tile or less decode whole. A tile does not see beyond its border, so tiles
    too small for the decoder's group norms to agree show as patches of tint.

    Raises ValueError where overlap leaves no step between tiles.
    """
    z_BHWC = np.asarray(z_BHWC)
    height, width = z_BHWC.shape[1:3]
    if height <= tile and width <= tile:
        return np.asarray(decode(z_BHWC))
    step = int(tile * (1 - overlap))
    if not 0 <= overlap < 1 or step < 1:
        raise ValueError(f"overlap={overlap} of tile={tile} leaves no step between tiles; give one in [0, 1)")
    fade = int(tile * factor * overlap)
    kept = tile * factor - fade
    rows, above = [], []
    for top in range(0, height, step):
        tiles = [np.array(decode(z_BHWC[:, top : top + tile, left : left + tile])) for left in range(0, width, step)]
        for i, here in enumerate(tiles):
            if above:
                _fade(above[i], here, fade, 1)
            if i:
                _fade(tiles[i - 1], here, fade, 2)
        rows.append(np.concatenate([here[:, :kept, :kept] for here in tiles], 2))
        above = tiles
    return np.concatenate(rows, 1)


def _fade(before: np.ndarray, here: np.ndarray, length: int, axis: int) -> None:
    """Mix the end of `before` into the start of `here` along `axis`, in place."""
    length = min(length, before.shape[axis], here.shape[axis])
    if length == 0:
        return
    weight = (np.arange(length, dtype=np.float32) / length).reshape([-1 if a == axis else 1 for a in range(4)])
    index = lambda *bounds: tuple(slice(*bounds) if a == axis else slice(None) for a in range(4))
    start, end = index(0, length), index(before.shape[axis] - length, None)
    here[start] = before[end] * (1 - weight) + here[start] * weight

"""Aspect-ratio buckets: images of many shapes trained at nearly one area, each batch of one shape.

The practice of SDXL (Podell et al. 2023, 2307.01952, section 2.3 and appendix I): every image goes to the bucket of the
nearest aspect ratio, is scaled to cover it and cut to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bucket_sizes(resolution: int, step: int = 64, max_ratio: float = 4.0) -> tuple[tuple[int, int], ...]:
    """(height, width) of every bucket, tall to wide: multiples of `step` with an area as near resolution^2 as can be.

    `max_ratio` bounds the longer side over the shorter. Raises ValueError where resolution is no multiple of step.
    """
    if step < 1 or resolution < step or resolution % step:
        raise ValueError(f"config.data.resolution={resolution} must be a multiple of the bucket step {step}")
    if max_ratio < 1:
        raise ValueError(f"max_ratio={max_ratio} must be at least 1: the longer side over the shorter")
    sizes = set()
    for short in range(step, resolution + 1, step):
        long = max(short, round(resolution**2 / short / step) * step)
        if long <= max_ratio * short:
            sizes |= {(short, long), (long, short)}
    return tuple(sorted(sizes, key=lambda size: (size[1] / size[0], size)))


def assign_buckets(sizes_N2: np.ndarray, buckets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Number of the bucket whose aspect ratio is nearest each image's (height, width), in its logarithm: int32 [N]."""
    height_N, width_N = np.asarray(sizes_N2, np.float64).T
    height_K, width_K = np.asarray(buckets, np.float64).T
    distance_NK = np.abs(np.log(width_N / height_N)[:, None] - np.log(width_K / height_K)[None])
    return np.argmin(distance_NK, axis=1).astype(np.int32)


def micro_conditioning(sizes_N2: np.ndarray, target_N2: np.ndarray) -> np.ndarray:
    """What SDXL is told of each image (2307.01952, section 2.2): float32 [N, 6], (original height, original width, crop
    top, crop left, target height, target width), the crop in pixels of the scaled image, as it is cut in the middle."""
    sizes_N2, target_N2 = np.asarray(sizes_N2, np.float64), np.asarray(target_N2, np.float64)
    scale_N1 = (target_N2 / sizes_N2).max(axis=1, keepdims=True)
    crop_N2 = np.round((sizes_N2 * scale_N1 - target_N2) / 2)
    return np.concatenate([sizes_N2, crop_N2, target_N2], axis=1).astype(np.float32)

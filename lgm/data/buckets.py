"""Aspect-ratio buckets: images of many shapes trained at nearly one area, each batch of one shape.

The practice of SDXL (Podell et al. 2023, 2307.01952, section 2.3 and appendix I): every image goes to the bucket of the
nearest aspect ratio, is scaled to cover it and cut to it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from lgm.data.varying import View


def bucket_sizes(resolution: int | tuple[int, int], step: int = 64, max_ratio: float = 4.0
                 ) -> tuple[tuple[int, int], ...]:  # fmt: skip
    """(height, width) of every bucket, tall to wide: multiples of `step` with an area as near that of `resolution`, a
    side or (height, width), as can be.

    `max_ratio` bounds the longer side over the shorter. Raises ValueError where resolution is no multiple of step.
    """
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    if step < 1 or min(height, width) < step or height % step or width % step:
        raise ValueError(f"config.data.resolution={resolution} must be a multiple of the bucket step {step}")
    if max_ratio < 1:
        raise ValueError(f"max_ratio={max_ratio} must be at least 1: the longer side over the shorter")
    sizes = set()
    for short in range(step, math.isqrt(height * width) + 1, step):
        long = max(short, round(height * width / short / step) * step)
        if long <= max_ratio * short:
            sizes |= {(short, long), (long, short)}
    return tuple(sorted(sizes, key=lambda size: (size[1] / size[0], size)))


def assign_buckets(sizes_N2: np.ndarray, buckets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Number of the bucket whose aspect ratio is nearest each image's (height, width), in its logarithm: int32 [N]."""
    height_N, width_N = np.asarray(sizes_N2, np.float64).T
    height_K, width_K = np.asarray(buckets, np.float64).T
    distance_NK = np.abs(np.log(width_N / height_N)[:, None] - np.log(width_K / height_K)[None])
    return np.argmin(distance_NK, axis=1).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Bucketed:
    """An image set in buckets: `sizes` are the (height, width) of those that have images, `groups` int32 [N] the number
    of each image's, `stored` int32 [N, 2] the images' own (height, width)."""

    sizes: tuple[tuple[int, int], ...]
    groups: np.ndarray
    stored: np.ndarray

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) that an image is trained at."""
        return self.sizes[self.groups[index]]

    def members(self, group: int) -> np.ndarray:
        """The images of a bucket."""
        return np.flatnonzero(self.groups == group)

    def micro(self, indices: np.ndarray, views: Sequence[View] | None = None) -> np.ndarray:
        """Micro-conditioning float32 [B, 6] of images, cut as `views` say or in the middle."""
        return micro_conditioning(self.stored[indices], np.array(self.sizes)[self.groups[indices]], views)


def bucketed(stored_N2: np.ndarray, resolution: int | tuple[int, int], step: int) -> Bucketed:
    """The buckets about `resolution`, with sides that are multiples of `step`, of images of these sizes."""
    buckets = bucket_sizes(resolution, step)
    used, groups = np.unique(assign_buckets(stored_N2, buckets), return_inverse=True)
    return Bucketed(tuple(buckets[number] for number in used), groups.astype(np.int32), np.asarray(stored_N2))


MUCH = 0.25  # of an image's area, that a cut had better not lose


def lost(stored_N2: np.ndarray, target_N2: np.ndarray) -> np.ndarray:
    """Share of the area of images of these (height, width) that lies outside a cut of the shapes `target_N2`: [N]."""
    ratio_N2 = np.asarray(stored_N2, np.float64) / np.asarray(target_N2, np.float64)
    return 1.0 - ratio_N2.min(1) / ratio_N2.max(1)


def told_losses(names: Callable[[int], str], lost_N: np.ndarray) -> str:
    """What cuts lose much of, in words; "" where none does. `names` gives an image's name."""
    count = int((lost_N > MUCH).sum())
    if not count:
        return ""
    worst = int(lost_N.argmax())
    return (f"{count:,} of {len(lost_N):,} images lose more than {MUCH:.0%} of their area to the cut, the most "
            f"{names(worst)}, {lost_N[worst]:.0%}")


class Ragged:
    """Arrays of several shapes as one of rows: rows that are asked for together are of one shape."""

    def __init__(self, parts: Sequence[np.ndarray], groups: np.ndarray):
        self.parts, self.groups = parts, groups
        self.places = np.zeros(len(groups), np.int64)
        for group, part in enumerate(parts):
            self.places[groups == group] = np.arange(len(part))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Rows [B, ...] of one group."""
        (group,) = set(self.groups[indices].tolist())
        return self.parts[group][self.places[indices]]


def micro_conditioning(sizes_N2: np.ndarray, target_N2: np.ndarray, views: Sequence[View] | None = None) -> np.ndarray:
    """What SDXL is told of each image (2307.01952, section 2.2): float32 [N, 6], (original height, original width, crop
    top, crop left, target height, target width), the crop in pixels of the scaled image, by default in the middle."""
    sizes_N2, target_N2 = np.asarray(sizes_N2, np.float64), np.asarray(target_N2, np.float64)
    views = [View()] * len(sizes_N2) if views is None else views
    crop_N2 = [view.told(*pair) for view, *pair in zip(views, sizes_N2.tolist(), target_N2.tolist(), strict=True)]
    return np.concatenate([sizes_N2, np.reshape(crop_N2, (-1, 2)), target_N2], axis=1).astype(np.float32)

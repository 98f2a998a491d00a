"""What a config makes of its collections, in lines that a person reads: `lgm data --config=PAGE`."""

import dataclasses

import numpy as np

from lgm.data.buckets import bucketed, lost, told_losses
from lgm.data.images import ImageSet
from lgm.data.mixture import mixture, open_parts
from lgm.data.near_duplicates import overlap
from lgm.data.sources import Bad

SHOWN = 10  # bad records that are printed


def describe_config(config) -> list[str]:
    """Lines on each source of a `lgm.config.Config`: what its filters left for training and held out, its share of the
    images served and how often each comes; then on captions, what is done anew each time, buckets, held-out images that
    are nearly training images, and records that cannot be used.

    Raises ValueError, one line, for what cannot be opened.
    """
    data, bad = config.data, Bad(config.data.bad_share)
    train, heldout = open_parts(data, bad)
    weights = np.array(data.weights or (1.0,))
    lines = []
    for (name, images), weight in zip(train.items(), weights, strict=True):
        share = weight / weights.sum()
        part = f"weight {weight:g}, {share:.3%} of what is served; " if len(train) > 1 else ""
        source = "" if name == images.source else f" {images.source},"
        lines += [f"{name}:{source} {images.records.kind}, {len(images.records.rows):,} images",
                  f"  train     {_left(images)}; {part}each {config.total_images * share / len(images):.3g} times in "
                  f"config.total_images={config.total_images:,}",
                  f"  held out  {_left(heldout[name])}"]
    images, others = (mixture(sets) if len(sets) > 1 else next(iter(sets.values())) for sets in (train, heldout))
    counts = np.array([len(texts) for texts in images.rows.choices()])
    several = f"; {counts.min()} to {counts.max()} of each, one drawn each time" if counts.max() > 1 else ""
    lines.append(f"captions  {np.count_nonzero(counts):,} of {len(images):,} images have one{several}")
    if anew := _anew(data):
        lines.append(f"anew      each time an image is served: {anew}")
    if data.buckets is not None:
        found = bucketed(images.sizes(), data.resolution, data.buckets)
        sizes = zip(found.sizes, np.bincount(found.groups).tolist(), strict=True)
        lines.append("buckets   " + ", ".join(f"{height}x{width} {count:,}" for (height, width), count in sizes))
        targets = np.array(found.sizes)[found.groups]
        lines.append(f"crops     {told_losses(images.name, lost(found.stored, targets)) or 'none loses much'}")
    _, near = overlap(images, others, most=np.inf)
    lines += [f"near      {near or 'no held-out image is a near duplicate of a training image'}",
              f"bad       {len(bad.found) or 'none'} before any image is decoded"]
    lines += [f"  {reason}" for _, reason in bad.found[:SHOWN]]
    return lines


def _left(images: ImageSet) -> str:
    """How many images each filter left, and how many have what else they need."""
    steps = [f"{words} leaves {count:,}" for words, count in images.left]
    return f"{len(images):,}" + (f" ({', '.join(steps)})" if steps else "")


def _anew(data) -> str:
    parts = [name for name in ("flip", "random_crop") if getattr(data, name)]
    if data.tags is not None:
        parts.append(f"tags ({', '.join(f'{name}={value}' for name, value in dataclasses.asdict(data.tags).items())})")
    return ", ".join(parts)

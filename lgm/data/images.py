"""Captioned images from any source, read at random."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lgm.data.batches import cores
from lgm.data.decoding import decode, stored_size
from lgm.data.filters import MEASURED, condition, nothing_left, select
from lgm.data.rows import JOINED_FROM, REPEATS, Rows
from lgm.data.sources import Bad, Source, open_source
from lgm.data.varying import View
from lgm.parsing import ConfigError, near_miss

AS_IT_IS = View()
MOST_HELD_OUT = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Random access to images and what is known of them. `rows` are those records of a source that belong to the set,
    each with "file_name" and "text"; `resolution` is the side of a square or (height, width); `threads` read many
    images. `left` are the filters that chose the rows, each with how many it and those before it left."""

    source: str
    records: Source
    rows: Rows
    resolution: int | tuple[int, int]
    threads: int
    left: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def captions(self) -> list[str]:
        """The caption of every image, of several the first."""
        return self.rows.captions()

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short hash of which images these are, their captions and their resolution; the pixels are not read."""
        digest = hashlib.sha256(str(self.resolution).encode())
        for start in range(0, len(self), 1 << 16):
            places = np.arange(start, min(start + (1 << 16), len(self)))
            for pair in zip(self.rows.values("file_name", places), self.rows.captions(places), strict=True):
                digest.update("\0".join((*pair, "")).encode())
        return digest.hexdigest()[:16]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels that images are read at."""
        return (self.resolution,) * 2 if isinstance(self.resolution, int) else self.resolution

    @property
    def parts(self) -> np.ndarray | None:
        """The number of the set that each image of a mixture is of; None of one set."""
        known = JOINED_FROM in self.rows.table.column_names
        return self.rows.table[JOINED_FROM].to_numpy()[self.rows.numbers] if known else None

    def name(self, index: int) -> str:
        """What errors call an image."""
        file = self.rows.table["file_name"][int(self.rows.numbers[index])].as_py()
        return f"{self.source}/{file}" if self.source else file

    def content(self, index: int) -> bytes:
        """An image's file as it is. Raises ValueError, one line, where it cannot be read."""
        return self.records.read(int(self.rows.numbers[index]))

    def image(self, index: int, size: tuple[int, int] | None = None, view: View = AS_IT_IS) -> np.ndarray:
        """uint8 [H, W, 3] of `size` = (H, W), by default the resolution's.

        Transparency is laid on white; the image is scaled to cover the size and cut as `view` says, by default in the
        middle. Raises ValueError, one line with the file's name, for a missing, truncated or unreadable image.
        """
        size, content, name = size or self.size, self.content(index), self.name(index)
        centre = (0.5, 0.5) if view.place is None else view.centre(stored_size(content, name), size)
        pixels = decode(content, size, name, centre)
        return pixels[:, ::-1] if view.flipped else pixels

    def images(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """All images: uint8 [N, H, W, 3] of `size` = (H, W), by default the resolution's."""
        with ThreadPoolExecutor(self.threads) as pool:
            return np.stack(list(pool.map(lambda index: self.image(index, size), range(len(self)))))

    def whole(self, bad: Bad) -> ImageSet:
        """The set without images that cannot be read, which are noted; all are read, unless none may be bad."""
        if not bad.share or not len(self):
            return self
        good = [self.readable(np.arange(start, min(start + 4096, len(self))), (8, 8), bad)[1] + start
                for start in range(0, len(self), 4096)]
        bad.check(len(self))
        good = np.concatenate(good)
        return self if len(good) == len(self) else self.take(good)

    def readable(self, indices: np.ndarray, size: tuple[int, int], bad: Bad) -> tuple[np.ndarray, np.ndarray]:
        """(pixels uint8 [n, H, W, 3] of those of some images that can be read, their places among them); the others are
        noted."""
        found = self.tried(indices, lambda index: self.image(index, size), bad)
        good = np.array([place for place, index in enumerate(indices.tolist()) if index in found], np.int64)
        return np.array([found[index] for index in indices[good].tolist()], np.uint8).reshape(-1, *size, 3), good

    def tried(self, indices: np.ndarray, look: Callable[[int], Any], bad: Bad) -> dict[int, Any]:
        """What `look` gives of some images, several at once; those of which it raises ValueError are noted instead."""
        def attempt(index: int) -> Any:
            try:
                return look(index)
            except ValueError as error:
                return error

        with ThreadPoolExecutor(self.threads) as pool:
            found = dict(zip(indices.tolist(), pool.map(attempt, indices.tolist()), strict=True))
        for index, error in found.items():
            if isinstance(error, ValueError):
                bad.add(self.name(index), str(error))
        return {index: seen for index, seen in found.items() if not isinstance(seen, ValueError)}

    def sizes(self, unknown: tuple[int, int] | None = None) -> np.ndarray:
        """Stored (height, width) of every image: int32 [N, 2], from "height" and "width" in the metadata where all
        have them, else from the files' headers; `unknown`, by default the resolution, of one that cannot be read:
        reading it says so where that matters."""
        if {"height", "width"} <= set(self.rows.fields):
            height, width = self.rows.values("height"), self.rows.values("width")
            if all(type(side) is int and 0 < side < 1 << 24 for side in (*height, *width)):
                return np.array([height, width], np.int32).T
        with ThreadPoolExecutor(self.threads) as pool:
            found = list(pool.map(lambda index: self._size(index, unknown or self.size), range(len(self))))
        return np.array(found, np.int32).reshape(-1, 2)

    def _size(self, index: int, unknown: tuple[int, int]) -> tuple[int, int]:
        try:
            return stored_size(self.content(index), self.name(index))
        except ValueError:
            return unknown

    def take(self, indices: Iterable[int]) -> ImageSet:
        """The set of these rows."""
        return dataclasses.replace(self, rows=self.rows[np.array(list(indices), np.int64)])


def open_images(source: str, where: Mapping[str, Any] | None = None, resolution: int | tuple[int, int] = 64,
                caption: str | tuple[str, ...] = "text", threads: int | None = None, bad: Bad | None = None
                ) -> ImageSet:  # fmt: skip
    """The images of `source` whose metadata match `where`, read by so many `threads`, by default one a core.

    `source` is what `lgm.data.sources.open_source` takes: a shipped name, a folder, a zip, shards. `where` maps a field
    to a value, to a list of values, to a prefix ending in "-" or "*", {"subcategory": "face-"}, or to comparisons,
    {"score": ">=5", "width": ">=512 <4096"}; a field that holds a list matches by any of its items. "height", "width"
    and "pixels" are of the images themselves where the metadata have no such field. `caption` is the field that is each
    image's caption, or lists its captions, or several such fields, "" for none; where that is another, rows need no
    "text". Records that are no use are left out and noted in `bad`; by default any is an error.
    Raises ValueError in one line for a source that cannot be read, metadata without captions, a named image that is not
    there, or a filter that leaves nothing.
    """
    if np.min(resolution) < 1:
        raise ValueError(f"config.data.resolution={resolution} must be at least 1")
    bad = Bad() if bad is None else bad
    return _chosen(source, open_source(source, caption, bad), where, resolution, caption, threads, bad)


def open_two(source: str, where: Mapping[str, Any], other: Mapping[str, Any], data, caption, bad: Bad
             ) -> tuple[ImageSet, ImageSet]:  # fmt: skip
    """(the images that match `where`, those that match `other`) of a source, which is opened once, as a
    `lgm.config.Data` has them read.

    Where `other` says nothing, a share of those that match `where` is held out, `data.heldout_share`, by their names:
    which they are does not change as images are added, but for as many more. With a share of 0 all are in both. Those
    to train on hold an image as often as its folder says (`lgm.data.sources.beside`): an epoch serves it so often.
    """
    images = open_images(source, where, data.resolution, caption, data.threads, bad)
    if other or not data.heldout_share:
        heldout = _chosen(source, images.records, other or where, data.resolution, caption, data.threads, bad)
        return _repeated(images), heldout
    count = min(max(round(data.heldout_share * len(images)), 1), MOST_HELD_OUT, len(images) - 1)
    if count == 0:
        raise ConfigError(f"config.data.source={source!r} has one image, of which none can be held out; set "
                          "config.data.heldout_share=0 to measure the loss on it")
    hashes = [zlib.crc32(str(name).encode()) for name in images.rows.values("file_name")]
    order = np.argsort(hashes, kind="stable")
    return _repeated(images.take(np.sort(order[count:]))), images.take(np.sort(order[:count]))


def _chosen(source: str, records: Source, where, resolution: int | tuple[int, int], caption, threads: int | None,
            bad: Bad) -> ImageSet:
    where = where or {}
    measured = {field: where[field] for field in where if field in MEASURED and field not in records.rows.fields}
    rows, left = select(records.rows, {field: where[field] for field in where if field not in measured}, source)
    rows = _captioned(rows, caption, source, bad)
    images = ImageSet(source, records, rows, resolution, threads or cores(), tuple(left))
    return _measured(images, measured) if measured else images


def _repeated(images: ImageSet) -> ImageSet:
    if REPEATS not in images.rows.table.column_names:
        return images
    found = images.take(np.repeat(np.arange(len(images)), images.rows.values(REPEATS)))
    return dataclasses.replace(found, left=(*images.left, ("repeating as the folders' names say", len(found))))


def _measured(images: ImageSet, where: Mapping[str, Any]) -> ImageSet:
    """Those images whose own sizes match; one that cannot be read stays, to be found bad where it is read."""
    height_N, width_N = images.sizes(unknown=(0, 0)).astype(np.int64).T
    values = dict(zip(MEASURED, (height_N, width_N, height_N * width_N), strict=True))
    kept, left, asked = height_N == 0, list(images.left), ""
    good = ~kept
    for field, wanted in where.items():
        before = good
        good = good & np.array([condition(field, wanted)(value) for value in values[field].tolist()], bool)
        if not good.any():
            raise nothing_left(field, wanted, images.source, asked, values[field][before].tolist())
        asked = f"{asked or ' with'} {field}={wanted!r}"
        left.append((f"{field}={wanted!r}", int((good | kept).sum())))
    return dataclasses.replace(images.take(np.flatnonzero(good | kept)), left=tuple(left))


def _captioned(rows: Rows, field: str | tuple[str, ...], source: str, bad: Bad) -> Rows:
    """The rows that have a caption, where any has one."""
    rows = Rows(rows.table, None if rows.whole else rows.numbers, field)
    plain = rows.captioned == ("text",)
    if not rows.captioned or (plain and "text" not in rows.fields):
        return rows
    for name in rows.captioned:
        if name not in rows.fields:
            raise ValueError(f"config.data.caption={field!r}: {source} has no such text{near_miss(name, rows.fields)}")
    told = rows.told()
    if told.all() or (plain and not told.any()):
        return rows
    for place in np.flatnonzero(~told).tolist():
        name, *values = (rows.values(key, np.array([place]))[0] for key in ("file_name", *rows.captioned))
        known = f", which is {values[0]!r} there" if len(values) == 1 and values[0] is not None else ""
        bad.add(f"{source}/{name}", f"config.data.caption={field!r}: {source}'s {name} has no such text{known}")
    bad.check(len(rows))
    return rows[told]

"""Perceptual hashes of images on disk, each computed once, whatever set its image is in.

They lie in the user's cache, in a folder for each source, as arrays that are only added to: 64 bytes an image, known by
its name and what changes where its file does (size and time of a file or of a shard, the sum that a zip holds).
A core asks for a million images' names and times in some 8 seconds, and hashes 120 to 280 a second of 512 pixels a side
(PNG and WebP of 1,024: 25 to 30, which are decoded whole).
"""

import contextlib
import functools
import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lgm import files
from lgm.data.images import ImageSet
from lgm.data.mixture import Joined

FORM = 1  # of what is kept: another hash is another form
PART = 1 << 12  # images that one thread asks for
KEPT = np.dtype([("mark", np.uint64), ("bits", np.uint64), ("colours", np.uint8, 48)])


def marks(images: ImageSet, places: np.ndarray) -> np.ndarray:
    """What images of a set are known by: uint64 [N]."""
    found = np.zeros(len(places), np.uint64)
    with ThreadPoolExecutor(images.threads) as pool:
        for _, records, numbers, at in _origins(images, places):
            parts = [numbers[start : start + PART] for start in range(0, len(numbers), PART)]
            found[at] = np.concatenate([np.zeros(0, np.uint64), *pool.map(functools.partial(_marks, records), parts)])
    return found


def read(images: ImageSet, wanted: np.ndarray) -> np.ndarray:
    """What is kept of the set's sources under such marks: KEPT [M], by mark, each once."""
    parts = [part[np.isin(part["mark"], wanted)] for source in _sources(images) for part in _parts(_folder(source))]
    kept = np.concatenate([np.zeros(0, KEPT), *parts])
    return kept[np.unique(kept["mark"], return_index=True)[1]]


def write(images: ImageSet, places: np.ndarray, kept: np.ndarray) -> None:
    """Keep what was found of images of a set: KEPT [N]."""
    for source, _, _, at in _origins(images, places):
        sink = io.BytesIO()
        np.save(sink, kept[at])
        name = hashlib.sha256(sink.getvalue()).hexdigest()[:16]
        with contextlib.suppress(OSError):  # a home that cannot be written: they are computed again the next time
            files.write_atomically(_folder(source) / f"{name}.npy", sink.getvalue())


def _marks(records: Any, numbers: np.ndarray) -> np.ndarray:
    names = records.rows.table["file_name"].take(numbers).to_pylist()
    words = (f"{name}\0{records.stamp(number)}" for name, number in zip(names, numbers.tolist(), strict=True))
    digests = [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words]
    return np.frombuffer(b"".join(digests), np.uint64)


def _folder(source: str) -> Path:
    return files.cache("hashes") / hashlib.sha256(f"{FORM} {source}".encode()).hexdigest()[:24]


def _parts(folder: Path) -> Iterator[np.ndarray]:
    for path in sorted(folder.glob("*.npy")):
        with contextlib.suppress(OSError, ValueError, EOFError):  # what is no whole array is computed again
            part = np.load(path)
            if part.dtype == KEPT:
                yield part


def _sources(images: ImageSet) -> list[str]:
    return [one.source for one in (images.records.sets if isinstance(images.records, Joined) else [images])]


def _origins(images: ImageSet, places: np.ndarray) -> Iterator[tuple[str, Any, np.ndarray, np.ndarray]]:
    """(name of a source, its records, the numbers there of those images that are of it, their places among them)."""
    numbers, records = images.rows.numbers[places], images.records
    if not isinstance(records, Joined):
        yield images.source, records, numbers, np.arange(len(places))
        return
    for part, one in enumerate(records.sets):
        at = np.flatnonzero(records.part[numbers] == part)
        if len(at):
            yield one.source, one.records, records.record[numbers[at]], at

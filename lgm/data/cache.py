"""What a frozen encoder makes of an image set, on disk: latents, or text features, computed once and read many times.

A cache is a folder of safetensors shards and an index.json, and knows what it was made of, `made_of`, such as
{"autoencoder": lgm.weights.fingerprint(source), "images": image_set.fingerprint}. Every shard carries that too, is
written whole or not at all, and the index comes last, so that a folder with an index is a complete cache of one kind.
Several processes may each write shards of their own, and one of them the index when all are done. Each row has a
checksum, by which it is told when it is read that it is as it was written.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lgm import files

INDEX, FORMAT = "index.json", 2
SUMS = ".crc32"  # after an array's name: those of its rows


def write_shard(folder: str | Path, number: int, arrays: Mapping[str, np.ndarray], made_of: Mapping[str, str]) -> None:
    """Write the `number`-th run of rows, equally long arrays, and say what they were made of."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"a shard needs arrays of one length; there are {lengths or 'none'}")
    folder = files.place(folder)
    (folder / INDEX).unlink(missing_ok=True)  # until the new index is there, this is no complete cache
    rows = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    rows |= {f"{name}{SUMS}": checksums(array) for name, array in rows.items()}
    content = save(rows, metadata={"made_of": json.dumps(dict(made_of), sort_keys=True)})
    files.write_atomically(folder / _shard(number), content)


def has_shard(folder: str | Path, number: int, rows: int | None, made_of: Mapping[str, str]) -> bool:
    """Whether that shard is there, whole, of so many rows (None: of any number) and made of the same: an interrupted
    encoding goes on."""
    try:
        found = _open_shard(files.place(folder) / _shard(number), made_of)
    except ValueError:
        return False
    return rows is None or found.rows == rows


def write_index(folder: str | Path, shards: int, made_of: Mapping[str, str], **known: str) -> None:
    """Complete a cache of shards 0 to `shards` - 1, which all must be there; what else is `known` of it is noted."""
    sizes, hashes = [], []
    for number in range(shards):
        sizes.append(_open_shard(files.place(folder) / _shard(number), made_of).rows)
        hashes.append(_hash(files.place(folder) / _shard(number)))
    index = {"format": FORMAT, "made_of": dict(made_of), **known, "rows": sizes, "sha256": hashes}
    files.write_json(files.place(folder) / INDEX, index)


def verify(folder: str | Path) -> None:
    """Read every shard of a complete cache. Raises ValueError, one line, for one that is not as it was written."""
    folder = files.place(folder)
    index = json.loads((folder / INDEX).read_text())
    for number, wanted in enumerate(index["sha256"]):
        if _hash(folder / _shard(number)) != wanted:
            raise ValueError(f"{folder / _shard(number)} is damaged: it is not as it was written; remove it and make "
                             "the cache again, which makes what is missing")


def _hash(path: Path) -> str:
    with open(files.local(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_cache(folder: str | Path, made_of: Mapping[str, str]) -> dict[str, CachedArray]:
    """The arrays of a complete cache, read as they are asked for.

    Raises ValueError, one line, where the cache is absent, unfinished or damaged, or was made of something else than
    `made_of` says.
    """
    shards = open_shards(folder, made_of)
    return {name: CachedArray(shards, name) for name in shards[0].slices}


def read_made_of(folder: str | Path) -> dict[str, str]:
    """What the index of a complete cache says that it was made of. Raises ValueError as `read_cache` does."""
    return _index(files.place(folder))[0]


def open_shards(folder: str | Path, made_of: Mapping[str, str]) -> list[Shard]:
    """The shards of a complete cache. Raises ValueError as `read_cache` does."""
    folder = files.place(folder)
    theirs, rows = _index(folder)
    _check(folder, theirs, made_of)
    shards = [_open_shard(folder / _shard(number), made_of) for number in range(len(rows))]
    for number, shard in enumerate(shards):
        if shard.rows != rows[number]:
            raise ValueError(f"{shard.path} is not the shard that {INDEX} counts; make the cache again")
    return shards


def checksums(rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each row of an array: uint32 [N]."""
    words = np.ascontiguousarray(rows).reshape(len(rows), math.prod(rows.shape[1:])).view(np.uint8)
    return np.array([zlib.crc32(row) for row in words], np.uint32)


class Shard:
    """One file of a cache: `rows` rows of every array in `slices`, read one by one or whole."""

    def __init__(self, path: Path, file: Any):
        lengths = {name: file.get_slice(name).get_shape()[0] for name in file.keys()}
        names = [name for name in lengths if not name.endswith(SUMS)]
        if len(set(lengths.values())) != 1 or {f"{name}{SUMS}" for name in names} != lengths.keys() - set(names):
            raise KeyError(SUMS)
        self.path, self.rows = path, next(iter(lengths.values()))
        self.slices = {name: file.get_slice(name) for name in names}
        self.sums = {name: file.get_tensor(f"{name}{SUMS}") for name in names}

    def row(self, name: str, number: int) -> np.ndarray:
        """A row of an array. Raises ValueError, one line, where it is not as it was written."""
        return self._checked(name, number, number + 1)[0]

    def whole(self, name: str) -> np.ndarray:
        """All rows of an array."""
        return self._checked(name, 0, self.rows)

    def _checked(self, name: str, start: int, stop: int) -> np.ndarray:
        found = self.slices[name][start:stop]
        if not np.array_equal(checksums(found), self.sums[name][start:stop]):
            raise ValueError(f"{self.path} is damaged: {name} is not as it was written; remove it and make the "
                             "cache again, which makes what is missing")
        return found


def _index(folder: Path) -> tuple[dict[str, str], list[int]]:
    """(what a cache was made of, the rows of every shard)."""
    if not (folder / INDEX).is_file():
        begun = any(path.name.startswith("shard-") for path in files.folders(folder))
        state = "is unfinished: its index is not there" if begun else "is not there"
        raise ValueError(f"the cache {folder} {state}; make the cache again")
    try:
        index = json.loads((folder / INDEX).read_text())
        return dict(index["made_of"]), [int(rows) for rows in index["rows"]]
    except (KeyError, TypeError, ValueError, AttributeError, json.JSONDecodeError):
        raise ValueError(f"{folder / INDEX} is no cache's index; make the cache again") from None


class CachedArray:
    """One array of a cache: its length, shape and rows. `numpy.asarray` reads it whole."""

    def __init__(self, shards: Sequence[Shard], name: str):
        self.shards, self.name = shards, name
        self.starts = np.cumsum([0, *(shard.rows for shard in shards)])
        self.shape = (int(self.starts[-1]), *shards[0].slices[name].get_shape()[1:])
        kind = shards[0].slices[name][:0].dtype
        # half floats are a way to store, not to compute: what is served is float32
        self.dtype = np.dtype(np.float32) if kind.itemsize == 2 and kind.kind not in "iu" else kind

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices) -> np.ndarray:
        """Rows by an array of indices, in its order: [*indices.shape, ...]."""
        indices = np.asarray(indices)
        rows = np.empty((indices.size, *self.shape[1:]), self.dtype)
        for place, index in enumerate(indices.reshape(-1).tolist()):
            if not 0 <= index < len(self):
                raise IndexError(f"row {index} of a cache of {len(self)}")
            shard = int(np.searchsorted(self.starts, index, side="right")) - 1
            row = index - int(self.starts[shard])
            rows[place] = self.shards[shard].row(self.name, row)
        return rows.reshape(*indices.shape, *self.shape[1:])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        whole = np.concatenate([shard.whole(self.name) for shard in self.shards])
        return whole.astype(dtype or self.dtype, copy=False)


def _shard(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _open_shard(path: Path, made_of: Mapping[str, str]) -> Shard:
    try:
        file = safe_open(files.local(path), "numpy")
        theirs = json.loads((file.metadata() or {})["made_of"])
        shard = Shard(path, file)
    except FileNotFoundError:
        raise ValueError(f"{path} is not there; make the cache again") from None
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{path} is no whole shard of a cache ({error}); make the cache again") from None
    _check(path, theirs, made_of)
    return shard


def _check(place: Path, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key):
            raise ValueError(
                f"{place} was made with {key}={theirs.get(key)}, not {ours.get(key)}; make the cache again, into "
                "another folder or over this one"
            )

"""What a frozen encoder makes of an image set, on disk: latents, or text features, computed once and read many times.

A cache is a folder of safetensors shards and an index.json, and knows what it was made of, `made_of`, such as
{"autoencoder": lgm.weights.fingerprint(source), "images": image_set.fingerprint}. Every shard carries that too, is
written whole or not at all, and the index comes last, so that a folder with an index is a complete cache of one kind.
Several processes may each write shards of their own, and one of them the index when all are done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lgm import files

INDEX, FORMAT = "index.json", 1


def write_shard(folder: str | Path, number: int, arrays: Mapping[str, np.ndarray], made_of: Mapping[str, str]) -> None:
    """Write the `number`-th run of rows, equally long arrays, and say what they were made of."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"a shard needs arrays of one length; there are {lengths or 'none'}")
    folder = files.place(folder)
    (folder / INDEX).unlink(missing_ok=True)  # until the new index is there, this is no complete cache
    rows = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content = save(rows, metadata={"made_of": json.dumps(dict(made_of), sort_keys=True)})
    files.write_atomically(folder / _shard(number), content)


def has_shard(folder: str | Path, number: int, rows: int | None, made_of: Mapping[str, str]) -> bool:
    """Whether that shard is there, whole, of so many rows (None: of any number) and made of the same: an interrupted
    encoding goes on."""
    try:
        found = _open_shard(files.place(folder) / _shard(number), made_of)
    except ValueError:
        return False
    return rows is None or all(found.get_slice(name).get_shape()[0] == rows for name in found.keys())


def write_index(folder: str | Path, shards: int, made_of: Mapping[str, str]) -> None:
    """Complete a cache of shards 0 to `shards` - 1, which all must be there."""
    sizes, hashes = [], []
    for number in range(shards):
        file = _open_shard(files.place(folder) / _shard(number), made_of)
        sizes.append(file.get_slice(next(iter(file.keys()))).get_shape()[0])
        hashes.append(_hash(files.place(folder) / _shard(number)))
    index = {"format": FORMAT, "made_of": dict(made_of), "rows": sizes, "sha256": hashes}
    files.write_json(files.place(folder) / INDEX, index)


def verify(folder: str | Path) -> None:
    """Read every shard of a complete cache. Raises ValueError, one line, for one that is not as it was written."""
    folder = files.place(folder)
    index = json.loads((folder / INDEX).read_text())
    for number, wanted in enumerate(index["sha256"]):
        if _hash(folder / _shard(number)) != wanted:
            raise ValueError(f"{folder / _shard(number)} is damaged: it is not as it was written; remove it and encode "
                             "again, which makes what is missing")


def _hash(path: Path) -> str:
    with open(files.local(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_cache(folder: str | Path, made_of: Mapping[str, str]) -> dict[str, CachedArray]:
    """The arrays of a complete cache, read as they are asked for.

    Raises ValueError, one line, where the cache is absent, unfinished or damaged, or was made of something else than
    `made_of` says.
    """
    shards, rows = open_shards(folder, made_of)
    return {name: CachedArray(shards, name, rows) for name in shards[0].keys()}


def read_made_of(folder: str | Path) -> dict[str, str]:
    """What the index of a complete cache says that it was made of. Raises ValueError as `read_cache` does."""
    return _index(files.place(folder))[0]


def open_shards(folder: str | Path, made_of: Mapping[str, str]) -> tuple[list[Any], list[int]]:
    """(the open shards of a complete cache, how many rows each has). Raises ValueError as `read_cache` does."""
    folder = files.place(folder)
    theirs, rows = _index(folder)
    _check(folder, theirs, made_of)
    shards = [_open_shard(folder / _shard(number), made_of) for number in range(len(rows))]
    for number, file in enumerate(shards):
        if {file.get_slice(name).get_shape()[0] for name in file.keys()} != {rows[number]}:
            raise ValueError(f"{folder / _shard(number)} is not the shard that {INDEX} counts; encode the images again")
    return shards, rows


def _index(folder: Path) -> tuple[dict[str, str], list[int]]:
    """(what a cache was made of, the rows of every shard)."""
    if not (folder / INDEX).is_file():
        begun = any(path.name.startswith("shard-") for path in files.folders(folder))
        state = "is unfinished: its index is not there" if begun else "is not there"
        raise ValueError(f"the cache {folder} {state}; encode the images again")
    try:
        index = json.loads((folder / INDEX).read_text())
        return dict(index["made_of"]), [int(rows) for rows in index["rows"]]
    except (KeyError, TypeError, ValueError, AttributeError, json.JSONDecodeError):
        raise ValueError(f"{folder / INDEX} is no cache's index; encode the images again") from None


class CachedArray:
    """One array of a cache: its length, shape and rows. `numpy.asarray` reads it whole."""

    def __init__(self, files: Sequence[Any], name: str, rows: Sequence[int]):
        self.slices = [file.get_slice(name) for file in files]
        self.starts = np.cumsum([0, *rows])
        self.shape = (int(self.starts[-1]), *self.slices[0].get_shape()[1:])
        kind = self.slices[0][:0].dtype
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
            rows[place] = self.slices[shard][row : row + 1][0]
        return rows.reshape(*indices.shape, *self.shape[1:])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.concatenate([part[:] for part in self.slices]).astype(dtype or self.dtype, copy=False)


def _shard(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _open_shard(path: Path, made_of: Mapping[str, str]):
    try:
        file = safe_open(files.local(path), "numpy")
        theirs = json.loads((file.metadata() or {})["made_of"])
    except FileNotFoundError:
        raise ValueError(f"{path} is not there; encode the images again") from None
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{path} is no whole shard of a cache ({error}); encode the images again") from None
    _check(path, theirs, made_of)
    return file


def _check(place: Path, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key):
            raise ValueError(
                f"{place} was made with {key}={theirs.get(key)}, not {ours.get(key)}; encode the images again, into "
                "another folder or over this one"
            )

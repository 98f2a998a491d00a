"""Weights on disk: safetensors files, one or sharded under an index, read lazily and written whole or not at all.

A file is an 8-byte little-endian length, a JSON header with every tensor's dtype, shape and byte range, and the bytes.
Reading maps the range of one tensor at a time, so that a slice of a tensor costs the pages it touches and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from lgm.files import local, write_atomically
from lgm.interop.keymap import Rules, to_ours
from lgm.untrusted import parse_object, read_object, regular, shown

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_MOST_AXES = 16
_LONGEST_HEADER = 1 << 25  # bytes: a quarter of a million tensors


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one tensor lies, and what it is multiplied by as it is read: nothing, a number [1] or one a row."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    scale: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint by name; none is read before it is asked for.

    `changes` are made to tensors as they are read, as a LoRA that is merged.
    """

    path: Path
    entries: Mapping[str, Entry]
    changes: Mapping[str, Callable[[np.ndarray], np.ndarray]] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self.entries)

    def get(self, name: str) -> np.ndarray:
        """One tensor, as a read-only memory map of its part of the file where nothing changes it."""
        entry = self.entries[name]
        if not entry.nbytes:
            tensor = np.zeros(entry.shape, entry.dtype)
        else:
            flat = np.memmap(entry.path, np.uint8, "r", entry.start, (entry.nbytes,))
            tensor = flat.view(entry.dtype).view(np.ndarray)
            if entry.scale is not None:
                tensor = tensor.reshape(len(entry.scale), -1).astype(np.float32) * entry.scale[:, None]
            tensor = tensor.reshape(entry.shape)
        return self.changes[name](tensor) if name in self.changes else tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor, which is not read."""
        return self.entries[name].shape

    def renamed(self, rename: Callable[[str], str | None]) -> Weights:
        """The same tensors under the names that `rename` gives them, without those it gives None. Raises ValueError
        where two would have one name."""
        found: dict[str, str] = {}
        for name in self.entries:
            if (new := rename(name)) is not None and found.setdefault(new, name) != name:
                raise ValueError(f"{self.path} has one tensor twice, as {found[new]!r} and as {name!r}; keep one")
        renamed = lambda table: {rename(name): value for name, value in table.items() if rename(name) is not None}
        return Weights(self.path, renamed(self.entries), renamed(self.changes))


def open_weights(path: str | Path) -> Weights:
    """The tensors of a .safetensors file, of an .index.json of shards, or of the one or the other in a folder.

    In a folder, files of a variant ("model.fp16.safetensors") count only where there are no others. Raises ValueError,
    one line, for a pickle, a file that is not whole, and a folder without weights or with several sets of them.
    """
    path = local(path)
    if path.is_dir():
        path = _find(path)
    if path.suffix in PICKLES:
        raise ValueError(f"{path} is a pickle, which can run code when read; convert it to safetensors")
    try:
        regular(path)
    except (FileNotFoundError, NotADirectoryError):
        words = "give a .safetensors file, its .index.json or a folder of them"
        raise ValueError(f"{path} is not there; {words}") from None
    return Weights(path, _read_index(path) if path.suffix == ".json" else read_header(path))


def load(
    rules: Rules, abstract: Any, weights: Weights | str | Path, *, dtype: Any = None, shardings: Any = None
) -> Any:
    """Our parameters from `weights` (or the path of them), cast to `dtype` and built straight into `shardings`.

    `shardings` is one sharding or a tree of them; without, the parameters are numpy arrays. At any time the host holds,
    besides the result, one slice of one parameter. Raises ValueError as `open_weights` and `to_ours` do.
    """
    weights = weights if isinstance(weights, Weights) else open_weights(weights)
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, abstract)
    leaf = lambda p, s: jax.ShapeDtypeStruct(p.shape, dtype or p.dtype, sharding=s)
    try:
        return to_ours(rules, jax.tree.map(leaf, abstract, shardings), weights.get, weights.names, weights.shape)
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Deferred:
    """A tensor that is made when it is written, and not kept: stands where an array may in `save`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.make()


def save(tensors: Iterable[tuple[str, np.ndarray | Deferred]], folder: str | Path, stem: str,
         shard_bytes: float = 5 << 30, metadata: Mapping[str, str] = {}) -> None:
    """Write `stem`.safetensors or, past `shard_bytes`, `stem`-00001-of-0000N.safetensors and their index.

    Takes tensors one at a time and holds at most one shard of them. Nothing appears under a final name before all of
    it is written, the index last; on an error nothing stays behind. Each file carries the texts of `metadata`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[tuple[Path, list[str]]] = []
    total = 0
    try:
        for shard in in_groups(tensors, lambda named: named[1].nbytes, shard_bytes):
            handle, made = tempfile.mkstemp(dir=folder, prefix=f".{stem}.")
            shards.append((Path(made), [name for name, _ in shard]))
            with os.fdopen(handle, "wb") as file:
                total += _write(file, shard, metadata)
            os.chmod(made, 0o644)
        ending = lambda i: f"-{i + 1:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        files = [f"{stem}{ending(i)}.safetensors" for i in range(len(shards))]
        for (temporary, _), file in zip(shards, files, strict=True):
            os.replace(temporary, folder / file)
    except BaseException:
        for temporary, _ in shards:
            temporary.unlink(missing_ok=True)
        raise
    if len(shards) > 1:
        weight_map = {name: file for (_, names), file in zip(shards, files, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_atomically(folder / f"{stem}.safetensors.index.json", json.dumps(index, indent=2).encode())


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries besides its tensors."""
    return _header(path)[1]


def read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of one safetensors file.

    Raises ValueError, one line, where header and bytes do not agree: the tensors' ranges must lie one after the other,
    without gaps, from the header to the end of the file.
    """
    return _header(path)[0]


def _header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    size = regular(path).stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if first == b"version ":
            raise ValueError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its repository")
        if len(first) < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{path} is no safetensors file or is cut short ({size} bytes); download it again")
        text = file.read(length)
    try:
        header = parse_object(text)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("__metadata__ holds other things than texts")
        entries = {name: _entry(path, 8 + length, value) for name, value in header.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has a corrupt safetensors header ({_line(error)}); download it again") from error
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start != end:
            raise ValueError(f"{path} has a corrupt safetensors header (the bytes of {shown(name)} do not follow those "
                             "before); download it again")
        end += entry.nbytes
    if end != size:
        raise ValueError(f"{path} has {size} bytes where its header says {end}; it is cut short or corrupt")
    return entries, metadata


def _entry(path: Path, base: int, value: Any) -> Entry:
    """Where a tensor lies, as its part of the header says. Raises ValueError, KeyError or TypeError."""
    (start, end), shape = value["data_offsets"], value["shape"]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in (start, end, *shape)):
        raise ValueError(f"shape {shown(shape)} at {shown(start)} to {shown(end)}")
    entry = Entry(path, np.dtype(DTYPES[value["dtype"]]), tuple(shape), base + start)
    if len(shape) > _MOST_AXES or end - start != entry.nbytes:
        raise ValueError(f"{end - start} bytes for shape {shown(shape)} of {value['dtype']}")
    return entry


def _line(error: Exception) -> str:
    return shown(error.args[0]) if isinstance(error, KeyError) else " ".join(str(error).split())


def _read_index(path: Path) -> dict[str, Entry]:
    try:
        files = read_object(path)["weight_map"]
        shards = sorted(set(files.values()))
        if any(not shard or Path(shard).name != shard for shard in shards):
            raise ValueError("a shard outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no index of safetensors shards (a JSON object with weight_map)") from error
    if missing := [shard for shard in shards if not (path.parent / shard).is_file()]:
        raise ValueError(f"{path} names {missing[0]}, which is not beside it; download all {len(shards)} shards")
    entries: dict[str, Entry] = {}
    for shard in shards:
        found = read_header(path.parent / shard)
        if absent := sorted(name for name, file in files.items() if file == shard and name not in found):
            raise ValueError(f"{path} promises {absent[0]!r} in {shard}, which does not hold it")
        if twice := sorted(entries.keys() & found.keys()):
            raise ValueError(f"{path}: {shown(twice[0])} stands in {shard} and in another shard")
        entries |= found
    return entries


def _find(folder: Path) -> Path:
    """The one index or file to read in a folder."""
    shard = re.compile(r".*-\d{5}-of-\d{5}(\.\w+)?\.safetensors")  # older ones name the variant last
    found = sorted(folder.glob("*.safetensors.index*.json"))
    found += [path for path in sorted(folder.glob("*.safetensors")) if not shard.fullmatch(path.name)]
    stem = lambda path: path.name.removesuffix(".safetensors.index.json").removesuffix(".safetensors")
    chosen = [path for path in found if "." not in stem(path)] or found
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise ValueError(f"{folder} has several sets of weights ({', '.join(p.name for p in chosen)}); name one")
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES):
        refusal = "which can run code when read; convert them to safetensors"
        raise ValueError(f"{folder} has only pickled weights ({pickles[0]}), {refusal}")
    raise ValueError(f"{folder} has no .safetensors file and no index of them; give the folder of a model")


def in_groups(items: Iterable, size: Callable[[Any], float], limit: float) -> Iterator[list]:
    """Neighbours whose sizes are together at most `limit` (that of one alone may be larger); at least one group."""
    group, held = [], 0
    for item in items:
        if group and held + size(item) > limit:
            yield group
            group, held = [], 0
        group.append(item)
        held += size(item)
    yield group


def _write(file, tensors: list[tuple[str, np.ndarray | Deferred]], metadata: Mapping[str, str]) -> int:
    """One safetensors file, widest dtypes first so that every tensor is aligned; returns the tensors' bytes."""
    tensors = sorted(tensors, key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": {**metadata, "format": "pt"}}  # which transformers insists on
    position = 0
    for name, tensor in tensors:
        if tensor.dtype not in _NAMES:
            raise ValueError(f"tensor {name!r} has dtype {tensor.dtype}, which safetensors cannot hold; cast it")
        offsets = [position, position + tensor.nbytes]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in tensors:
        file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return position

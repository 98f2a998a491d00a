"""What frozen text encoders make of captions, on disk: one row for each different caption, found by the caption itself.

Rows lie in the shards of caches (`lgm.data.cache`), floats as they are, in a shorter type or as int8 with one scale a
token. Where the network is told which tokens count, the others are not kept; where padding counts, as it does to
Stable Diffusion and Flux, all of a row is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from lgm.casting import cast
from lgm.data.cache import Shard, open_shards

FLOATS = ("text", "pooled")  # parts of a row: features [L, D], a vector [P]
STORED = ("float32", "float16", "bfloat16", "int8")
NOTHING = b"\xff"  # stands for no caption: these bytes are no text
Form = Mapping[str, tuple[tuple[int, ...], np.dtype]]  # part -> (shape, dtype) of one caption's; "text_mask" or not


def keys(captions: Sequence[str | None]) -> np.ndarray:
    """uint64 [N, 2] by which the rows of captions are found; None is no caption."""
    said = lambda caption: NOTHING if caption is None else caption.encode(errors="surrogatepass")
    hashes = (hashlib.sha256(said(caption)).digest()[:16] for caption in captions)
    return np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)


def packed(states: Mapping[str, np.ndarray], stored: str, reached: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The arrays of a shard, of states "text" [N, L, D], "pooled" [N, P] and "text_mask" [N, L], as there are.

    With a mask "text" becomes [N, M, D] of the M tokens that the longest has, those that count first; with `reached`,
    bool [L, D], [N, K] of where that is True, the rest being zeros. Raises ValueError, one line, where `stored` cannot
    hold a value.
    """
    arrays = {name: states[name] for name in (*FLOATS, "text_mask") if name in states}
    if "text_mask" in arrays:
        arrays["text"] = _counting(arrays["text"], arrays["text_mask"])
    kept = {}
    for name, rows in arrays.items():
        if name == "text_mask":
            kept[name] = rows.astype(bool)
        elif stored == "int8":
            kept[name], kept[f"{name}_scale"] = quantized(cast(name, rows, np.float32))
        else:
            kept[name] = cast(name, rows, getattr(ml_dtypes, stored, None) or np.dtype(stored))
    if reached is not None:
        kept["text"] = kept["text"][:, reached]
    return kept


def quantized(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 [..., D], float32 [...]) of float32 [..., D]: each row's largest magnitude becomes 127."""
    scale = np.abs(rows).max(-1) / 127
    return np.rint(rows / np.where(scale > 0, scale, 1)[..., None]).astype(np.int8), scale.astype(np.float32)


def row_bytes(form: Form, stored: str, reached: np.ndarray | None = None) -> int:
    """Bytes on disk of a caption all of whose tokens are kept."""
    each = 1 if stored == "int8" else 2 if stored.endswith("16") else 4
    shapes = [form[name][0] for name in FLOATS if name in form]
    scales = sum(4 * math.prod(shape[:-1]) for shape in shapes) if stored == "int8" else 0
    zeros = 0 if reached is None else int((~reached).sum())
    return each * (sum(map(math.prod, shapes)) - zeros) + scales + math.prod(form.get("text_mask", ((0,),))[0])


class States:
    """The rows of complete caches, all of one form. Captions are looked up when they are asked for, rows are read when
    they are used, and served in the type that they are stored in, int8 in that of the form."""

    def __init__(self, folders: Mapping[str | Path, Mapping[str, str]], form: Form, stored: str,
                 reached: np.ndarray | None = None):
        self.reached, self.form, self.name = reached, form, " and ".join(map(str, folders))
        computed = next(form[name][1] for name in FLOATS if name in form)
        self.dtype = np.dtype(computed if stored == "int8" else getattr(ml_dtypes, stored, None) or stored)
        self.width = sum(math.prod(form[name][0]) for name in FLOATS if name in form)
        self.masks = math.prod(form["text_mask"][0]) if "text_mask" in form else 0
        self.shards = [shard for folder, made_of in folders.items() for shard in open_shards(folder, made_of)]
        found = np.concatenate([shard.whole("key") for shard in self.shards])
        self.starts = np.cumsum([0, *(shard.rows for shard in self.shards)])
        self.order = np.lexsort((found[:, 1], found[:, 0]))
        self.sorted = found[self.order]
        self.nothing = keys([None])[0]

    def __len__(self) -> int:
        return len(self.order)

    def find(self, captions: Sequence[str | None]) -> Chosen:
        """The rows of captions. Raises ValueError, one line, for the first that is not there."""
        wanted = keys(captions)
        at = np.minimum(np.searchsorted(self.sorted[:, 0], wanted[:, 0]), len(self) - 1)
        if len(odd := np.flatnonzero((self.sorted[at] != wanted).any(1))):
            missing = captions[odd[0]]
            shown = "what stands for no caption" if missing is None else f"the caption {missing!r}"
            raise ValueError(f"{shown} is not in {self.name}; encode with this config again, which makes what is "
                             "missing")
        return Chosen(self, self.order[at])

    def read(self, place: int, row_F: np.ndarray) -> None:
        """Fill in the floats of a row, its parts one after another."""
        (shard, number), start = self._locate(place), 0
        for name in FLOATS:
            if name not in self.form:
                continue
            shape = self.form[name][0]
            values, out_F = shard.row(name, number), row_F[start : start + math.prod(shape)]
            start += math.prod(shape)
            if name == "text" and self.reached is not None:
                values, cells = np.zeros(shape, values.dtype), values
                values[self.reached] = cells
            if f"{name}_scale" in shard.slices:
                values = values * shard.row(f"{name}_scale", number)[..., None]  # float32
            if name == "text" and self.masks:
                mask = shard.row("text_mask", number).astype(bool)
                out_F[:], whole = 0, out_F.reshape(shape)
                whole[mask] = values[: mask.sum()].astype(self.dtype)
            elif values.dtype == self.dtype:  # as words: numpy copies floats that are not its own one by one
                words = f"u{self.dtype.itemsize}"
                out_F.view(words)[:] = values.reshape(-1).view(words)
            else:
                out_F[:] = values.reshape(-1).astype(self.dtype)

    def mask(self, place: int) -> np.ndarray:
        """bool [1 + L]: whether there is a caption, then which of its tokens count where the network is told."""
        shard, row = self._locate(place)
        told = [not np.array_equal(shard.row("key", row), self.nothing)]
        return np.concatenate([told, shard.row("text_mask", row) if self.masks else []]).astype(bool)

    def _locate(self, place: int) -> tuple[Shard, int]:
        shard = int(np.searchsorted(self.starts, place, side="right")) - 1
        return self.shards[shard], int(place - self.starts[shard])


class Chosen:
    """Rows [N, F] of captions, read as they are indexed by arrays; `numpy.asarray` reads all."""

    def __init__(self, states: States, places: np.ndarray):
        self.states, self.places = states, places
        self.shape, self.dtype = (len(places), states.width), states.dtype

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices) -> np.ndarray:
        places = self.places[indices]
        rows = np.empty((np.size(places), self.shape[1]), self.dtype)
        for row_F, place in zip(rows, np.reshape(places, -1).tolist(), strict=True):
            self.states.read(place, row_F)
        return rows.reshape(*np.shape(places), self.shape[1])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[np.arange(len(self))].astype(dtype or self.dtype, copy=False)

    def masks(self) -> np.ndarray:
        """bool [N, 1 + L], see `States.mask`."""
        masks = [self.states.mask(place) for place in self.places.tolist()]
        return np.array(masks, bool).reshape(len(self), 1 + self.states.masks)


def _counting(text_NLD: np.ndarray, mask_NL: np.ndarray) -> np.ndarray:
    """[N, M, D] of the tokens that count, zeros after them."""
    counts_N = mask_NL.sum(1)
    first_NM = np.argsort(~mask_NL.astype(bool), axis=1, kind="stable")[:, : max(1, counts_N.max(initial=0))]
    rows = np.take_along_axis(text_NLD, first_NM[:, :, None], 1)
    return np.where(np.arange(rows.shape[1])[None, :, None] < counts_N[:, None, None], rows, 0).astype(text_NLD.dtype)

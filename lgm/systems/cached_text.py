"""A run's text side that is read from a cache: what a folder's frozen text encoders made of its captions."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgm import files
from lgm.data.cache import read_made_of
from lgm.data.states import FLOATS, STORED, Chosen, Form, States
from lgm.models import Conditioning, Model, Params
from lgm.systems.release import TEXT
from lgm.systems.text import FolderText, run_encoder, told

SETS = ("train", "heldout", "prompts")  # whose captions a cache has, each in a folder of its own


@dataclasses.dataclass(frozen=True, eq=False)
class CachedText:
    """The text side of a diffusers folder whose text encoders are not there.

    Captions become one row of floats: the states that the encoders made of them, side by side. `form` says which, and
    `states` has them; None in a plan, where `dtype` says what rows are of.
    """

    folder: FolderText
    form: Form
    states: States | None
    dtype: np.dtype

    def encode(self, captions: Sequence[str]) -> tuple[Chosen, np.ndarray]:
        """(rows [B, F], read when they are indexed; mask [B, 1 + L] bool, whether there is a caption and then which of
        its tokens count). Raises ValueError, one line, for a caption that the cache has not."""
        rows = self.states.find(captions)
        return rows, rows.masks()

    @property
    def unconditional(self) -> tuple[np.ndarray, np.ndarray]:
        """The row [F] and mask [1 + L] of no caption."""
        if self.states is None:
            width = sum(math.prod(self.form[name][0]) for name in FLOATS if name in self.form)
            return np.zeros(width, self.dtype), np.zeros(1 + math.prod(self.form.get("text_mask", ((0,),))[0]), bool)
        row = self.states.find([None])
        return row[np.array([0])][0], row.masks()[0]

    def condition(self, params: Mapping[str, Params] | None, row_BF: jax.Array, mask_BK: jax.Array) -> Conditioning:
        """What the denoiser is told of captions' rows; no parameter is needed."""
        count, parts, start = len(row_BF), {}, 0
        for name in FLOATS:
            if name in self.form:
                shape, dtype = self.form[name]
                end = start + math.prod(shape)
                parts[name] = row_BF[:, start:end].reshape(count, *shape).astype(dtype)
                start = end
        if "text_mask" in self.form:
            parts["text_mask"] = mask_BK[:, 1:]
        # zeros stand for what the encoders say, for sizes and scales to be told, which do not depend on it
        rest = _filled(self.folder, 0, count)
        return self.folder.with_nothing(dataclasses.replace(rest, **parts), mask_BK[:, 0])


def has_encoders(text: FolderText | None) -> bool:
    """Whether there is anything to keep of a text side: a class-conditional system has no encoder."""
    return text is not None and bool(text.pipeline.tokenizers)


def form_of(text: FolderText) -> Form:
    """What is kept of one caption."""
    params = {place: text.pipeline.models[place].abstract() for place in text.pipeline.tokenizers}
    ids, mask = (jax.ShapeDtypeStruct((1, sum(text.lengths.values())), dtype) for dtype in (jnp.int32, bool))
    cond = jax.eval_shape(text.condition, params, ids, mask)
    found = {name: getattr(cond, name) for name in (*FLOATS, "text_mask")}
    return {name: (part.shape[1:], np.dtype(part.dtype)) for name, part in found.items() if part is not None}


def reached(text: FolderText) -> np.ndarray | None:
    """Where in the features [L, D] the text encoders' words stand: bool, None for everywhere. SD3 fills CLIP's with
    zeros to the width of T5's, and has zeros in the place of a T5 that its folder has not; those need not be kept."""
    found = np.asarray(_filled(text, 1, 1).text[0] != 0)
    return None if found.all() else found


def _filled(text: FolderText, value: float, count: int) -> Conditioning:
    """The conditioning of `count` captions of which the text encoders say nothing but `value`."""
    ids = {place: jnp.zeros((count, length), jnp.int32) for place, length in text.lengths.items()}
    fill = lambda found: jax.tree.map(lambda a: jnp.full((count, *a.shape[1:]), value, a.dtype), found)
    return told(text.pipeline, lambda place: fill(_output(text.pipeline.models[place], text.lengths[place])), ids,
                text.size, text.pipeline.defaults.guidance)


@functools.lru_cache(maxsize=8)
def _output(model: Model, length: int) -> Any:
    """Shapes of what a text encoder makes of one caption."""
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    return jax.eval_shape(functools.partial(run_encoder, model), model.abstract(), ids)


def made_of(source: str, text: FolderText, form: Form) -> dict[str, str]:
    """What states depend on, beside the captions: text encoders, tokenizers, the type that they compute in, shapes."""
    folder = files.local(source)
    system = text.pipeline.system
    places = [place for place in TEXT if place in text.pipeline.tokenizers]
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, (shape, _) in form.items())
    return {"text_encoders": _fingerprint(folder / place for place in places),
            "tokenizers": _fingerprint(folder / system.tokenizer_of[place] for place in places),
            "computed": text.pipeline.models[places[0]].config.dtype, "states": shapes}


def _fingerprint(folders) -> str:
    """A short hash of all files in folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in Path(folder).iterdir() if path.is_file()):
            digest.update(f"{folder.name}/{path.name} {files.sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def open_cached_text(cache: str, source: str, text: FolderText) -> CachedText:
    """The text side of the folder `source` by the states that the folder `cache` has.

    Raises ValueError, one line, where they are absent, not complete or of other text encoders or tokenizers.
    """
    form = form_of(text)
    ours, folders = made_of(source, text, form), {}
    for name in SETS:
        folder = files.place(cache, "config.data.cache") / "text" / name
        theirs = read_made_of(folder)
        folders[folder] = ours | {key: theirs.get(key) for key in ("captions", "stored")}
    stored = {kept["stored"] for kept in folders.values()}
    if len(stored) != 1 or not stored <= set(STORED):
        raise ValueError(f"the states of text in {cache} are kept as {' and as '.join(sorted(map(str, stored)))}; "
                         "encode with this config again")
    states = States(folders, form, stored.pop(), reached(text))
    return CachedText(text, form, states, states.dtype)

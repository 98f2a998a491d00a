"""Single-file checkpoints of Stable Diffusion 1, 2, XL, 3, Flux.1, DiT and SiT, read as diffusers' folders are.

A file holds several networks under prefixes. `section` shows one of them under the names that diffusers uses, without
reading a tensor, so that one key map serves both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from lgm.interop import original_names as names
from lgm.interop.original_names import Original, Source
from lgm.interop.weights import Entry, Weights

# place in a diffusers folder -> class there -> (prefix in single files, layout below it), the likeliest first
SECTIONS = {
    "unet": {"UNet2DConditionModel": [("model.diffusion_model.", names.unet), ("", names.unet)]},
    "transformer": {
        "SD3Transformer2DModel": [("model.diffusion_model.", names.sd3), ("", names.sd3)],
        "DiTTransformer2DModel": [("", names.dit)],
        "SiTTransformer2DModel": [("", names.dit)],
        "FluxTransformer2DModel": [("", names.flux), ("model.diffusion_model.", names.flux)],
    },
    "vae": {"AutoencoderKL": [("first_stage_model.", names.autoencoder), ("vae.", names.autoencoder),
                              ("", names.autoencoder)]},
    "text_encoder": {"CLIP": [
        ("cond_stage_model.transformer.", names.clip_text),
        ("cond_stage_model.model.", names.open_clip_text),
        ("conditioner.embedders.0.transformer.", names.clip_text),
        ("text_encoders.clip_l.transformer.", names.clip_text_unprojected),
    ]},
    "text_encoder_2": {
        "CLIP": [
            ("conditioner.embedders.1.model.", names.open_clip_text),
            ("text_encoders.clip_g.transformer.", names.clip_text),
        ],
        "T5": [("text_encoders.t5xxl.transformer.", names.same)],
    },
    "text_encoder_3": {"T5": [("text_encoders.t5xxl.transformer.", names.same)]},
}  # fmt: skip
_PREFIXES = tuple(
    {p for kinds in SECTIONS.values() for found in kinds.values() for p, _ in found if p} | {"model_ema."}
)
# and a projection where none is used, which SD 2's and Flux's files have
_IGNORED = ("logit_scale", "attn_mask", "position_ids", "text_projection", "text_projection.weight")


def original_of(place: str, name: str, config: Any) -> Original | None:
    """The layout of the network at `place` in single files; None where it is not known."""
    found = next((v for k, v in SECTIONS.get(place, {}).items() if name.startswith(k)), None)
    return found[0][1](config) if found else None


def section(weights: Weights, place: str, name: str, config: Any, wanted: Iterable[str]) -> Weights | None:
    """The network at `place` of class `name`, with the tensors `wanted`, or None where the file does not hold it.

    A tensor that is missing from the file is missing from the result, and one of that network that diffusers has no
    name for keeps its own, so that the key map names both. SD 2's text encoder has one block more than is used.
    """
    wanted = list(wanted)
    for prefix, layout in next((v for k, v in SECTIONS.get(place, {}).items() if name.startswith(k)), []):
        original = layout(config)
        sources = {theirs: original(theirs) for theirs in wanted}
        if sum(prefix + s.name in weights.entries for s in sources.values()) > len(wanted) // 2:
            return _translated(weights, prefix, sources, config)
    return None


def _translated(weights: Weights, prefix: str, sources: dict[str, Source], config: Any) -> Weights:
    entries, changes = {}, {}
    for theirs, source in sources.items():
        entry = weights.entries.get(prefix + source.name)
        if entry is None:
            continue
        entries[theirs] = _part(entry, source)
        if source.change in _CHANGES:
            changes[theirs] = _CHANGES[source.change]
    used = {prefix + source.name for source in sources.values()}
    unused_block = f"transformer.resblocks.{getattr(config, 'depth', 0)}."
    for name, entry in weights.entries.items():
        inside = name.startswith(prefix) and not any(name.startswith(p) for p in _PREFIXES if p != prefix)
        inner = name.removeprefix(prefix)
        if inside and name not in used and not inner.endswith(_IGNORED) and not inner.startswith(unused_block):
            entries[inner] = entry
    return Weights(weights.path, entries, changes)


def _part(entry: Entry, source: Source) -> Entry:
    """Where the rows that `source` names lie, in the shape that the change will give them."""
    shape, start = entry.shape, entry.start
    if source.rows is not None:
        first, last, of = source.rows
        if shape[0] % of:
            raise ValueError(f"{entry.path}: {source.name!r} has {shape[0]} rows, which are not {of} equal parts")
        unit = shape[0] // of
        start += first * unit * int(np.prod(shape[1:])) * entry.dtype.itemsize
        shape = ((last - first) * unit, *shape[1:])
    if source.change == "transpose":
        shape = shape[::-1]
    if source.change == "squeeze" and shape[2:] == (1, 1):
        shape = shape[:2]
    return dataclasses.replace(entry, start=start, shape=shape)


def _swapped(rows: np.ndarray) -> np.ndarray:
    first, second = np.split(rows, 2)
    return np.concatenate([second, first])


_CHANGES = {
    "swap": _swapped,
    "transpose": lambda matrix: matrix.reshape(matrix.shape[::-1]).T,
    "identity": lambda matrix: np.eye(len(matrix), dtype=matrix.dtype),
}

"""Single files in the original layouts, written: the way back of `single_file`."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lgm.casting import cast
from lgm.interop.components import all_tensors, component
from lgm.interop.original_names import Original, Source
from lgm.interop.schedules import Schedule
from lgm.interop.single_file import layouts_at, markers_of
from lgm.interop.tensor_files import Deferred, Weights, save
from lgm.models import Params

WHOLE = "model"  # the stem of a file that holds all networks; others have that of their network's place


class Network(NamedTuple):
    """One network of a folder; `beside` are tensors that nothing here computes with, `dtype` is that of
    `Component.dtype_of`."""

    name: str
    config: Any
    params: Params
    beside: Weights | None
    dtype: Any


def save_originals(folder: Path, networks: Mapping[str, Network], prefixes: Mapping[str, str],
                   schedule: Schedule) -> list[str]:
    """Write the networks, by place, in the layout of their original: one file with their `prefixes`, or where there
    are none one file a network. Returns the files' names.

    Raises ValueError, one line, for what that layout cannot say, before anything is written.
    """
    metadata, markers = markers_of(schedule)
    files: dict[str, list[tuple[str, Deferred]]] = {}
    for place, network in networks.items():
        stem = WHOLE if prefixes else place
        files.setdefault(stem, []).extend(_tensors(place, network, prefixes.get(place, "")))
    if prefixes:
        files[WHOLE] += [(name, Deferred((0,), np.dtype(np.float32), lambda: np.zeros(0, np.float32)))
                         for name in markers]  # fmt: skip
    for stem, tensors in files.items():
        save(tensors, folder, stem, float("inf"), metadata if prefixes else {})
    return [f"{stem}.safetensors" for stem in files]


def _tensors(place: str, network: Network, prefix: str) -> list[tuple[str, Deferred]]:
    name, config = network.name, network.config
    layout = next((layout for begins, layout in layouts_at(place, name) if begins == prefix), None)
    if layout is None:
        raise ValueError(f"{place}, a {name}, has no original layout that is known here; export a folder of diffusers")
    named = all_tensors(name, config, network.params, network.beside)
    dtype_of = functools.partial(component(name).dtype_of, dtype=network.dtype)
    more = component(name).only_original(config) if (prefix, layout) in component(name).layouts else {}
    try:
        made = original_tensors(named, layout(config), dtype_of)
        extra = original_tensors(more.items(), Source, dtype_of)
        return [(prefix + key, tensor) for key, tensor in itertools.chain(made, extra)]
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def original_tensors(tensors: Iterable[tuple[str, np.ndarray]], original: Original, dtype_of: Callable[[str], Any]
                     ) -> Iterator[tuple[str, Deferred]]:  # fmt: skip
    """What the `original` layout makes of a checkpoint's `tensors`: joined where it fuses them, each made when it is
    written and cast to `dtype_of(name)`, None for its own type.

    Raises ValueError, one line, for tensors that are one in the original and differ, or that it leaves out and are no
    identity.
    """
    parts: dict[str, list[tuple[Source, str, np.ndarray]]] = {}
    for name, tensor in tensors:
        source = original(name)
        if source.change == "identity":
            if tensor.shape != (len(tensor),) * 2 or not np.array_equal(tensor, np.eye(len(tensor))):
                raise ValueError(f"{name!r} is no identity, which it is in files of the original layout; export a "
                                 "folder of diffusers")
            continue
        parts.setdefault(source.name, []).append((source, name, tensor))
    for key, found in parts.items():
        found = sorted(found, key=lambda part: (part[0].rows or (0,))[0])
        if found[0][0].rows is None:
            first = found[0]
            if other := next((name for _, name, tensor in found[1:] if not np.array_equal(first[2], tensor)), None):
                raise ValueError(f"{first[1]!r} and {other!r} differ; they are one tensor in files of the original "
                                 "layout")
            found = found[:1]
        ends = [0, *(source.rows[1] / source.rows[2] for source, *_ in found if source.rows)]
        if any(source.rows and source.rows[0] / source.rows[2] != end
               for (source, *_), end in zip(found, ends, strict=False)) or ends[-1] not in (0, 1):  # fmt: skip
            raise ValueError(f"parts of {key!r} are missing, which are one tensor in files of the original layout")
        yield key, _joined(found, dtype_of)


def _joined(parts: list[tuple[Source, str, np.ndarray]], dtype_of: Callable[[str], Any]) -> Deferred:
    changed = [(name, _changed(tensor, source.change)) for source, name, tensor in parts]
    name, first = changed[0]
    floats = jnp.issubdtype(first.dtype, jnp.floating)
    dtype = np.dtype(wanted) if floats and (wanted := dtype_of(name)) is not None else first.dtype
    shape = first.shape if len(changed) == 1 else (sum(len(tensor) for _, tensor in changed), *first.shape[1:])

    def make() -> np.ndarray:
        made = [cast(name, tensor, dtype if floats else None) for name, tensor in changed]
        return made[0] if len(made) == 1 else np.concatenate(made)

    return Deferred(shape, dtype, make)


def _changed(tensor: np.ndarray, change: str | None) -> np.ndarray:
    """A view of it as the original has it, or for "swap" a copy."""
    match change:
        case "swap":
            return np.roll(tensor, len(tensor) // 2, 0)
        case "transpose":
            return tensor.T
        case "squeeze":
            return tensor.reshape(*tensor.shape, 1, 1)
    return tensor

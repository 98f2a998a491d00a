"""Named presets of every family, and a model's parameters as a table; nothing is allocated."""

from __future__ import annotations

import math
from typing import Any

import jax

from lgm.models import FAMILIES, family
from lgm.models.base import Model
from lgm.parsing import near_miss

_HEADER = ("parameter", "shape", "axes", "count")


def presets() -> dict[str, Any]:
    """Every published shape as a configuration, by "family/name"."""
    return {f"{found.name}/{name}": found.config(**options)
            for found in map(family, FAMILIES) for name, options in found.presets.items()}  # fmt: skip


def preset(name: str) -> Any:
    """The configuration of "family/name", or of "name" where one family alone has it.

    Raises ValueError, one line, for a name that is not there or that several families have.
    """
    found = presets()
    matches = [key for key in found if name in (key, key.partition("/")[2])]
    if len(matches) > 1:
        raise ValueError(f"preset {name!r} may be {' or '.join(matches)}; give one of them")
    if not matches:
        raise ValueError(f"there is no preset {name!r}{near_miss(name, [key.partition('/')[2] for key in found])}")
    return found[matches[0]]


def parameter_table(model: Model, levels: int | None = None) -> str:
    """A line for every parameter: path, shape, logical axes and count; the last line is their sum and size.

    With `levels`, parameters that share so many first parts of their paths are one line. Stacked blocks are one
    parameter with a leading axis of layers. Raises ValueError where `levels` is below 1.
    """
    if levels is not None and levels < 1:
        raise ValueError(f"levels={levels} must be at least 1")
    leaves = jax.tree_util.tree_flatten_with_path(model.abstract())[0]
    axes = jax.tree.leaves(model.logical_axes(), is_leaf=lambda leaf: isinstance(leaf, tuple))
    rows: dict[str, tuple[str, str, int]] = {}
    for (path, leaf), names in zip(leaves, axes, strict=True):
        parts = [str(key.key) for key in path]
        row, size = "/".join(parts[:levels]), math.prod(leaf.shape)
        shape, named = " x ".join(map(str, leaf.shape)), ", ".join(name or "-" for name in names)
        rows[row] = ("", "", rows[row][2] + size) if row in rows else (shape, named, size)
    total = sum(count for *_, count in rows.values())
    cells = [_HEADER, *((path, shape, named, f"{count:,}") for path, (shape, named, count) in rows.items())]
    widths = [max(len(line[i]) for line in cells) for i in range(3)]
    right = max(len(f"{total:,}"), len(_HEADER[3]))
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[3].rjust(right)])
             for line in cells]  # fmt: skip
    size = f"{total:,} parameters: {4 * total / 1e9:.4g} GB in float32, {2 * total / 1e9:.4g} GB in bfloat16"
    return "\n".join([*lines, size])

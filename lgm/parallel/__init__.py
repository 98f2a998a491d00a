"""Meshes, layouts and the forms of parallelism: one table maps logical axes to the mesh's named axes."""

from lgm.parallel.fetch import fetch
from lgm.parallel.layout import (
    Layout,
    batch_part,
    constrain,
    current,
    gathered,
    make_layout,
    platform,
    put_batch,
    shardings,
    using,
)
from lgm.parallel.mesh import make_mesh
from lgm.parallel.rules import AXES, RULES, partition, with_overrides

__all__ = [
    "AXES", "RULES", "Layout", "batch_part", "constrain", "current", "fetch", "gathered", "make_layout",
    "make_mesh", "partition", "platform", "put_batch", "shardings", "using", "with_overrides",
]  # fmt: skip

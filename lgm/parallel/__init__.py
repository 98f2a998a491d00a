"""Meshes, layouts and the forms of parallelism: one table maps logical axes to the mesh's named axes."""

from lgm.parallel.fetch import agreed, even, fetch, in_batches, on_first, put, spread
from lgm.parallel.layout import (
    Layout,
    batch_part,
    constrain,
    current,
    device_kind,
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
    "AXES", "RULES", "Layout", "agreed", "batch_part", "constrain", "current", "device_kind", "even", "fetch",
    "gathered", "in_batches", "make_layout", "make_mesh", "on_first", "partition", "platform", "put", "put_batch",
    "shardings", "spread", "using", "with_overrides",
]  # fmt: skip

"""Meshes and sharding rules: one table maps logical axes of parameters to the mesh's named axes."""

from lgm.parallel.fetch import fetch
from lgm.parallel.mesh import AXES, RULES, batch_sharding, make_mesh, put_batch, replicated, shardings
from lgm.parallel.target import platform

__all__ = ["AXES", "RULES", "batch_sharding", "fetch", "make_mesh", "platform", "put_batch", "replicated", "shardings"]

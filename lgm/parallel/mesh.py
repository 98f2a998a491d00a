"""The device mesh of a run, and where each parameter and batch lies on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "context", "tensor", "stage")

# logical axis -> mesh axis; what is not named here, or does not divide, is replicated
RULES: dict[str, str | None] = {
    "layers": "stage",
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    "conv_in": "fsdp",
    "conv_out": "tensor",
}


def make_mesh(sizes: Mapping[str, int], devices=None) -> jax.sharding.Mesh:
    """A mesh with all of `AXES`; one size may be -1 and takes the devices that are left.

    Raises ValueError, one line, when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes.get(axis, 1) for axis in AXES]
    fixed = math.prod(s for s in shape if s != -1)
    asked = ", ".join(f"{a}={s}" for a, s in zip(AXES, shape, strict=True) if s != 1)
    if shape.count(-1) > 1 or fixed <= 0 or len(devices) % fixed or (-1 not in shape and fixed != len(devices)):
        raise ValueError(
            f"config.mesh ({asked}) does not fit {len(devices)} devices; the sizes must multiply to {len(devices)}, "
            "and one of them may be -1"
        )
    shape = [len(devices) // fixed if s == -1 else s for s in shape]
    grid = np.asarray(devices).reshape(shape)
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shardings(mesh: jax.sharding.Mesh, abstract: Any, axes: Any, rules: Mapping[str, str | None] = RULES) -> Any:
    """A NamedSharding for every leaf of `abstract`, from its logical `axes` through `rules`.

    A dimension is split where its rule's mesh axis divides it and is not already used by an earlier dimension.
    """

    def sharding(leaf, names):
        used, spec = set(), []
        for size, name in zip(leaf.shape, names, strict=True):
            axis = rules.get(name)
            fits = axis is not None and axis not in used and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0
            spec.append(axis if fits else None)
            used.add(axis if fits else None)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, abstract, axes)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Examples split over the data-parallel axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def put_batch(mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's share of a batch as global arrays."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}

"""The device mesh of a run: one grid with all named axes, over ICI within a slice or node and DCN between them."""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from lgm.parallel.rules import AXES


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None,
              dcn: Mapping[str, int] | None = None) -> jax.sharding.Mesh:
    """A mesh with all of `AXES`; one size may be -1 and takes the devices that are left.

    Several slices (TPU) or nodes are laid out so that all axes but those of `dcn` stay within one: {"data": 4} says
    that of the data axis a factor of 4 crosses from slice to slice. Without `dcn` the slices go to the first of data,
    fsdp and stage that they divide. Raises ValueError, one line, when the sizes do not multiply to the number of
    devices or `dcn` to that of the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _resolved(sizes, len(devices))
    slices = _slices(devices)
    outer = _dcn(dict(dcn or {}), sizes, len(slices))
    inner = {axis: sizes[axis] // outer[axis] for axis in AXES}
    grids = [_within(list(inner.values()), members) for members in slices]
    # [slices, inner...] -> every axis has its part of the slices as its slow part
    grid = np.stack(grids).reshape(*outer.values(), *inner.values())
    order = itertools.chain.from_iterable((i, i + len(AXES)) for i in range(len(AXES)))
    grid = grid.transpose(*order).reshape(*sizes.values())
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _resolved(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """The size of every axis, with the -1 filled in."""
    shape = {axis: sizes.get(axis, 1) for axis in AXES}
    asked = ", ".join(f"{axis}={size}" for axis, size in shape.items() if size != 1) or "all 1"
    free = [axis for axis, size in shape.items() if size == -1]
    for axis, size in shape.items():
        if size < 1 and size != -1:
            raise ValueError(f"config.mesh.{axis}={size} must be at least 1, or -1 for the devices that are left")
    if len(free) > 1:
        raise ValueError(f"config.mesh ({asked}) has -1 for {' and '.join(free)}; give it to one of them")
    fixed = math.prod(size for size in shape.values() if size != -1)
    if count % fixed or (not free and fixed != count):
        fit = "leave data=-1 for the rest" if count % fixed == 0 else f"make the others' product divide {count}"
        raise ValueError(f"config.mesh ({asked}) does not fit {count} devices, which {fixed} "
                         f"{'do not use up' if count % fixed == 0 else 'does not divide'}; {fit}")
    return {axis: count // fixed if size == -1 else size for axis, size in shape.items()}


def refitted(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """The sizes for `count` devices where some of those they were made for are lost: data and fsdp change alone.

    fsdp becomes the least divisor of what there is for both that is no smaller than before, so that the state fits as
    it did, or all of it. Sizes that fit stay as they are, and those that nothing can make fit too: their error says so.
    """
    shape = {axis: sizes.get(axis, 1) for axis in AXES}
    try:
        return _resolved(shape, count)
    except ValueError:
        pass
    others = math.prod(size for axis, size in shape.items() if axis not in ("data", "fsdp"))
    if others < 1 or count % others:
        return dict(sizes)
    both = count // others
    asked = shape["fsdp"] if shape["fsdp"] > 0 else -(-both // max(shape["data"], 1))
    fsdp = next((n for n in range(asked, both) if both % n == 0), both)
    return shape | {"data": both // fsdp, "fsdp": fsdp}


def _slices(devices: list) -> list[list]:
    """The devices of each slice, or of each process where that is a node: hosts of one TPU slice are none."""
    for name in ("slice_index",) if devices[0].platform == "tpu" else ("slice_index", "process_index"):
        groups: dict[int, list] = {}
        for device in devices:
            groups.setdefault(getattr(device, name, 0) or 0, []).append(device)
        if len(groups) > 1:
            break
    groups = [groups[key] for key in sorted(groups)]
    # uneven groups, as of a part of the devices, have no grid of their own: one flat grid then
    return groups if len({len(group) for group in groups}) == 1 else [devices]


def _dcn(dcn: dict[str, int], sizes: Mapping[str, int], slices: int) -> dict[str, int]:
    """The part of every axis that crosses slices."""
    for axis, size in dcn.items():
        if axis not in AXES:
            raise ValueError(f"config.mesh.dcn.{axis} is no mesh axis; there are {', '.join(AXES)}")
        if not isinstance(size, int) or size < 1 or sizes[axis] % size:
            raise ValueError(f"config.mesh.dcn.{axis}={size!r} does not divide {axis}={sizes[axis]}, whose part it is "
                             "between slices; give a divisor")
    if dcn:
        if math.prod(dcn.values()) != slices:
            raise ValueError(f"config.mesh.dcn={dcn} must multiply to the number of slices or nodes, {slices}")
        return {axis: dcn.get(axis, 1) for axis in AXES}
    outer, left = dict.fromkeys(AXES, 1), slices
    for axis in ("data", "fsdp", "stage", "context", "tensor"):
        outer[axis] = math.gcd(sizes[axis], left)
        left //= outer[axis]
    if left > 1:
        raise ValueError(f"{slices} slices or nodes do not divide into the mesh {dict(sizes)}; make data or fsdp a "
                         f"multiple of {slices}")
    return outer


def _within(shape: list[int], devices: list) -> np.ndarray:
    """One slice's grid, neighbours in it being neighbours on a TPU's interconnect where the devices fill a box of it.

    Those that are left after a host is lost need not: they lie in their own order, and a warning says what that costs.
    """
    if devices[0].platform == "tpu":
        # JAX lays a mesh over devices whose places are all those of a box
        places = np.array([(*device.coords, device.core_on_chip) for device in devices])
        if math.prod((np.ptp(places, axis=0) + 1).tolist()) == len(devices):
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        warnings.warn(f"the {len(devices)} TPU devices fill no box of their slice: neighbours in the mesh may be far "
                      "apart on its interconnect, and collectives slower", stacklevel=2)
    return np.asarray(devices).reshape(shape)

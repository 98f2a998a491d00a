"""A compiled step on more or fewer chips: the same program a chip, its collectives timed over groups of another size.

With the batch a chip held, what a chip computes does not change with the number of chips; only groups of devices that
extend along `data`, and those along `fsdp` where there are fewer chips than it had, do. (The update of the weights then
covers more of them, which is left out: it is a few milliseconds.)
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lgm.parallel import AXES, make_mesh
from lgm.planning.cost import cost_of
from lgm.planning.network import Network, torus
from lgm.planning.plan import Plan
from lgm.planning.program import Compiled, Program
from lgm.planning.topology import Topology, open_devices


@dataclasses.dataclass(frozen=True, eq=False)
class Resized:
    """`network`'s place, taken by that of a mesh of other sizes.

    sizes, resized: of all axes in the program and here. places: `network` of the devices here, in their mesh's order.
    """

    sizes: tuple[int, ...]
    resized: tuple[int, ...]
    here: Network

    def collective(self, kind: str, given: float, made: float, attributes: str) -> list[tuple[str, float, float]]:
        """As `Network.collective`, over the same axes of the mesh here."""
        joined = self.here.joined(attributes, math.prod(self.sizes))
        if joined.ndim > 1:  # a permutation: among neighbours at any size
            return self.here.collective(kind, given, made, "source_target_pairs={{0,1}}")
        spans = [len(set(axis)) > 1 for axis in np.unravel_index(joined, self.sizes)]
        axes = [np.arange(n) if spanned else np.arange(1) for n, spanned in zip(self.resized, spans, strict=True)]
        group = np.ravel_multi_index([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], self.resized)
        before, after = len(joined), len(group)
        if after == 1:
            return []
        if kind in ("all-gather", "reduce-scatter"):  # what is whole stays as large as it was
            made = made if kind == "all-gather" else given / after
            given = given if kind == "reduce-scatter" else made / after
        elif kind == "all-to-all":
            given = made = given * before / after
        members = ",".join(map(str, group))
        return self.here.collective(kind, given, made, f"replica_groups={{{{{members}}}}}")


    def between(self, kind: str, given: float, slices: int) -> tuple[str, float, float]:
        """As `Network.between`, over all slices that there are here."""
        return self.here.between(kind, given, len(np.unique(self.here.places[:, 0])))


def resized(mesh: dict[str, int], chips: int) -> dict[str, int]:
    """The sizes of a mesh on another number of chips: `data` takes up the change, then `fsdp` gives way."""
    fixed = math.prod(size for axis, size in mesh.items() if axis not in ("data", "fsdp"))
    fsdp = min(mesh.get("fsdp", 1), chips // fixed)
    return {**mesh, "fsdp": fsdp, "data": chips // fixed // fsdp}


@dataclasses.dataclass(frozen=True)
class Point:
    """A step on so many chips with the batch a chip of the program that it is timed from; bytes are a chip's.

    step, busy, mfu: by peaks. cycles: the step by those of the finished program, where there is one.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    step: float
    busy: float
    mfu: float
    ici_bytes: float
    dcn_bytes: float
    cycles: float | None = None


def weak_scaling(found: Plan, program: Program, compiled: Compiled,
                 topologies: Sequence[Topology]) -> tuple[Point, ...]:
    """A compiled plan's step on other slices of the same chip."""
    sizes = tuple(found.mesh.get(axis, 1) for axis in AXES)
    points = []
    for topology in topologies:
        share = topology.chip.share
        mesh = resized(found.mesh, topology.devices)
        devices = make_mesh(mesh, open_devices(topology)[0]).devices.flat
        network = Resized(sizes, tuple(mesh.get(axis, 1) for axis in AXES), torus(share, devices))
        cost = cost_of(compiled.module, share, network, program.kernels)
        points.append(Point(str(topology), topology.chips, {axis: n for axis, n in mesh.items() if n > 1}, cost.step,
                            cost.busy, found.model_flops / topology.chip.flops / cost.step,
                            cost.over("ici") * topology.chip.devices, cost.over("dcn") * topology.chip.devices,
                            compiled.finished and cost_of(compiled.finished, share, network, program.kernels).step))
    return tuple(points)

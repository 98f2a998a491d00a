"""How long a collective takes over the links that its devices have between them.

Within a slice: links of a torus, each both ways, by the dimensions along which a group of devices extends; a ring where
the slice wraps around, else a line. Within a GPU node: one port of a switch. Between slices or nodes: the data-center
network, over which every device carries its share of what its slice or node must exchange. Times are bytes / bandwidth
(no latency), the usual bound (Chan et al. 2007, doi:10.1002/cpe.1206).
"""

import dataclasses

import numpy as np

from lgm.parallel.chips import Chip
from lgm.planning.hlo import devices_joined


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """Where a mesh's devices are. `places` [devices, 1 + dims]: slice or node, then the place within it.

    wraps: the dimensions of a slice that close to a ring; empty for nodes with a switch. chip: of one device's share.
    """

    chip: Chip
    places: np.ndarray
    wraps: tuple[bool, ...]

    def collective(self, kind: str, given: float, made: float, attributes: str) -> list[tuple[str, float, float]]:
        """("ici" or "dcn", bytes that leave a device, seconds) of each network that a collective uses.

        `given` and `made` are bytes of its operand and its result on one device.
        """
        joined = self.joined(attributes, len(self.places))
        if kind == "collective-permute":
            return self._permute(joined, given)
        members = self.places[joined]
        slices = len(np.unique(members[:, 0]))
        local = members[members[:, 0] == members[0, 0]][:, 1:]
        count = len(local)
        whole = made if kind == "all-gather" else given  # of what the group holds together, or sums up
        passes = 2 if kind == "all-reduce" else 1
        rows = []
        if count > 1:
            moved = passes * whole * (count - 1) / count
            rate = self._rate(local)
            if kind == "all-to-all":  # half of all crosses the middle of the longest dimension
                longest = max((len(np.unique(local[:, d])) for d in range(local.shape[1])), default=1)
                rows.append(("ici", moved, max(moved / self.chip.ici, whole * longest / 4 / rate)))
            else:
                rows.append(("ici", moved, moved / rate))
        if slices > 1:
            moved = passes * whole * (slices - 1) / slices / (count if kind != "all-to-all" else 1)
            rows.append(("dcn", moved, moved / self.chip.dcn))
        return rows

    def between(self, kind: str, given: float, slices: int) -> tuple[str, float, float]:
        """("dcn", bytes that leave a device, seconds) of what a collective leaves to do between `slices` slices, each
        device exchanging with those at its place in the others. `given` are bytes that it brings."""
        others = {"all-gather": slices - 1, "all-reduce": 2 * (slices - 1) / slices, "collective-permute": 1}
        moved = given * others.get(kind, (slices - 1) / slices)
        return "dcn", moved, moved / self.chip.dcn

    def _permute(self, pairs: np.ndarray, given: float) -> list[tuple[str, float, float]]:
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if not len(pairs):
            return []
        across = (self.places[pairs[:, 0], 0] != self.places[pairs[:, 1], 0]).any()
        rate = self.chip.dcn if across else self.chip.link
        return [("dcn" if across else "ici", given, given / rate)]

    @staticmethod
    def joined(attributes: str, count: int) -> np.ndarray:
        """One group of devices that a collective joins, all of `count` if none is named, or a permutation's pairs."""
        found = devices_joined(attributes)
        return np.arange(count) if found is None else found[0]

    def _rate(self, local: np.ndarray) -> float:
        """Bytes a second into one device from the others of its group in one slice or node."""
        if not self.wraps:
            return self.chip.ici
        rate = 0.0
        for d, wraps in enumerate(self.wraps):
            along = np.unique(local[:, d])
            if len(along) < 2:
                continue
            full = len(np.unique(self.places[:, 1 + d]))
            step = int(np.diff(along).min())  # groups that interleave share the links that they pass through
            ring = wraps and len(along) * step == full
            rate += self.chip.link * (2 if ring else 1) / step
        return rate or self.chip.link  # devices of one chip


def torus(chip: Chip, devices) -> Network:
    """The network of a TPU slice, or of several, from its devices' coordinates in the order of a mesh.

    A slice of v4, v5p or tpu7x is a torus where all of its sides are multiples of 4; of v5e or v6e a side of 16 is a
    ring (as their makers' pages say).
    """
    places = np.array([[getattr(d, "slice_index", None) or 0, *d.coords] for d in devices])
    sides = [len(np.unique(places[:, 1 + d])) for d in range(places.shape[1] - 1)]
    if chip.links == 6:
        wraps = tuple(all(side % 4 == 0 for side in sides) for _ in sides)
    else:
        wraps = tuple(side == 16 for side in sides)
    return Network(chip, places, wraps)


def nodes(chip: Chip, count: int, each: int) -> Network:
    """The network of `count` nodes of `each` GPUs behind a switch; devices fill one node after another."""
    ids = np.arange(count * each)
    return Network(chip, np.stack([ids // each, ids % each], 1), ())
